"""A process that compares mathematical expressions: lines of JSON in, lines of JSON out; run by ``math_process``.

Nothing but the standard library and math-verify: it starts in a second, and can be killed, where a thread cannot.
math-verify's own limits of time are alarms, which work in the main thread alone: here they do.
"""

import contextlib
import json
import logging
import re
import resource
import signal
import sys
from typing import Any

MEMORY = 3 * 2**30  # bytes: 9^9^9^9 asks for more
_BARE = 200  # characters: a longer text without marks of mathematics is prose
_MARKS = ("$", "\\boxed", "\\(", "\\[")
_WORD = re.compile(r"(?<![\\A-Za-z{])[A-Za-z]{2,}")  # but for LaTeX's commands


def parsed(text: str, seconds: int) -> list[Any]:
    """The expressions in a text; one that is no more than an expression is LaTeX: ``2\\sqrt{2}`` would be seen as 2."""
    from math_verify import parse

    bare = text.strip() and "\n" not in text and len(text) <= _BARE and not any(mark in text for mark in _MARKS)
    readings = [text, f"${text.strip()}$"] if bare else [text]
    for reading in readings if _WORD.search(text) else reversed(readings):
        if found := parse(reading, parsing_timeout=seconds):
            return found
    return []


def answer(request: dict[str, Any]) -> bool | None:
    """Whether any label equals the text; None where no label is mathematics."""
    from math_verify import verify

    seconds = int(request["seconds"])
    labels = [found for label in request["labels"] if (found := parsed(label, seconds))]
    if not labels:
        return None
    got = parsed(request["text"], seconds)
    digits = int(request["digits"])
    return any(verify(label, got, float_rounding=digits, timeout_seconds=seconds) for label in labels) if got else False


def main() -> None:
    """Until the other side closes: one request, one answer."""
    logging.disable(logging.CRITICAL)
    out, sys.stdout = sys.stdout, sys.stderr  # a library's print is no answer
    with contextlib.suppress(ValueError, OSError):  # a system that has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    import math_verify  # noqa: F401 - before "ready"

    print(json.dumps("ready"), file=out, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.setitimer(signal.ITIMER_VIRTUAL, 6 * int(request["seconds"]))  # ends a process that nobody waits for
        try:
            value = answer(request)
        except (Exception, RecursionError):  # noqa: BLE001 - the boundary to a parser of what a model wrote
            value = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        print(json.dumps(value), file=out, flush=True)


if __name__ == "__main__":
    main()
