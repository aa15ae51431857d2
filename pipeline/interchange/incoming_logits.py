"""Logits on their way into one namespace, on disk, cut by key: all are checked before the first is stored.

In: rows of files, in any order, as many as there are. In memory is one part of about 260,000 rows. A part holds all rows of a key, so
pairs that stand there twice, and pairs that the store has already, are seen without knowing the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.logits.files import LogitRows
from data.logits.segment import Keys, Part, Scores, parts_of
from data.logits.store import LogitStore

PART_ROWS = 1 << 18
_MOST_BITS = 12
_ROW = np.dtype(
    [("high", "<u8"), ("low", "<u8"), ("logit", "<f4"), ("token_count", "<i4"), ("truncated", "?"), ("file", "<i4"), ("row", "<i8")]
)
_Rows = NDArray[np.void]  # [n], type _ROW


@dataclass
class Conflict:
    """A pair that has one logit here and another one there."""

    file: int
    row: int
    logit: float
    other: float
    other_file: int = -1  # -1: it is the store's
    other_row: int = 0


@dataclass
class Checked:
    """What would become of the rows."""

    rows: int = 0
    new: int = 0
    there: int = 0  # pairs that the store has, with this logit
    repeated: int = 0  # rows of a pair that stands in an earlier row, with the same logit
    conflicts: int = 0
    largest: float = 0.0  # difference of two logits of a pair
    of_files: list[Conflict] = field(default_factory=list)  # the first two rows with other logits of one pair
    of_store: list[Conflict] = field(default_factory=list)  # the first row with another logit than the store's

    def count(self, differences: NDArray[np.float32]) -> None:
        """Of pairs with other logits in the store."""
        self.conflicts += len(differences)
        self.largest = max(self.largest, float(np.abs(differences).max(initial=0)))


class IncomingLogits:
    """The rows for one namespace, in a folder of their own."""

    def __init__(self, folder: Path, *, rows: int) -> None:
        """`rows`: how many will come, about."""
        self._folder = folder
        self._bits = min(_MOST_BITS, Part.bits_for(rows, most=PART_ROWS))
        folder.mkdir(parents=True)

    def add(self, file: int, rows: LogitRows) -> None:
        """Take rows of the `file`-th file."""
        table = np.empty(len(rows.keys), dtype=_ROW)
        table["high"], table["low"] = rows.keys[:, 0], rows.keys[:, 1]
        table["logit"], table["token_count"], table["truncated"] = rows.scores.logits, rows.scores.token_counts, rows.scores.truncated
        table["file"], table["row"] = file, np.arange(rows.first, rows.first + len(table))
        numbers = parts_of(rows.keys, self._bits)
        order = np.argsort(numbers, kind="stable")
        present, starts = np.unique(numbers[order], return_index=True)
        for number, mine in zip(present.tolist(), np.split(order, starts[1:]), strict=True):
            with open(self._path(number), "ab") as part:
                part.write(table[mine].tobytes())

    def check(self, store: LogitStore) -> Checked:
        """Compare all rows with each other and with the store. What is left of them is what is new."""
        checked = Checked()
        for path in self._parts():
            rows = np.fromfile(path, dtype=_ROW)
            checked.rows += len(rows)
            fresh = _without_known(_distinct(rows, checked), store, checked)
            checked.new += len(fresh)
            path.write_bytes(fresh.tobytes())
        return checked

    def store_into(self, store: LogitStore) -> None:
        """Append what `check` left, a segment a part."""
        for path in self._parts():
            rows = np.fromfile(path, dtype=_ROW)
            if len(rows):
                store.append(_keys(rows), _scores(rows))

    def _path(self, number: int) -> Path:
        return self._folder / f"{number:05d}"

    def _parts(self) -> list[Path]:
        return sorted(self._folder.iterdir())


def _distinct(rows: _Rows, checked: Checked) -> _Rows:
    """The rows in key order, the first one of each pair."""
    rows = rows[np.lexsort((rows["row"], rows["file"], rows["low"], rows["high"]))]
    is_first = np.ones(len(rows), np.bool_)
    is_first[1:] = (rows["high"][1:] != rows["high"][:-1]) | (rows["low"][1:] != rows["low"][:-1])
    firsts = rows[is_first]
    before = firsts[np.cumsum(is_first) - 1]
    other = np.flatnonzero(rows["logit"] != before["logit"])
    checked.repeated += int((~is_first).sum()) - len(other)
    for row in other[: 1 - len(checked.of_files)]:
        one, first = rows[row], before[row]
        found = Conflict(
            int(one["file"]), int(one["row"]), float(one["logit"]), float(first["logit"]), int(first["file"]), int(first["row"])
        )
        checked.of_files.append(found)
    return firsts


def _without_known(rows: _Rows, store: LogitStore, checked: Checked) -> _Rows:
    found = store.lookup(_keys(rows)).logits
    known, same = ~np.isnan(found), found == rows["logit"]
    checked.there += int(same.sum())
    other = np.flatnonzero(known & ~same)
    checked.count(rows["logit"][other] - found[other])
    for row in other[: 1 - len(checked.of_store)]:
        checked.of_store.append(Conflict(int(rows["file"][row]), int(rows["row"][row]), float(rows["logit"][row]), float(found[row])))
    return rows[~known]


def _keys(rows: _Rows) -> Keys:
    return np.stack([rows["high"], rows["low"]], axis=1)


def _scores(rows: _Rows) -> Scores:
    return Scores(*(np.ascontiguousarray(rows[name]) for name in ("logit", "token_count", "truncated")))
