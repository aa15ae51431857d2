"""Wanted keys against stored ones, a piece of the store at a time, so that each stored pair is read once and few are in memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.logits.segment import BUCKETS, Keys, Scores


class Wanted:
    """The keys of a lookup, ready to be met by stored ones in key order, and what is known of them so far: 21 bytes a key beside it."""

    def __init__(self, keys: Keys) -> None:
        """Keys [n, 2] in any order, repeats allowed."""
        self.found = Scores.unknown(len(keys))  # in the order of the keys
        self._keys = keys
        self._order = np.argsort(keys[:, 0])
        self._high = keys[self._order, 0]
        bounds = np.arange(BUCKETS, dtype=np.uint64) << np.uint64(60)
        self._asked = np.diff(np.searchsorted(self._high, bounds), append=len(keys)) > 0

    def overlaps(self, buckets: range) -> bool:
        """Whether a wanted key lies in one of the buckets."""
        return bool(self._asked[buckets.start : buckets.stop].any())

    def meet(self, stored: Keys, scores: Scores) -> None:
        """Learn of stored pairs [m, 2] in key order, all different. Of several logits of a pair the smallest counts."""
        rows = np.arange(len(stored))
        place = np.searchsorted(self._high, stored[:, 0])  # sorted questions walk through memory once: eight times faster than random ones
        while True:  # once, but for wanted keys that have their first half in common
            here = place < len(self._high)
            here[here] = self._high[place[here]] == stored[rows[here], 0]
            rows, place = rows[here], place[here]
            if not len(rows):
                return
            wanted = self._order[place]
            self._put(wanted, rows, self._keys[wanted, 1] == stored[rows, 1], scores)
            place = place + 1

    def _put(self, wanted: NDArray[np.int64], rows: NDArray[np.int64], same: NDArray[np.bool_], scores: Scores) -> None:
        wanted, rows = wanted[same], rows[same]
        known = self.found.logits[wanted]
        better = np.isnan(known) | (scores.logits[rows] < known)
        self.found.put(wanted[better], scores.take(rows[better]))
