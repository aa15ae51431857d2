"""BM25 through bm25s (https://github.com/xhluca/bm25s): Lucene's formula with k1 1.5 and b 0.75, lower case, no stemmer.

Words are bm25s's own: at least two letters or digits. Two kinds of scripts, of which that rule leaves next to nothing, have rules of their
own: those that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) are cut into overlapping pairs of
characters, as Lucene's CJKAnalyzer cuts the first two; where vowels are marks (the scripts of India, Thaana), these belong to the word. A
text without such characters has the words that it has in bm25s.
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from collections.abc import Iterable, Iterator

import bm25s
import numpy as np
import pyarrow as pa
from bm25s import stopwords
from numpy.typing import NDArray

from retrieval.search.tie_break import ties_by_id

_WORD = re.compile(r"\b\w\w+\b")  # bm25s's default, written out: words of at least two characters
# Letters and marks of scripts without spaces between words; their digits and punctuation are left to _WORD.
_UNSPACED = re.compile(
    "["
    "\u3005-\u3007\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"  # Han
    "\u3041-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f\u3105-\u312f\u31a0-\u31bf"  # kana, bopomofo
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecd\u0edc-\u0edf"  # Thai, Lao
    "\u1780-\u17d3\u17d7\u17dc\u17dd"  # Khmer
    "\u1000-\u103f\u1050-\u109f\ua9e0-\ua9ef\uaa60-\uaa7f"  # Burmese
    "\u0f40-\u0fbc"  # Tibetan, whose syllables a point parts
    "]+"
)
_VOWELS = "".join(chr(code) for code in (*range(0x780, 0x7C0), *range(0x900, 0xE00)) if unicodedata.category(chr(code)) in ("Mn", "Mc"))
_HAS_VOWELS = re.compile(f"[{_VOWELS}]")
_WORD_WITH_VOWELS = re.compile(rf"\b\w[\w{_VOWELS}\u200c\u200d]+")  # joiners are inside of words
_LANGUAGES = (
    "german", "dutch", "french", "spanish", "portuguese", "italian", "russian", "swedish", "norwegian", "danish", "turkish", "chinese",
    "korean",
)  # fmt: skip
STOP_WORDS: dict[str, list[str] | tuple[str, ...]] = {
    "english": stopwords.STOPWORDS_EN,
    **{language: getattr(stopwords, f"STOPWORDS_{language.upper()}") for language in _LANGUAGES},
    "none": (),
}


def words_of(text: str) -> list[str]:
    """The words of a text in their order, stop words among them."""
    text = text.lower()
    if text.isascii():
        return _WORD.findall(text)
    spaced = (_WORD_WITH_VOWELS if _HAS_VOWELS.search(text) else _WORD).findall
    words: list[str] = []
    end = 0
    for run in _UNSPACED.finditer(text):
        words += spaced(text[end : run.start()])
        words += _pairs(run.group())
        end = run.end()
    return words + spaced(text[end:])


def _pairs(run: str) -> list[str]:
    """Overlapping pairs of the characters of a run, or its only one."""
    return [run[place : place + 2] for place in range(len(run) - 1)] or [run]


class Bm25Index:
    """An index over all passages, in memory: 8 bytes for each distinct word of a passage, about 40 while it is made.

    Args:
        doc_ids: of all passages, by row.
        texts: their texts in blocks, in the same order; only one block is in memory at a time.
        stop_words: a name of `STOP_WORDS`: what is left out of passages and queries.
    """

    def __init__(self, doc_ids: pa.Array, texts: Iterable[list[str]], *, stop_words: str = "english") -> None:
        self._doc_ids = doc_ids
        self._stop_words = frozenset(STOP_WORDS[stop_words])
        corpus = _Words()
        for block in texts:
            corpus.add([self._words(text) for text in block])
        self._index = bm25s.BM25(method="lucene", k1=1.5, b=0.75) if corpus.vocab else None  # bm25s refuses a corpus without a word
        if self._index:
            self._index.index(corpus, show_progress=False)

    def search(self, queries: list[str], *, k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """(rows [n, k], scores [n, k]) of each query's k best passages, best first, ties by doc_id, also at the cut.

        Passages without a common word are left out: row -1, score -inf.
        """
        k = min(k, max(1, len(self._doc_ids)))
        rows, scores = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), -np.inf, np.float32)
        for place, query in enumerate(queries):
            found, values = self._ranked(self._scores(self._words(query)), k=k)
            rows[place, : len(found)], scores[place, : len(found)] = found, values
        return rows, scores

    def _words(self, text: str) -> list[str]:
        return [word for word in words_of(text) if word not in self._stop_words]

    def _scores(self, words: list[str]) -> NDArray[np.float32]:
        known = [word for word in words if self._index and word in self._index.vocab_dict]
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

    def add(self, passages: list[list[str]]) -> None:
        """Append a block of passages, their words numbered."""
        vocab = self.vocab
        lengths = np.fromiter(map(len, passages), dtype=np.int64, count=len(passages))
        words = (vocab.setdefault(word, len(vocab)) for passage in passages for word in passage)
        flat = np.fromiter(words, dtype=np.int32, count=int(lengths.sum()))
        self._blocks.append((flat, np.concatenate([[0], np.cumsum(lengths)])))

    def __len__(self) -> int:
        return sum(len(bounds) - 1 for _, bounds in self._blocks)

    def __iter__(self) -> Iterator[list[int]]:
        for words, bounds in self._blocks:
            listed, edges = words.tolist(), bounds.tolist()
            for start, stop in itertools.pairwise(edges):
                yield listed[start:stop]
