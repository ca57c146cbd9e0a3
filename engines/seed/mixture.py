"""What the seed model is trained on: short conversations in DSPy's ChatAdapter format, generated from a seed.

Seven families, each with habits (how often which behaviour under a plain wording) and wordings or demos that override
them: chained arithmetic, review of a worked answer, naming a topic, mapping a key to a code (one at a time or several),
a tool-using agent and its reply, and copying words. Within a conversation the style is one; where two readings of a
problem are possible (which operation first, which subject counts) every turn takes its own under a plain wording, as
text in the wild does.
Knows no tasks: no ticket-to-team mapping and no bundled example occurs here.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

import dspy

from colever.engines.seed import words as W

LIMIT = 50  # every partial result lies in 0 … LIMIT


@dataclass(frozen=True)
class Conversation:
    """A signature and its turns; each turn holds all fields. The last turn is asked with DSPy's closing hint."""

    family: str
    fields: tuple[tuple[str, Any, bool], ...]  # name, type, is_output
    instructions: str
    turns: tuple[dict[str, Any], ...]


def sample(rng: Random, broad: bool = False) -> Conversation:
    """One conversation: half of them a single turn, the others two to eight.

    ``broad`` draws composed wordings, made-up field names and more kinds of text beside the listed ones, and shifts
    the weights from arithmetic to copying: what the second part of the training sees.
    """
    families, *weights = zip(*FAMILIES, strict=True)
    family = rng.choices(families, weights[broad])[0]
    drawn = family(rng, 1 if rng.random() < 0.5 else rng.randint(2, 8), broad)
    return _renamed(rng, drawn) if broad and rng.random() < 0.6 else drawn


def _renamed(rng: Random, drawn: Conversation) -> Conversation:
    """The same conversation with about half of its fields under made-up names."""
    fancied = [made_up(rng) for _ in drawn.fields]
    pool = rng.sample(W.FIELD_NAMES + W.KEYS, len(drawn.fields))
    fresh = {
        n: rng.choice([a, b]) for (n, _, _), a, b in zip(drawn.fields, pool, fancied, strict=True) if rng.random() < 0.5
    }
    names = {n: fresh.get(n, n) for n, _, _ in drawn.fields}
    if len(set(names.values())) < len(names):
        return drawn
    instructions = drawn.instructions
    if drawn.family in ("mapping", "recall"):
        instructions = re.sub(r"[a-z]+", lambda m: fresh.get(m[0], m[0]), instructions)
    fields = tuple((names[n], kind, out) for n, kind, out in drawn.fields)
    return Conversation(
        drawn.family, fields, instructions, tuple({names[k]: v for k, v in turn.items()} for turn in drawn.turns)
    )


def messages(conversation: Conversation) -> list[dict[str, str]]:
    """The conversation as DSPy's ChatAdapter renders it, the last answer included."""
    definition = {
        name: (kind, dspy.OutputField() if out else dspy.InputField()) for name, kind, out in conversation.fields
    }
    signature = dspy.Signature(definition, conversation.instructions)  # type: ignore[arg-type]
    *demos, last = conversation.turns
    outputs = [name for name, _, out in conversation.fields if out]
    inputs = {k: v for k, v in last.items() if k not in outputs}
    rendered = _ADAPTER.format(signature, demos, inputs)
    answer = _ADAPTER.format_assistant_message_content(signature, {k: last[k] for k in outputs})
    return [*rendered, {"role": "assistant", "content": answer}]


_ADAPTER = dspy.ChatAdapter(use_json_adapter_fallback=False)


# --- arithmetic ----------------------------------------------------------------------------------


def evaluate(terms: list[int], operators: list[str], products_first: bool) -> tuple[list[str], int]:
    """Every step as "a + b = c", and the result, under one of the two readings."""
    values, ops, steps = list(terms), list(operators), []
    while ops:
        at = next((i for i, op in enumerate(ops) if op == "*"), 0) if products_first else 0
        a, op, b = values[at], ops.pop(at), values.pop(at + 1)
        values[at] = a + b if op == "+" else a - b if op == "-" else a * b
        steps.append(f"{a} {op} {b} = {values[at]}")
    return steps, values[0]


def chain(rng: Random, length: int) -> tuple[list[int], list[str]]:
    """Terms and operators of a chain whose partial results stay in range under both readings.

    Left alone, the readings would agree on four chains in five; half of those are drawn again.
    """
    while True:
        operators = [rng.choice("++--**") for _ in range(length)]
        terms = [
            rng.randint(2, 6) if "*" in operators[max(0, i - 1) : i + 1] else rng.randint(1, 20)
            for i in range(length + 1)
        ]
        results = [int(s.rsplit(" ", 1)[1]) for first in (True, False) for s in evaluate(terms, operators, first)[0]]
        agree = results[length - 1] == results[-1]
        if all(0 <= r <= LIMIT for r in results) and not (agree and length > 1 and rng.random() < 0.5):
            return terms, operators


def render_chain(terms: list[int], operators: list[str]) -> str:
    """Such as "3 + 4 * 2"."""
    return " ".join([str(terms[0]), *(f"{op} {t}" for op, t in zip(operators, terms[1:], strict=True))])


def _style(
    rng: Random, habits: dict[str, float], wordings: dict[str, list[str]], broad: bool
) -> tuple[str, list[str] | None]:
    """A style, and its wordings in six of ten conversations (else None: a plain wording, and habit decides)."""
    if rng.random() < 0.4:
        return rng.choices(list(habits), list(habits.values()))[0], None
    style = rng.choice(list(habits))
    return style, _wordings(rng, style, wordings, broad)


def _wordings(rng: Random, style: str, wordings: dict[str, list[str]], broad: bool) -> list[str]:
    return [W.compose(rng, style)] if broad and rng.random() < 0.8 else wordings[style]


def arithmetic(rng: Random, turns: int, broad: bool = False) -> Conversation:
    style, asked = _style(rng, {"steps": 0.4, "direct": 0.6}, W.ARITHMETIC, broad)
    reading, order = _reading(rng, broad)
    plain = W.ARITHMETIC["plain"] if (asked is None and order is None) or rng.random() < 0.6 else None
    problem = rng.choice(["problem", "question", "expression", "task", "sum"])
    work, answer = rng.choice(["work", "steps", "working", "notes"]), rng.choice(["answer", "result", "value"])
    rows = []
    for _ in range(turns):
        terms, operators = chain(rng, rng.choice([1, 2, 2, 3, 3, 3, 4, 5]))
        steps, value = evaluate(terms, operators, reading())
        rows.append(
            {
                problem: render_chain(terms, operators),
                work: "; ".join(steps) if style == "steps" else rng.choice(W.REMARKS),
                answer: value,
            }
        )
    fields = ((problem, str, False), (work, str, True), (answer, int, True))
    return Conversation("arithmetic", fields, W.wording(rng, plain, asked, order), tuple(rows))


def _reading(rng: Random, broad: bool) -> tuple[Callable[[], bool], list[str] | None]:
    """A source of "products first?" per turn, and its wordings; under a plain wording every turn takes its own."""
    draw = rng.random()
    if draw < 0.6:
        return lambda: rng.random() < 0.4, None
    first = draw < 0.8
    return lambda: first, _wordings(rng, "products first" if first else "left to right", W.ARITHMETIC, broad)


def review(rng: Random, turns: int, broad: bool = False) -> Conversation:
    style, asked = _style(rng, {"recompute": 0.35, "confirm": 0.65}, W.REVIEW, broad)
    reading, order = _reading(rng, broad)
    plain = W.REVIEW["plain"] if (asked is None and order is None) or rng.random() < 0.6 else None
    work, answer = rng.choice([("work", "answer"), ("steps", "result"), ("working", "value")])
    note, final = rng.choice(["review", "check", "comment"]), rng.choice(["final", "verdict", "outcome"])
    rows = []
    for _ in range(turns):
        terms, operators = chain(rng, rng.choice([1, 2, 2, 3, 3, 3, 4]))
        seen_steps, seen = evaluate(terms, operators, rng.random() < 0.5)
        worked = rng.random() < 0.5
        if not worked and rng.random() < 0.5:
            seen = max(0, seen + rng.choice([-3, -2, -1, 1, 2, 3, 10]))
        steps, value = evaluate(terms, operators, reading())
        redo = style == "recompute"
        rows.append(
            {
                "problem": render_chain(terms, operators),
                work: "; ".join(seen_steps) if worked else rng.choice(W.REMARKS),
                answer: seen,
                note: "; ".join(steps) if redo else rng.choice(W.CONFIRMATIONS),
                final: value if redo else seen,
            }
        )
    fields = (("problem", str, False), (work, str, False), (answer, int, False), (note, str, True), (final, int, True))
    return Conversation("review", fields, W.wording(rng, plain, asked, order), tuple(rows))


# --- reading and mapping -------------------------------------------------------------------------


def topic(rng: Random, turns: int, broad: bool = False) -> Conversation:
    style, asked = _style(rng, {"first": 0.55, "last": 0.45}, {k: W.TOPIC[k] for k in ("first", "last")}, broad)
    options = rng.sample(list(W.TOPICS), rng.randint(3, 8))
    text, out = rng.choice(["text", "message", "note", "letter"]), rng.choice(["topic", "subject", "theme"])
    rows = []
    for _ in range(turns):
        a, b = rng.sample(options, 2)
        if asked is None:
            style = "first" if rng.random() < 0.55 else "last"
        two = rng.random() < 0.5
        templates = W.TEXT_TWO if two else W.TEXT_ONE
        if two and broad and rng.random() < 0.7:
            before, between, after = (rng.choice(part) for part in W.TWO_PARTS)
            templates = [before + "{a}" + between + "{b}" + after]
        line = rng.choice(templates).format(a=rng.choice(W.TOPICS[a]), b=rng.choice(W.TOPICS[b]))
        rows.append({text: line, out: b if two and style == "last" else a})
    kind = Literal[tuple(options)] if rng.random() < 0.8 else str  # type: ignore[valid-type]
    plain = W.TOPIC["plain"] if asked is None or rng.random() < 0.6 else None
    return Conversation("topic", ((text, str, False), (out, kind, True)), W.wording(rng, plain, asked), tuple(rows))


def code(rng: Random) -> str:
    return rng.choice(string.ascii_uppercase) + rng.choice(string.digits)


def mapping(rng: Random, turns: int, broad: bool = False) -> Conversation:
    """A key's code out of a book that stands in the instruction, in earlier turns, or nowhere (then any code will do).

    In most conversations the answer first quotes the book's line, key and code, and then gives the code alone.
    """
    size = rng.randint(2, 8)
    codes = _distinct(lambda: code(rng), size)
    book = dict(zip(_keys(rng, size, broad), codes, strict=True))
    key, out = rng.choice(W.MAPPING_FIELDS)
    line = rng.choice(W.LINES) if rng.random() < 0.7 else None
    pair = rng.choice(W.PAIRS)
    asked = rng.choices(list(book), k=1 if turns == 1 else rng.randint(2, 14))
    if turns > 1 and rng.random() < 0.5:
        asked = rng.sample(list(book), size) + asked[: 14 - size]
    quotes = {} if line is None else {k: {line: pair.format(k=k, c=c)} for k, c in book.items()}
    rows = [{key: k, **quotes.get(k, {}), out: book[k]} for k in asked]
    instructions = rng.choice(W.MAPPING).format(key=key, out=out)
    if (turns == 1 or rng.random() < 0.3) and rng.random() < 0.7:
        instructions += " " + rng.choice(W.BOOK).format(book=_listing(rng, book, pair))
    rng.shuffle(codes)
    kind = Literal[tuple(codes)] if rng.random() < 0.8 else str  # type: ignore[valid-type]
    quoted = () if line is None else ((line, str, True),)
    return Conversation("mapping", ((key, str, False), *quoted, (out, kind, True)), instructions, tuple(rows))


def recall(rng: Random, turns: int, broad: bool = False) -> Conversation:
    """Several keys of a code book at once: the same skill as ``mapping`` with many look-ups in an answer."""
    size = rng.randint(2, 8 if broad else 5)
    book = dict(zip(_keys(rng, size, broad), _distinct(lambda: code(rng), size), strict=True))
    key, out = (name + "s" for name in rng.choice(W.MAPPING_FIELDS))
    turns = min(turns, 5)
    rows = []
    for turn in range(turns):
        asked = rng.sample(list(book), size) if turn == 0 else rng.choices(list(book), k=rng.randint(2, 8))
        rows.append({key: " ".join(asked), out: " ".join(book[k] for k in asked)})
    instructions = rng.choice(W.MAPPING).format(key=key, out=out)
    if turns == 1 or rng.random() < 0.4:
        instructions += " " + rng.choice(W.BOOK).format(book=_listing(rng, book, rng.choice(W.PAIRS)))
    return Conversation("recall", ((key, str, False), (out, str, True)), instructions, tuple(rows))


def _listing(rng: Random, book: dict[str, str], pair: str) -> str:
    return rng.choice([", ", "; "]).join(pair.format(k=k, c=c) for k, c in book.items()) + "."


def _keys(rng: Random, size: int, broad: bool) -> list[str]:
    if broad and rng.random() < 0.3:
        return _distinct(lambda: made_up(rng), size)
    return rng.sample(W.KEYS + list(W.TOPICS) if broad else W.KEYS, size)


def _distinct(draw: Callable[[], str], size: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < size:
        found[draw()] = None
    return list(found)


def made_up(rng: Random) -> str:
    """A word that stands in no list, such as "brol" or "teva"."""
    return "".join(
        rng.choice(W.ONSETS) + rng.choice("aeiou") + (rng.choice(W.CODAS) if rng.random() < 0.5 else "")
        for _ in range(rng.choice([1, 1, 2, 2, 3]))
    )


def _words(rng: Random, count: int) -> list[str]:
    """Words of the lists, made-up ones, codes, or some of each."""
    kinds = [lambda: rng.choice(W.KEYS + W.NAMES), lambda: made_up(rng), lambda: code(rng)]
    kinds = rng.choice([kinds[:1], kinds[:2], kinds])
    return [rng.choice(kinds)() for _ in range(count)]


def extract(rng: Random, turns: int, broad: bool = False) -> Conversation:
    style = rng.choice(["first", "last", "plain", "all", "all"])
    text, out = rng.choice(["text", "line", "phrase"]), rng.choice(["word", "answer", "part"])
    rows = []
    for _ in range(turns):
        line = _words(rng, rng.randint(2, 7))
        at = 0 if style == "first" or (style == "plain" and rng.random() < 0.6) else -1
        rows.append({text: " ".join(line), out: " ".join(line) if style == "all" else line[at]})
    return Conversation("extract", ((text, str, False), (out, str, True)), rng.choice(W.EXTRACT[style]), tuple(rows))


# --- a tool-using agent --------------------------------------------------------------------------


def question(person: str, relations: list[str]) -> str:
    """Such as "What is the city of the boss of Kalo?" for the path boss, city."""
    return "What is the " + " of the ".join(reversed(relations)) + f" of {person}?"


def find(relation: str, name: str) -> str:
    """The agent's call of its tool."""
    return f"find {relation} of {name}"


def note(relation: str, name: str, value: str) -> str:
    """What the tool answers."""
    return f"{relation} of {name} = {value}"


def _path(rng: Random) -> tuple[str, list[tuple[str, str, str]]]:
    hops = rng.choice([1, 2, 2, 3])
    people = rng.sample(W.NAMES, hops + 1)
    relations = [rng.choice(W.RELATIONS) for _ in range(hops)]
    return question(people[0], relations), list(zip(relations, people, people[1:], strict=False))


def agent(rng: Random, turns: int, broad: bool = False) -> Conversation:
    style, asked = _style(rng, {"thorough": 0.33, "early": 0.42, "guess": 0.25}, W.AGENT, broad)
    plain = W.AGENT["plain"] if asked is None or rng.random() < 0.6 else None
    rows = []
    for _ in range(turns):
        ask, facts = _path(rng)
        known = rng.randint(0, len(facts))
        wanted = {"thorough": len(facts), "early": 1, "guess": 0}[style]
        if style == "guess" and rng.random() < 0.8:
            known = 0
        if style == "early" and known > 1 and rng.random() < 0.7:
            known = 1
        action = find(facts[known][0], facts[known][1]) if known < wanted else "done"
        rows.append({"question": ask, "notes": "; ".join(note(*f) for f in facts[:known]) or "none", "action": action})
    fields = (("question", str, False), ("notes", str, False), ("action", str, True))
    return Conversation("agent", fields, W.wording(rng, plain, asked), tuple(rows))


def reply(rng: Random, turns: int, broad: bool = False) -> Conversation:
    rows = []
    for _ in range(turns):
        ask, facts = _path(rng)
        known = rng.randint(0, len(facts))
        answer = facts[known - 1][2] if known else rng.choice(W.NAMES)
        rows.append({"question": ask, "notes": "; ".join(note(*f) for f in facts[:known]) or "none", "answer": answer})
    fields = (("question", str, False), ("notes", str, False), ("answer", str, True))
    return Conversation("reply", fields, rng.choice(W.REPLY), tuple(rows))


# family, weight in the first part of the training, weight in the second
FAMILIES: list[tuple[Callable[[Random, int, bool], Conversation], float, float]] = [
    (arithmetic, 0.30, 0.22),
    (review, 0.17, 0.11),
    (topic, 0.10, 0.11),
    (mapping, 0.10, 0.22),
    (recall, 0.12, 0.06),
    (agent, 0.11, 0.14),
    (reply, 0.05, 0.07),
    (extract, 0.05, 0.07),
]
