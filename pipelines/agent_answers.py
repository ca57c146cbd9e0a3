"""How a rollout answers its agent's requests: whose prompt one has, what the model is asked, what goes back.

Knows requests, predictors and the engine behind DSPy's LM; nothing of threads or of how requests come.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
from dspy import lm15
from dspy.utils.exceptions import ContextWindowExceededError
from jinja2 import TemplateError

from colever.engines.calls import CallRecorder, current_call
from colever.errors import ColeverError, InfrastructureError, UsageError
from colever.pipelines.endpoint import Asked
from colever.pipelines.nearest import nearest_of
from colever.pipelines.openai_chat import Message, completion, messages_of
from colever.pipelines.tool_calls import Said, checked_messages, checked_tools, said
from colever.pipelines.transcript import Prompt, Tools, Transcript
from colever.types import Completion


class Unfit(Exception):
    """A request whose messages the model's chat template refuses, such as two turns of the user in a row."""


class TooLong(Exception):
    """A request that the model's context does not hold; an agent may shorten its history and ask again."""

    def policy(self) -> Exception:
        return ContextWindowExceededError(message=str(self))


@dataclass(frozen=True)
class Request:
    """One that was checked: what is heeded of it. ``model`` is the name that it gives, ``most`` its ``max_tokens``."""

    model: str
    messages: list[Message]
    tools: Tools
    most: int | None
    stop: tuple[str, ...]

    @classmethod
    def of(cls, body: Any) -> Request:
        """Raises UsageError."""
        messages = checked_messages(messages_of(body))
        most = body.get("max_completion_tokens") or body.get("max_tokens")
        stop = body.get("stop") or ()
        stop = (stop,) if isinstance(stop, str) else tuple(stop)
        if most is not None and (not isinstance(most, int) or isinstance(most, bool) or most < 1):
            raise UsageError("max_tokens: accepted: a whole number from 1 on")
        if not all(isinstance(text, str) and text for text in stop):
            raise UsageError("stop: accepted: a text, or a list of texts")
        return cls(str(body.get("model") or "policy"), messages, checked_tools(body), most, stop)

    def config(self, lm: Any) -> lm15.Config:
        """The run's decoding within the request's limits."""
        known = {key: lm.kwargs[key] for key in ("temperature", "top_p", "top_k") if lm.kwargs.get(key) is not None}
        most = lm.kwargs.get("max_tokens") or 256
        return lm15.Config(max_tokens=min(most, self.most or most), stop=self.stop, **known)


@dataclass(frozen=True)
class Place:
    """Where a prompt of the agent's stands: in the system message ``at``, as ``text``."""

    name: str
    at: int
    text: str


@dataclass(frozen=True)
class Answer:
    """What the model said, in which tokens (read, written), and how it ended."""

    said: Said
    tokens: tuple[int, int]
    finish: str


class Answers:
    """Of one rollout. ``calls`` were answered; ``known`` of them had a prompt of the agent's in them."""

    def __init__(self, predictors: Mapping[str, Any], texts: Mapping[str, str]) -> None:
        self._predictors = predictors
        self._own = dict(texts)
        clean = {name: inspect.cleandoc(text) for name, text in texts.items()}  # as DSPy keeps an instruction
        now = {name: predictor.signature.instructions for name, predictor in predictors.items()}
        self.texts = {name: texts[name] if now[name] == clean[name] else now[name] for name in texts}
        self._spellings = (self._own, clean, self.texts)
        self.requests = self.calls = self.known = 0
        self.refused = ""  # why a request was
        self.too_long: TooLong | None = None  # what the last request was
        self._transcripts: dict[str, Transcript] = {}

    def answer(self, asked: Asked) -> None:
        """Answer one request, by the model or with a refusal. Raises what ends the rollout, having told the agent."""
        self.requests, self.too_long = self.requests + 1, None
        try:
            request = Request.of(asked.body)
        except UsageError as error:
            self.refused = str(error)
            asked.refuse(400, str(error))
            return
        try:
            answer = self._answer(request)
        except Unfit as error:
            self.refused = str(error)
            asked.refuse(400, str(error))
        except TooLong as error:
            self.too_long = error
            asked.refuse(400, str(error), "context_length_exceeded")
        except BaseException as error:  # an interrupt too: the agent is told, then it goes on up
            asked.refuse(503, f"the model failed: {type(error).__name__}")
            if isinstance(error, ColeverError) or not isinstance(error, Exception):
                raise
            raise InfrastructureError(f"the model failed: {type(error).__name__}: {error}") from error
        else:
            message = answer.said.message(self.calls)
            finish = "tool_calls" if answer.said.calls else answer.finish
            self.calls += 1
            asked.answer(200, completion(request.model, message, finish, answer.tokens))

    def _answer(self, request: Request) -> Answer:
        place = self._found(request.messages)
        self.known += place is not None
        predictor = self._predictors[place.name] if place else None
        lm = getattr(predictor, "lm", None) or dspy.settings.lm
        text, demos = (self.texts[place.name], _shown(predictor, request)) if place else ("", ())
        messages = _with_prompt(request.messages, place, text, demos)
        with dspy.context(caller_modules=[*(dspy.settings.caller_modules or []), predictor]):
            if not hasattr(lm.engine, "complete_ids"):
                return _in_words(lm, messages, request)
            return self._in_tokens(lm, messages, request, place)

    def _found(self, messages: Sequence[Message]) -> Place | None:
        """The agent's prompt that a request has, in whichever spelling; of several the longest."""
        for texts in self._spellings:
            for at, message in enumerate(messages):
                found = [
                    Place(n, at, t) for n, t in texts.items() if message["role"] == "system" and t in message["content"]
                ]
                if found:
                    return max(found, key=lambda place: len(place.text))
        return None

    def _in_tokens(self, lm: Any, messages: list[Message], request: Request, place: Place | None) -> Answer:
        try:
            prompt = self._transcript(lm.engine, "").prompt(messages, request.tools)
        except TemplateError as error:
            raise Unfit(f"the model's chat template takes no such messages: {error}") from error
        try:
            made = lm.engine.complete_ids(prompt.ids, request.config(lm), lm.model)
        except lm15.ContextLengthError as error:
            raise TooLong(str(error)) from error
        read = said(made.text, bool(request.tools))
        [answer] = checked_messages([read.message(0)])
        self._transcript(lm.engine, "").add(prompt, answer, made.completion_ids)
        if (recorder := current_call.get()) is not None:
            _note(recorder, messages, answer, failed=read.broken, drifted=prompt.drifted)
            self._keep_short(recorder, lm.engine, request, place, prompt, (answer, made.completion_ids))
        return Answer(read, (len(prompt.ids), len(made.completion_ids)), made.finish_reason)

    def _transcript(self, engine: Any, which: str) -> Transcript:
        if which not in self._transcripts:
            ends = {token: engine.tokenizer.decode([token]) for token in engine.end_ids}
            self._transcripts[which] = Transcript(engine.chat, ends)
        return self._transcripts[which]

    def _keep_short(
        self,
        recorder: CallRecorder,
        engine: Any,
        request: Request,
        place: Place | None,
        prompt: Prompt,
        made: tuple[Message, tuple[int, ...]],
    ) -> None:
        """Where the run asks for it, the same call's prompt under other prompts: a conversation of its own."""
        short = getattr(dspy.settings.adapter, "short", None)
        other = short.prompt_of(place.name) if short is not None and place is not None else None
        if recorder.short_ids is None or place is None or other is None:
            return
        messages = _with_prompt(request.messages, place, other.instructions, other.demos)
        shorter = self._transcript(engine, "short").prompt(messages, request.tools)
        self._transcript(engine, "short").add(shorter, *made)
        recorder.short_ids[id(self._predictors[place.name]), prompt.ids] = shorter.ids


def _with_prompt(messages: Sequence[Message], place: Place | None, text: str, demos: Sequence[Any]) -> list[Message]:
    """The messages with a prompt in the place of the agent's own, its demos as earlier turns behind it."""
    if place is None:
        return list(messages)
    system = {"role": "system", "content": messages[place.at]["content"].replace(place.text, text)}
    return [*messages[: place.at], system, *_turns(demos), *messages[place.at + 1 :]]


def _shown(predictor: Any, request: Request) -> Sequence[Any]:
    """A predictor's demos, or of them the nearest, by how the conversation begins: they stay the same while it goes on.

    One that begins as this one does is left out: it is of the same example, and holds its answer.
    """
    if not nearest_of(predictor) or (index := predictor.index()) is None:
        return list(predictor.demos)
    begins = [m for m in request.messages if m["role"] != "system"][:1]
    return [demo for demo in index.like({"messages": begins}) if list(demo["messages"])[:1] != begins]


def _turns(demos: Sequence[Any]) -> list[Message]:
    """Each demo is a conversation and what was answered to it, as a message or a text."""
    turns: list[Message] = []
    for demo in demos:
        reply = demo["reply"]
        turns += [*demo["messages"], {"role": "assistant", "content": reply} if isinstance(reply, str) else reply]
    return checked_messages(turns) if turns else []


def _in_words(lm: Any, messages: list[Message], request: Request) -> Answer:
    """Of a model that is asked in words and has its own form of tool calls: one behind an API."""
    body = {"model": lm.model, "messages": [_spelled(m) for m in messages], "tools": list(request.tools) or None}
    wanted = lm15.request_from_openai_chat({key: value for key, value in body.items() if value is not None})
    wanted = lm15.Request(wanted.model, wanted.messages, wanted.system, wanted.tools, request.config(lm))
    recorder = current_call.get()
    before = len(recorder.completions) if recorder is not None else 0
    try:
        response = lm.engine.complete(wanted)
    except ContextWindowExceededError as error:
        raise TooLong(str(error)) from error
    parts = response.message.parts
    text = "".join(part.text for part in parts if isinstance(part, lm15.TextPart))
    calls = tuple((part.name, json.dumps(part.input)) for part in parts if isinstance(part, lm15.ToolCallPart))
    read = Said(text, calls)
    if recorder is not None:
        if len(recorder.completions) == before:  # an engine that keeps no record of its own
            recorder.completions.append((dspy.settings.caller_modules[-1], Completion(text, (), (), (), "stop", "")))
        [answer] = checked_messages([read.message(0)])
        _note(recorder, messages, answer, failed=False, drifted=False)
    tokens = (response.usage.input_tokens or 0, response.usage.output_tokens or 0)
    return Answer(read, tokens, "length" if response.finish_reason == "length" else "stop")


def _spelled(message: Message) -> Message:
    """As an API has it: the arguments of a call are text."""
    if not message.get("tool_calls"):
        return message
    calls = [
        {**call, "function": {"name": call["function"]["name"], "arguments": json.dumps(call["function"]["arguments"])}}
        for call in message["tool_calls"]
    ]
    return {**message, "tool_calls": calls}


def _note(recorder: CallRecorder, messages: list[Message], answer: Message, *, failed: bool, drifted: bool) -> None:
    """Tell the rollout what its last completion was about."""
    place = len(recorder.completions) - 1
    recorder.fields[place] = {"messages": [m for m in messages if m["role"] != "system"]}, {"reply": answer}
    if failed:
        recorder.unparsed.add(place)
    if drifted:
        recorder.drifted.add(place)
