"""BM25 through bm25s (https://github.com/xhluca/bm25s): Lucene's formula with k1 1.5 and b 0.75, lower case, no stemmer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import bm25s
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retrieval.ties import ties_by_id

_WORD = r"(?u)\b\w\w+\b"  # bm25s's default, written out: words of at least two characters


class Bm25Index:
    """An index over all passages, in memory: 8 bytes for each distinct word of a passage, about 40 while it is made.

    Args:
        doc_ids: of all passages, by row.
        texts: their texts in blocks, in the same order; only one block is in memory at a time.
        stop_words: English ones are left out of passages and queries unless this is false (collections in other languages).
    """

    def __init__(self, doc_ids: pa.Array, texts: Iterable[list[str]], *, stop_words: bool = True) -> None:
        self._doc_ids = doc_ids
        self._stop_words = "en" if stop_words else None
        corpus = _Words()
        for block in texts:
            corpus.add(self._tokenized(block, return_ids=True))
        self._index = bm25s.BM25(method="lucene", k1=1.5, b=0.75) if any(corpus.vocab) else None  # bm25s refuses a corpus without a word
        if self._index:
            self._index.index(corpus, show_progress=False)

    def search(self, queries: list[str], *, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(rows [n, k], scores [n, k]) of each query's k best passages, best first, ties by doc_id, also at the cut.

        Passages without a common word are left out: row -1, score -inf.
        """
        k = min(k, max(1, len(self._doc_ids)))
        rows, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        for place, words in enumerate(self._tokenized(queries, return_ids=False)):
            found, values = self._ranked(self._scores(words), k=k)
            rows[place, : len(found)], scores[place, : len(found)] = found, values
        return rows, scores

    def _tokenized(self, texts: list[str], *, return_ids: bool) -> Any:
        return bm25s.tokenize(texts, stopwords=self._stop_words, token_pattern=_WORD, return_ids=return_ids, show_progress=False)

    def _scores(self, words: list[str]) -> NDArray[np.float32]:
        # bm25s gives a text without words the empty word: a query of stop words would find all empty passages.
        known = [word for word in words if word and self._index and word in self._index.vocab_dict]
        return self._index.get_scores(known) if self._index and known else np.zeros(len(self._doc_ids), dtype=np.float32)

    def _ranked(self, scores: NDArray[np.float32], *, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        rows = np.flatnonzero(scores > 0)
        if len(rows) > k:
            # All that reach the k-th best score, so that ties at the cut go by id and not by where they lie in memory.
            worst = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
            rows = rows[scores[rows] >= worst]
        rows = rows[np.argsort(-scores[rows], kind="stable")]
        rows = ties_by_id(rows, scores[rows], self._doc_ids)[:k]
        return rows, scores[rows]


class _Words:
    """The corpus as bm25s indexes it, with the words of all passages in one array: lists of numbers would take 60 bytes a word."""

    def __init__(self) -> None:
        self.vocab: dict[str, int] = {}
        self._blocks: list[tuple[NDArray[np.int32], NDArray[np.int64]]] = []  # (words of all passages, where each passage begins)

    @property
    def ids(self) -> _Words:
        """bm25s asks for a list of lists, and only counts and walks through it."""
        return self

    def add(self, tokenized: Any) -> None:
        """Append a block of passages, its words renumbered."""
        numbers = np.array([self.vocab.setdefault(word, len(self.vocab)) for word in tokenized.vocab], dtype=np.int32)
        lengths = np.fromiter(map(len, tokenized.ids), dtype=np.int64, count=len(tokenized.ids))
        flat = np.fromiter((word for words in tokenized.ids for word in words), dtype=np.int32, count=int(lengths.sum()))
        self._blocks.append((numbers[flat] if len(flat) else flat, np.concatenate([[0], np.cumsum(lengths)])))

    def __len__(self) -> int:
        return sum(len(bounds) - 1 for _, bounds in self._blocks)

    def __iter__(self) -> Iterator[list[int]]:
        for words, bounds in self._blocks:
            listed, edges = words.tolist(), bounds.tolist()
            for start, stop in itertools.pairwise(edges):
                yield listed[start:stop]
