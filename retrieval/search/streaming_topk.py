"""The running best of many queries among scores that come a tile at a time, by operations on whole arrays.

Each query has a list with room for more than k entries, and a threshold that a score must reach. A tile is compared with the thresholds at
once; what passes is appended to the lists, in order of rows. Where a list is full, it is cut to the k best and its threshold
rises. The more rows were seen, the fewer pass, so that a search is comparing: a tenth of a nanosecond a score, where a heap takes ten times
that.

Scores are held as keys: the bits of a bf16 or fp32 number as an integer, those of negative numbers turned around, rise with the number.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_ABSENT = -1
_RISE_AFTER = 4  # thresholds rise when the lists have got a quarter of k entries since the last time

Bits = NDArray[np.signedinteger[Any]]  # [q, b] int16 or int32: scores as the integers of their bits


def rising(bits: Bits) -> Bits:
    """Keys of numbers' bits, and bits of keys: those of negative numbers are turned around."""
    sign = bits.dtype.itemsize * 8 - 1
    return bits ^ ((bits >> sign) & np.iinfo(bits.dtype).max)


def numbers_of(keys: Bits) -> NDArray[np.float64]:
    """The numbers of keys: of bf16 where they are int16, else of fp32."""
    bits = rising(keys).astype(np.int32)
    return (bits << 16 if keys.dtype == np.int16 else bits).view(np.float32).astype(np.float64)


class StreamingTopK:
    """At least the k best rows of each of n queries among those offered, rows ascending; more where scores tie.

    Where too many rows tie, the lower ones are kept. Memory: 4 bytes and a key for each of 2.5 k entries.
    """

    def __init__(self, queries: int, k: int, bits: type[np.signedinteger[Any]]) -> None:
        self._k = k
        self._capacity = capacity_of(k)
        self._lowest: Any = np.iinfo(bits).min  # the key of no number
        self._keys = np.full((queries, self._capacity), self._lowest, dtype=bits)
        self._rows = np.empty((queries, self._capacity), dtype=np.int32)
        self._counts = np.zeros(queries, dtype=np.int64)
        # All that is discarded is below its query's threshold; so is no entry, but ties of what is discarded.
        self._thresholds = np.full(queries, self._lowest, dtype=bits)
        self._fresh = np.zeros(queries, dtype=np.int64)  # entries since the threshold rose

    def offer(self, first_query: int, bits: Bits, first_row: int) -> None:
        """Scores [q, b] of queries from `first_query` on, with rows from `first_row` on. Threads may offer for different queries."""
        if first_row + bits.shape[1] > np.iinfo(np.int32).max:
            raise ValueError("a corpus can have 2,147,483,647 passages")
        part = slice(first_query, first_query + len(bits))
        thresholds = self._thresholds[part]
        keys = bits if (thresholds > 0).all() else rising(bits)
        if (thresholds == self._lowest).all() and self._counts[part].max(initial=0) + keys.shape[1] > self._capacity:
            self.cut(np.arange(part.start, part.stop), keys, first_row)
            return
        hits = np.flatnonzero(keys >= np.maximum(thresholds, self._lowest + 1)[:, None])
        new = _counts(hits, keys.shape)
        if (full := self._counts[part] + new > self._capacity).any():
            self.cut(first_query + np.flatnonzero(full))
            if (full := self._counts[part] + new > self._capacity).any():
                self.cut(first_query + np.flatnonzero(full), keys[full], first_row)
                hits = hits[np.repeat(~full, new)]
                new[full] = 0
        self._append(part, keys, hits, new, first_row)

    def _append(self, part: slice, keys: Bits, hits: NDArray[np.int64], new: NDArray[np.int64], first_row: int) -> None:
        """Append the entries at the flat places `hits`, of which each query has `new`."""
        counts, queries = self._counts[part], np.arange(part.start, part.stop)
        ends = queries * self._capacity + counts - (np.cumsum(new) - new)
        place = np.repeat(ends, new) + np.arange(len(hits))
        self._keys.reshape(-1)[place] = keys.reshape(-1)[hits]
        self._rows.reshape(-1)[place] = hits + np.repeat(first_row - np.arange(len(new)) * keys.shape[1], new)
        counts += new
        self._fresh[part] += new
        if self._fresh[part].sum() * _RISE_AFTER > len(new) * self._k:
            width = int(counts.max(initial=0))
            if width >= self._k:
                thresholds = self._thresholds[part]
                np.maximum(thresholds, _kth(self._keys[part, :width], self._k), out=thresholds)
            self._fresh[part] = 0

    def cut(self, queries: NDArray[np.int64], new: Bits | None = None, first_row: int = 0) -> None:
        """Leave the k best entries of some queries [q], with those of scores `new` [q, b], and what ties with them."""
        width = int(self._counts[queries].max(initial=0))
        keys, thresholds = self._keys[queries, :width], self._thresholds[queries]
        if new is not None and not width and (thresholds == self._lowest).all():
            keys = new
        elif new is not None:
            keys = np.concatenate([keys, np.where(new >= thresholds[:, None], new, self._lowest)], axis=1)
        elif width < self._k:
            return
        worst = _kth(keys, self._k) if keys.shape[1] >= self._k else np.full(len(queries), self._lowest, keys.dtype)
        hits = np.flatnonzero(keys >= np.maximum(worst, self._lowest + 1)[:, None])
        counts, found = _counts(hits, keys.shape), keys.reshape(-1)[hits]
        columns = hits - np.repeat(np.arange(len(queries)) * keys.shape[1], counts)
        rows = columns + (first_row - width)
        held = np.flatnonzero(columns < width)
        rows[held] = self._rows[queries[hits[held] // keys.shape[1]], columns[held]]
        crowded = counts > (self._k + self._capacity) // 2
        if crowded.any():  # too many tie with the worst: the first of them stay, and those to come must be better
            most = np.where(crowded, self._k, self._capacity)
            kept = _without_late_ties(found == np.repeat(worst, counts), counts, most)
            found, rows, counts = found[kept], rows[kept], np.minimum(counts, most)
        places = np.repeat(queries * self._capacity - (np.cumsum(counts) - counts), counts) + np.arange(len(rows))
        self._keys[queries] = self._lowest
        self._keys.reshape(-1)[places], self._rows.reshape(-1)[places] = found, rows
        self._counts[queries], self._fresh[queries] = counts, 0
        self._thresholds[queries] = np.maximum(thresholds, worst + crowded.astype(worst.dtype))

    def rows(self) -> NDArray[np.int32]:
        """[n, m] rows of each query in ascending order, -1 where it has fewer than m."""
        width = int(self._counts.max(initial=0))
        return np.where(self._keys[:, :width] == self._lowest, np.int32(_ABSENT), self._rows[:, :width])

    def discarded_bound(self) -> NDArray[np.float64]:
        """[n] the highest score that a row which is not kept can have; -inf where none was refused."""
        thresholds = self._thresholds
        below = np.maximum(thresholds, self._lowest + 1) - thresholds.dtype.type(1)
        return np.where(thresholds == self._lowest, -np.inf, numbers_of(below))


def capacity_of(k: int) -> int:
    """Entries that a list of `StreamingTopK` may have."""
    return k * 5 // 2 + 64


def _counts(hits: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """[q] how many of the flat places, which rise, lie in each row of an array [q, b]."""
    return np.diff(np.searchsorted(hits, np.arange(shape[0] + 1) * shape[1]))


def _kth(keys: Bits, k: int) -> Bits:
    """[q] the k-th highest key of each row."""
    return np.partition(keys, keys.shape[1] - k, axis=1)[:, keys.shape[1] - k]


def _without_late_ties(tied: NDArray[np.bool_], counts: NDArray[np.int64], most: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which entries stay, where each query may keep `most` [q] of its `counts` [q]: all that do not tie, and the first of those that do."""
    starts = np.cumsum(counts) - counts
    before = np.concatenate([[0], np.cumsum(tied)])
    own = before[starts + counts] - before[starts]
    place = before[:-1] - np.repeat(before[starts], counts)  # of a tied entry among those of its query
    return ~tied | (place < np.repeat(most - (counts - own), counts))
