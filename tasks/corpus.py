"""Articles that a task's program searches by BM25; knows files, nothing of what is asked or why."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from colever.errors import TaskError
from colever.tasks.data import Source, read_rows

SOURCE = Source("a corpus of articles", ("title", "text"))


class Corpus:
    """Articles, title and text, with their index (bm25s, k1 0.9, b 0.4). Raises TaskError without the package bm25s."""

    def __init__(self, articles: Sequence[tuple[str, str]]) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise TaskError("a search by BM25 needs the package bm25s; install colever[hover]") from error
        self.articles = articles
        self._tokens: Any = partial(bm25s.tokenize, stopwords="en", show_progress=False)
        self._index = bm25s.BM25(k1=0.9, b=0.4)
        self._index.index(self._tokens([f"{title} {text}" for title, text in articles]), show_progress=False)

    def search(self, query: str, count: int) -> list[tuple[str, str]]:
        """At most ``count`` articles, best first; none where no word of the query occurs."""
        most = min(count, len(self.articles))
        best, scores = self._index.retrieve(self._tokens([query]), k=most, show_progress=False, n_threads=1)
        return [self.articles[i] for i, score in zip(best[0], scores[0], strict=True) if score > 0]


# By what they were read from, SHA-256 included: a program holds the name, for it is copied for every rollout.
CORPORA: dict[str, Corpus] = {}


def open_corpus(path: Path) -> str:
    """The name in ``CORPORA`` of the articles in ``path``. Raises TaskError as ``read_rows``."""
    read = read_rows(SOURCE, path)
    if read.origin not in CORPORA:
        CORPORA[read.origin] = Corpus([(str(row["title"]), str(row["text"])) for row in read.rows])
    return read.origin
