"""Requested keys against stored ones, a piece of the store at a time, so that each stored pair is read once and few are in memory."""

from __future__ import annotations

import numpy as np

from data.logits.segment import BUCKETS, Keys, Scores


class Requested:
    """The keys of a lookup, ready to be merged with stored ones in key order, and what is known of them: 21 bytes a key beside it."""

    def __init__(self, keys: Keys) -> None:
        """Keys [n, 2] in any order, repeats allowed."""
        self.found = Scores.unknown(len(keys))  # in the order of the keys
        self._keys = keys
        self._order = np.argsort(keys[:, 0])
        self._high = keys[self._order, 0]
        bounds = np.arange(BUCKETS, dtype=np.uint64) << np.uint64(60)
        self._asked = np.diff(np.searchsorted(self._high, bounds), append=len(keys)) > 0

    def overlaps(self, buckets: range) -> bool:
        """Whether a requested key lies in one of the buckets."""
        return bool(self._asked[buckets.start : buckets.stop].any())

    def merge(self, stored: Keys, scores: Scores) -> None:
        """Learn of stored pairs [m, 2] in key order, all different. Of several logits of a pair the smallest counts."""
        rows = np.arange(len(stored))
        place = np.searchsorted(self._high, stored[:, 0])  # sorted questions walk through memory once: eight times faster than random ones
        while True:  # once, but for requested keys that have their first half in common
            here = place < len(self._high)
            here[here] = self._high[place[here]] == stored[rows[here], 0]
            rows, place = rows[here], place[here]
            if not len(rows):
                return
            requested = self._order[place]
            known = self.found.logits[requested]
            better = (self._keys[requested, 1] == stored[rows, 1]) & (np.isnan(known) | (scores.logits[rows] < known))
            self.found.put(requested[better], scores.take(rows[better]))
            place = place + 1
