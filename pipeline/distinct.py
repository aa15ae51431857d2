"""Which of many 128-bit keys are the same: arrays instead of a dict of a hundred bytes a key."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.logit_segment import Keys


def first_sight(keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(rows [d] at which a key stands for the first time, rising; for each row [n] the number of its key among these)."""
    order = np.argsort(keys[:, 0], kind="stable")  # equal keys stay in row order
    new = _changes(keys, order)
    if int(new.sum()) != int(np.count_nonzero(np.diff(keys[order, 0]))) + (len(keys) > 0):  # two keys with the first half in common
        order = np.lexsort((np.arange(len(keys)), keys[:, 1], keys[:, 0]))
        new = _changes(keys, order)
    first = order[new]
    place = np.empty(len(first), dtype=np.int32)
    place[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    number = np.empty(len(keys), dtype=np.int32)
    number[order] = place[np.cumsum(new) - 1]
    return np.sort(first), number


def _changes(keys: Keys, order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[n] whether a key differs from the one before it, in the given order."""
    new = np.zeros(len(keys), dtype=bool)
    new[:1] = True
    for half in (0, 1):
        column = keys[order, half]
        new[1:] |= column[1:] != column[:-1]
    return new
