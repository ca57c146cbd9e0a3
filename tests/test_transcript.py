"""Prompts of later turns in exactly the tokens of earlier ones, whatever template and tokenizer would make of them."""

from __future__ import annotations

from typing import Any

import pytest
from agents import TEMPLATE, TOOL
from conftest import byte_tokenizer

from colever.engines.chat_template import ChatTemplate
from colever.pipelines.tool_calls import Said, checked_messages, said
from colever.pipelines.transcript import Prompt, Transcript

THINKS = (  # shows what the last turn thought, and of earlier ones nothing
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'].split('</think>')[-1] if m['role'] == 'assistant' and not loop.last else m['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
STRICT = (
    "{% if messages[-1]['role'] == 'tool' and not messages[-2].tool_calls %}{{ raise_exception('no call') }}{% endif %}"
)
SYSTEM, ASKED = {"role": "system", "content": "Be brief."}, {"role": "user", "content": "How much is it?"}
MORE = {"role": "user", "content": "And now?"}


def chat_of(template: str) -> ChatTemplate:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer, {})


def spelled(chat: ChatTemplate, text: str, end: str = "<|im_end|>") -> tuple[int, ...]:
    return chat.ids(text + end)


class Talk:
    """A transcript, and what was put into it last."""

    def __init__(self, template: str = TEMPLATE, tools: Any = ()) -> None:
        self.chat, self.tools = chat_of(template), list(tools)
        [end] = self.chat.ids("<|im_end|>")
        self.transcript = Transcript(self.chat, {end: "<|im_end|>"})
        self.told: tuple[int, ...] = ()

    def prompt(self, *messages: Any) -> Prompt:
        return self.transcript.prompt(checked_messages(messages), self.tools)

    def says(self, prompt: Prompt, text: str, end: str = "<|im_end|>") -> dict[str, Any]:
        """The model writes ``text``; the message that the agent gets."""
        ids = spelled(self.chat, text, end)
        message = said(text, bool(self.tools)).message(0)
        self.transcript.add(prompt, checked_messages([message])[0], ids)
        self.told = (*prompt.ids, *ids)
        return message

    def behind(self, prompt: Prompt) -> str:
        """What follows the last answer in a prompt that begins with it and all before it."""
        assert prompt.ids[: len(self.told)] == self.told
        assert not prompt.drifted
        return str(self.chat._tokenizer.decode(prompt.ids[len(self.told) :]))


def test_what_an_earlier_turn_thought_stays() -> None:
    talk = Talk(THINKS)
    answer = talk.says(talk.prompt(SYSTEM, ASKED), "five, no, six\n</think>6")
    then = talk.prompt(SYSTEM, ASKED, answer, MORE)
    assert talk.behind(then) == "\n<|im_start|>user\nAnd now?<|im_end|>\n<|im_start|>assistant\n<think>\n"
    again = talk.says(then, "hm\n</think>7")
    assert talk.behind(talk.prompt(SYSTEM, ASKED, answer, MORE, again, MORE)).count("And now?") == 1


def test_an_answer_that_was_cut_off_is_closed() -> None:
    talk = Talk()
    answer = talk.says(talk.prompt(SYSTEM, ASKED), "it is about", end="")
    assert talk.behind(talk.prompt(SYSTEM, ASKED, answer, MORE)).startswith("<|im_end|>\n<|im_start|>user\nAnd now?")


@pytest.mark.parametrize(
    "change",
    [
        lambda m: {**m, "content": f"  {m['content']}\n"},  # as frameworks strip and add blanks
        lambda m: {**m, "content": [{"type": "text", "text": m["content"]}]},
        lambda m: {**m, "refusal": None, "annotations": [], "tool_calls": None, "audio": None},
    ],
)
def test_an_answer_is_known_again_in_other_clothes(change: Any) -> None:
    talk = Talk()
    answer = talk.says(talk.prompt(SYSTEM, ASKED), "6")
    talk.behind(talk.prompt(SYSTEM, ASKED, change(answer), MORE))


def test_a_call_is_known_again_however_its_arguments_are_written() -> None:
    talk = Talk(tools=[TOOL])
    answer = talk.says(talk.prompt(SYSTEM, ASKED), '<tool_call>{"arguments":{"b":3,"a":2},"name":"add"}</tool_call>')
    answer["tool_calls"][0]["function"]["arguments"] = '{ "a": 2,\n"b": 3 }'
    result = {"role": "tool", "tool_call_id": answer["tool_calls"][0]["id"], "content": "5"}
    assert talk.behind(talk.prompt(SYSTEM, ASKED, answer, result)).startswith("\n<|im_start|>tool\n5<|im_end|>")


@pytest.mark.parametrize(
    "history",
    [
        [SYSTEM, ASKED, {"role": "assistant", "content": "7"}, MORE],  # another answer
        [SYSTEM, {"role": "assistant", "content": "6"}, MORE],  # cut
        [{"role": "system", "content": "Be long."}, ASKED, {"role": "assistant", "content": "6"}, MORE],
    ],
)
def test_another_history_is_tokenized_anew_and_has_drifted(history: list[Any]) -> None:
    talk = Talk()
    talk.says(talk.prompt(SYSTEM, ASKED), "6")
    made = talk.prompt(*history)
    assert made.drifted
    assert made.ids == talk.chat.ids(talk.chat.text(history))


def test_a_new_conversation_has_not_drifted() -> None:
    talk = Talk()
    talk.says(talk.prompt(SYSTEM, ASKED), "6")
    assert not talk.prompt(SYSTEM, MORE).drifted


def test_a_template_that_takes_no_stand_in_is_given_the_whole() -> None:
    talk = Talk(STRICT + TEMPLATE, tools=[TOOL])
    assert talk.chat.knows_tools
    answer = talk.says(talk.prompt(SYSTEM, ASKED), '<tool_call>{"name":"add","arguments":{}}</tool_call>')
    assert talk.prompt(SYSTEM, ASKED, answer, {"role": "tool", "content": "5"}).drifted


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("no call", Said("no call")),
        ('so <tool_call>{"name": "f"}</tool_call>', Said("so", (("f", "{}"),))),
        ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', Said("", (("f", '{"a": 1}'),))),
        (
            '<tool_call>{"name": "f"}</tool_call>\n'
            '<tool_call>\n{"name": "g", "arguments": {"s": "\\ud800"}}\n</tool_call>',
            Said("", (("f", "{}"), ("g", '{"s": "\\ud800"}'))),
        ),
        *(
            (text, Said(text, broken=True))
            for text in (
                '<tool_call>{"name": "f"}',
                "<tool_call>f(1)</tool_call>",
                '<tool_call>{"name": 3}</tool_call>',
                '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
                '<tool_call>["f"]</tool_call>',
                '<tool_call>{"name": "f"}</tool_call> <tool_call>',
                "<tool_call>" + "[" * 5000 + "</tool_call>",
            )
        ),
    ],
)
def test_a_completion_is_read_whole_or_not_at_all(text: str, read: Said) -> None:
    assert said(text, tools=True) == read
    assert said(text, tools=False) == Said(text)
