"""The thread that steps a vLLM engine in this process, for all threads that ask; asleep while nobody does.

Knows vLLM's ``LLMEngine`` and its sleep; no weights and no DSPy. Everything that touches the engine runs in this
thread: requests join the running batch between two steps, and work that must have the engine alone waits for them.
"""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from colever.engines.vllm_client import Gone

T = TypeVar("T")


class _Job:
    """A request (``add`` gives its id), or work that has the engine ``alone`` or between two steps."""

    def __init__(self, work: Callable[[Any], Any], *, request: bool = False, alone: bool = False) -> None:
        self.work, self.request, self.alone = work, request, alone
        self.done: Future[Any] = Future()


class VllmLoop:
    """``make`` opens the engine and ``shut`` ends it, in the thread; it sleeps on a platform with vLLM's sleep mode.

    Raises what ``make`` raises. Once a step has failed, every call raises Gone.
    """

    def __init__(self, make: Callable[[], Any], shut: Callable[[Any], None], *, sleeps: bool) -> None:
        self._make, self._shut, self._sleeps = make, shut, sleeps
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._ids = itertools.count()
        self._under_way: dict[str, Future[Any]] = {}
        self._waiting: deque[_Job] = deque()
        self._engine: Any = None
        self._asleep, self._closed = False, False
        self._broken: Gone | None = None
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), daemon=True, name="vllm")
        self._thread.start()
        started.result()

    @property
    def broken(self) -> bool:
        return self._broken is not None

    @property
    def asleep(self) -> bool:
        return self._asleep

    def sample(self, prompt: Any, params: Any, adapter: Any) -> Any:
        """One ``RequestOutput``. Raises Gone, and ValueError for what vLLM refuses."""
        name = str(next(self._ids))
        return self._asked(
            _Job(lambda engine: engine.add_request(name, prompt, params, lora_request=adapter) and name, request=True)
        )

    def between(self, work: Callable[[Any], T]) -> T:
        """``work`` on the engine between two steps."""
        return self._asked(_Job(work))  # type: ignore[no-any-return]

    def alone(self, work: Callable[[Any], T]) -> T:
        """``work`` on the engine while no request is under way."""
        return self._asked(_Job(work, alone=True))  # type: ignore[no-any-return]

    def rest(self) -> None:
        """Sleep until the next call: weights go to main memory, keys and values are dropped. Nothing without a GPU."""
        if self._sleeps and not (self._asleep or self._closed or self._broken):
            self._asked(_Job(self._lie_down, alone=True))

    def close(self) -> None:
        """Returns when the engine has been shut down."""
        self._closed = True
        self._jobs.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # --- in the thread -------------------------------------------------------------------------------

    def _asked(self, job: _Job) -> Any:
        if self._closed or not self._thread.is_alive():
            raise self._broken or Gone("vLLM in this process was closed")
        self._jobs.put(job)
        while True:
            try:
                return job.done.result(5.0)
            except TimeoutError:
                if job.done.done():
                    return job.done.result()  # its own error, if it was one
                if not self._thread.is_alive():
                    raise self._broken or Gone("vLLM in this process was closed") from None

    def _run(self, started: Future[None]) -> None:
        try:
            self._engine = self._make()
        except BaseException as error:  # noqa: BLE001 - raised in the thread that waits
            started.set_exception(error)
            return
        started.set_result(None)
        try:
            while self._next():
                pass
        except Exception as error:  # noqa: BLE001 - vLLM's boundary: a step that failed leaves it in no known state
            self._broken = Gone(f"vLLM in this process failed: {type(error).__name__}: {error}")
        self._fail(self._broken or Gone("vLLM in this process was closed"))
        engine, self._engine = self._engine, None
        self._shut(engine)

    def _next(self) -> bool:
        """Take what was asked, and make a step. Whether to go on."""
        if not self._under_way and not self._waiting:
            job = self._jobs.get()
            if job is None:
                return False
            self._waiting.append(job)
        while not self._jobs.empty():
            job = self._jobs.get()
            if job is None:
                return False
            self._waiting.append(job)
        while self._waiting and not (self._waiting[0].alone and self._under_way):
            self._do(self._waiting.popleft())
        if self._under_way:
            for output in self._engine.step():
                if output.finished:
                    self._under_way.pop(output.request_id).set_result(output)
        return True

    def _do(self, job: _Job) -> None:
        try:
            if self._asleep and job.work != self._lie_down:
                self._wake()
            made = job.work(self._engine)
        except Exception as error:  # noqa: BLE001 - raised in the thread that asked
            job.done.set_exception(error)
            return
        if job.request:
            self._under_way[made] = job.done
        else:
            job.done.set_result(made)

    def _lie_down(self, engine: Any) -> None:
        if not self._asleep:
            engine.sleep(1)
            self._asleep = True

    def _wake(self) -> None:
        import torch

        torch.cuda.empty_cache()  # what the trainer's allocator keeps for itself
        self._engine.wake_up()
        self._asleep = False

    def _fail(self, error: Gone) -> None:
        waiting = [job.done for job in self._waiting]
        while not self._jobs.empty():
            if (job := self._jobs.get()) is not None:
                waiting.append(job.done)
        for future in (*self._under_way.values(), *waiting):
            future.set_exception(error)
        self._under_way.clear()
        self._waiting.clear()
