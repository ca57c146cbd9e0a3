"""The normal form of a text: what two ways of writing the same answer have in common."""

from __future__ import annotations

import re
import unicodedata

_ARTICLES = re.compile(r"\b(?:a|an|the)\b", re.IGNORECASE)
_IN_NUMBER = re.compile(
    r"(?<=\d)[.,](?=\d)|(?<![\w)\]])[-+](?=[.\d])"
)  # a point, a comma, a sign: they say which number


def normal_form(text: str, case: bool = False, punctuation: bool = False, articles: bool = False) -> str:
    """NFKC, no invisible characters, single spaces; case, punctuation and English articles go unless they count.

    Signs and decimal marks of numbers stay (``-5`` is not ``5``), and so does what would leave nothing (``A``, ``?``).
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-")
    text = "".join(_visible(c) for c in text)
    text = text if case else unicodedata.normalize("NFKC", text.casefold())
    text = text if punctuation else _rest(_without_punctuation(text), text)
    text = text if articles else _rest(_ARTICLES.sub(" ", text), text)
    return " ".join(text.split())


def _rest(less: str, text: str) -> str:
    return less if less.strip() else text


def _visible(character: str) -> str:
    kind = unicodedata.category(character)
    return "" if kind == "Cf" else " " if kind in ("Cc", "Cs", "Zl", "Zp") else character


def _without_punctuation(text: str) -> str:
    kept = {m.start() for m in _IN_NUMBER.finditer(text)}
    return "".join(" " if unicodedata.category(c)[0] == "P" and i not in kept else c for i, c in enumerate(text))
