"""Criteria ready to use, by kind; a rubric's file names them so. docs/criteria.md lists them."""

from __future__ import annotations

from colever.tasks.criteria.answer_type import AnswerType
from colever.tasks.criteria.choice import Choice
from colever.tasks.criteria.citation import Citation
from colever.tasks.criteria.json_text import Json
from colever.tasks.criteria.judge import Judge
from colever.tasks.criteria.length import Length, Truncation
from colever.tasks.criteria.markup import Xml
from colever.tasks.criteria.match import Exact, Normalized
from colever.tasks.criteria.mathematics import Math
from colever.tasks.criteria.number import Number
from colever.tasks.criteria.pattern import Regex
from colever.tasks.criteria.preference import Preference, Ranking
from colever.tasks.criteria.set_f1 import SetF1
from colever.tasks.criteria.similarity import Similarity
from colever.tasks.criteria.tool_use import ArgumentsValid, Called, ResultUsed
from colever.tasks.criteria.unit_tests import UnitTests

KINDS: dict[str, type] = {
    "exact": Exact,
    "normalized": Normalized,
    "number": Number,
    "choice": Choice,
    "regex": Regex,
    "xml": Xml,
    "json": Json,
    "answer_type": AnswerType,
    "length": Length,
    "truncation": Truncation,
    "called": Called,
    "arguments_valid": ArgumentsValid,
    "result_used": ResultUsed,
    "citation": Citation,
    "set_f1": SetF1,
    "similarity": Similarity,
    "math": Math,
    "unit_tests": UnitTests,
    "judge": Judge,
    "preference": Preference,
    "ranking": Ranking,
}
