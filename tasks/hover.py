"""``hover``: claims whose evidence lies in four articles, found hop by hop with BM25 (arXiv 2011.03088).

The program is the one of the mmGRPO paper (arXiv 2508.04660): from claim and notes a query, from what it found new
notes, four times; the score is the share of the four articles among the first ten that were found. ``--data`` is a
folder with ``train.jsonl`` (and ``test.jsonl``) of claims and ``corpus.jsonl`` of articles, title and text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import dspy

from colever.errors import TaskError
from colever.tasks.corpus import CORPORA, open_corpus
from colever.tasks.data import Row, Source, read_splits
from colever.tasks.rubric import Criterion, Rubric
from colever.tasks.task import Task
from colever.types import Step

SOURCE = Source("vincentkoc/hover-parquet", ("claim", "supporting_facts", "num_hops"))
SIZES = 150, 150, 300  # train, dev, test
HOPS, FOUND, COUNTED = 4, 5, 10  # queries; articles of each; titles that count


class Query(dspy.Signature):
    """Write a search query for what is still missing to check the claim."""

    claim: str = dspy.InputField()
    notes: list[str] = dspy.InputField()
    query: str = dspy.OutputField()


class Note(dspy.Signature):
    """Note what the passages say that bears on the claim, and the titles of the passages that do."""

    claim: str = dspy.InputField()
    notes: list[str] = dspy.InputField()
    passages: list[str] = dspy.InputField()
    new_notes: list[str] = dspy.OutputField()
    titles: list[str] = dspy.OutputField()


class FourHops(dspy.Module):
    """Asks and notes four times; what it gives is the titles in the order of finding, those noted first."""

    def __init__(self, corpus: str) -> None:
        super().__init__()
        self.corpus = corpus
        self.query = dspy.ChainOfThought(Query)
        self.note = dspy.ChainOfThought(Note)

    def forward(self, claim: str) -> dspy.Prediction:
        notes, titles, found = list[str](), list[str](), list[str]()
        for _ in range(HOPS):
            query = self.query(claim=claim, notes=notes).query
            articles = CORPORA[self.corpus].search(query, FOUND)
            seen = self.note(claim=claim, notes=notes, passages=[f"{title} | {text}" for title, text in articles])
            notes += seen.new_notes
            titles += [title for title in seen.titles if title in {name for name, _ in articles}]
            found += [title for title, _ in articles]
        return dspy.Prediction(notes=notes, titles=list(dict.fromkeys([*titles, *found])))


def recall(example: dspy.Example, prediction: dspy.Prediction, steps: Sequence[Step] = ()) -> float:
    return sum(title in prediction.titles[:COUNTED] for title in example.titles) / len(example.titles)


def complete(example: dspy.Example, prediction: dspy.Prediction) -> bool:
    return recall(example, prediction) == 1


def example(row: Row) -> dspy.Example:
    """A claim and the titles that support it; a fact is ``[title, sentence]`` or ``{"key": title, …}``."""
    facts = [fact["key"] if isinstance(fact, dict) else fact[0] for fact in row["supporting_facts"]]
    return dspy.Example(claim=row["claim"], titles=sorted(set(map(str, facts)))).with_inputs("claim")


def four_hops(row: Row) -> bool:
    return int(row["num_hops"]) == HOPS


def task(data: Path | str | None = None) -> Task:
    """Raises TaskError where there is no folder with claims and corpus."""
    if data is None or not (Path(data) / "corpus.jsonl").is_file():
        raise TaskError("hover: --data FOLDER is needed, with corpus.jsonl (title, text) and train.jsonl")
    train, dev, test, origin = read_splits(SOURCE, data, SIZES, example, seed=9, keep=lambda rows: four_hops)
    corpus = open_corpus(Path(data) / "corpus.jsonl")
    return Task(
        name="hover",
        program=partial(FourHops, corpus),
        train=train,
        dev=dev,
        test=test,
        rubric=Rubric([Criterion("recall", recall, 1.0, "articles that the claim needs were not found")]),
        gold=complete,
        max_tokens=512,
        origin=f"{origin}; {corpus}",
    )
