"""BM25 through bm25s (https://github.com/xhluca/bm25s): English stop words, no stemmer, Lucene's formula with k1 1.5 and b 0.75."""

from __future__ import annotations

import bm25s
import numpy as np


class Bm25Index:
    """An index over all passages, in memory."""

    def __init__(self, doc_ids: list[str], texts: list[str]) -> None:
        self._doc_ids = doc_ids
        self._index = bm25s.BM25()
        self._index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)

    def search(self, queries: list[str], *, k: int) -> list[tuple[list[str], list[float]]]:
        """(doc_ids, scores) of each query's k best passages, best first, ties by doc_id; passages with no common word are left out."""
        tokens = bm25s.tokenize(queries, stopwords="en", return_ids=False, show_progress=False)
        found = []
        for words in tokens:
            known = [word for word in words if word in self._index.vocab_dict]
            scores = self._index.get_scores(known) if known else np.zeros(0, dtype=np.float32)
            best = np.argpartition(-scores, min(k, len(scores)) - 1)[:k] if len(scores) else np.zeros(0, dtype=np.int64)
            listed = sorted((-float(scores[row]), self._doc_ids[row]) for row in best if scores[row] > 0)
            found.append(([doc_id for _, doc_id in listed], [-score for score, _ in listed]))
        return found
