"""A small task set of verifiers': two rewards, one of them negative below, a penalty, and a metric. Found by its id."""

from __future__ import annotations

from collections.abc import Iterator

import verifiers.v1 as vf

WORDS = "ant bee cat dog eel fox gnu hen ibis jay koala lynx mole newt owl pig quail rat seal toad".split()


class ShoutData(vf.TaskData):
    answer: str


class ShoutTask(vf.Task[ShoutData]):
    @vf.reward(weight=2.0)
    async def right(self, trace: vf.Trace) -> float:
        return float(self.data.answer in trace.last_reply)

    @vf.reward
    async def brevity(self, task: ShoutData, trace: vf.Trace) -> float:
        """1 for as many characters as the answer has, 0.1 less for each further one, down to -1."""
        return max(-1.0, 1 - 0.1 * max(0, len(trace.last_reply) - len(task.answer)))

    @vf.reward(weight=-0.5)
    async def lower(self, trace: vf.Trace) -> float:
        return float(any(c.islower() for c in trace.last_reply))

    @vf.metric
    async def characters(self, trace: vf.Trace) -> float:
        return len(trace.last_reply)


class ShoutConfig(vf.TasksetConfig):
    start: int = 0
    stop: int = 16


class Shout(vf.Taskset[ShoutTask, ShoutConfig]):
    def load(self) -> Iterator[ShoutTask]:
        for word in WORDS[self.config.start : self.config.stop]:
            data = ShoutData(prompt=word, system_prompt="Write the word in capitals.", answer=word.upper())
            yield ShoutTask(data, self.config.task)


__all__ = ["Shout"]
