"""Scores of pairs on the disk, a query's together, looked up by ids. In memory are 24 bytes a query.

FOLDER/passages   int64 a pair: a passage's number        FOLDER/scores   double a pair, NaN where there is none

A number is that of the id where the id is a whole number, else 62 bits of its hash.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.formats.scored_lists.readers.score_pickle import Id, read_scores

_HASHED = 1 << 62  # numbers from here on are hashes


class ScoreTable:
    """The scores."""

    def __init__(self, queries: np.ndarray, bounds: np.ndarray, folder: Path) -> None:
        order = np.argsort(queries, kind="stable")
        self._queries, self._starts, self._stops = queries[order], bounds[:-1][order], bounds[1:][order]
        self._passages = np.memmap(folder / "passages", dtype=np.int64, mode="r") if bounds[-1] else np.zeros(0, dtype=np.int64)
        self._scores = np.memmap(folder / "scores", dtype=np.float64, mode="r") if bounds[-1] else np.zeros(0)

    @classmethod
    def of_pickle(cls, path: Path, folder: Path) -> ScoreTable:
        """The scores of a pickle, see `read_scores`. Raises UserError where it gives a query twice."""
        queries: list[int] = []
        counts = [0]
        with open(folder / "passages", "wb") as passages, open(folder / "scores", "wb") as values:
            for query, ids, scores in read_scores(path):
                queries.append(number_of(query))
                counts.append(len(ids))
                np.array([number_of(one) for one in ids], dtype=np.int64).tofile(passages)
                np.array(scores, dtype=np.float64).tofile(values)  # None becomes NaN
        numbers = np.array(queries, dtype=np.int64)
        if len(np.unique(numbers)) != len(numbers):
            raise UserError(f"{path} gives the scores of a query twice, as a number and as a text: save it with one kind of ids")
        return cls(numbers, np.cumsum(counts), folder)

    def of(self, query: Id, passages: list[str]) -> np.ndarray:
        """The scores of some passages of a query, NaN where there is none."""
        found = np.full(len(passages), np.nan)
        number = number_of(query)
        place = int(np.searchsorted(self._queries, number))
        if place == len(self._queries) or self._queries[place] != number:
            return found
        own = slice(int(self._starts[place]), int(self._stops[place]))
        known = np.asarray(self._passages[own])
        if not len(known):
            return found
        order = np.argsort(known, kind="stable")
        asked = np.array([number_of(one) for one in passages], dtype=np.int64)
        at = np.minimum(np.searchsorted(known, asked, sorter=order), len(known) - 1)
        hit = known[order[at]] == asked
        found[hit] = self._scores[own][order[at[hit]]]
        return found


def number_of(one: Id) -> int:
    """The number of an id: 12 of 12 and of "12", a hash of "012", of "MED-10", and of a number that is too large."""
    if isinstance(one, str):
        if not (one.isascii() and one.isdecimal() and len(one) < 20 and (one == "0" or one[0] != "0")):
            return _hash(one)
        one = int(one)
    return one if 0 <= one < _HASHED else _hash(str(one))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little") >> 2 | _HASHED
