"""BM25 through bm25s (https://github.com/xhluca/bm25s): Lucene's formula with k1 1.5 and b 0.75, lower case, no stemmer."""

from __future__ import annotations

import bm25s
import numpy as np
from numpy.typing import NDArray

_WORD = r"(?u)\b\w\w+\b"  # bm25s's default, written out: words of at least two characters


class Bm25Index:
    """An index over all passages, in memory.

    English stop words are left out of passages and queries unless `stop_words` is false (collections in other languages).
    """

    def __init__(self, doc_ids: list[str], texts: list[str], *, stop_words: bool = True) -> None:
        self._doc_ids = doc_ids
        self._stop_words = "en" if stop_words else None
        tokens = bm25s.tokenize(texts, stopwords=self._stop_words, token_pattern=_WORD, show_progress=False)
        self._index = bm25s.BM25(method="lucene", k1=1.5, b=0.75) if any(tokens.vocab) else None  # bm25s refuses a corpus without a word
        if self._index:
            self._index.index(tokens, show_progress=False)

    def search(self, queries: list[str], *, k: int) -> list[tuple[list[str], list[float]]]:
        """(doc_ids, scores) of each query's k best passages, best first, ties by doc_id; passages with no common word are left out."""
        return [self._ranked(self._scores(words), k=k) for words in self._words(queries)]

    def _words(self, queries: list[str]) -> list[list[str]]:
        return bm25s.tokenize(queries, stopwords=self._stop_words, token_pattern=_WORD, return_ids=False, show_progress=False)

    def _scores(self, words: list[str]) -> NDArray[np.float32]:
        # bm25s gives a text without words the empty word: a query of stop words would find all empty passages.
        known = [word for word in words if word and self._index and word in self._index.vocab_dict]
        return self._index.get_scores(known) if self._index and known else np.zeros(len(self._doc_ids), dtype=np.float32)

    def _ranked(self, scores: NDArray[np.float32], *, k: int) -> tuple[list[str], list[float]]:
        rows = np.flatnonzero(scores > 0)
        if len(rows) > k:
            # All that reach the k-th best score, so that ties at the cut go by id and not by where they lie in memory.
            worst = np.partition(scores[rows], len(rows) - k)[len(rows) - k]
            rows = rows[scores[rows] >= worst]
        listed = sorted((-score, self._doc_ids[row]) for row, score in zip(rows.tolist(), scores[rows].tolist(), strict=True))[:k]
        return [doc_id for _, doc_id in listed], [-score for score, _ in listed]
