"""Which of many 128-bit keys are the same: arrays instead of a dict of a hundred bytes a key."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.logits.segment import BUCKETS, Keys, buckets_of


def first_occurrence(keys: Keys) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """(rows [d] at which a key stands for the first time, rising; for each row [n] the number of its key among these)."""
    first = np.empty(len(keys), dtype=np.int32)  # the first row with the key of each row
    buckets = buckets_of(keys).astype(np.uint8)
    for bucket in range(BUCKETS):  # what sorting takes in memory is that of a sixteenth
        rows = np.flatnonzero(buckets == bucket)
        order = rows[np.lexsort((keys[rows, 1], keys[rows, 0]))]  # stable: equal keys stay in row order
        new = np.ones(len(order), dtype=bool)
        new[1:] = (keys[order[1:]] != keys[order[:-1]]).any(axis=1)
        first[order] = order[new][np.cumsum(new) - 1]
    new = first == np.arange(len(keys), dtype=np.int32)
    return np.flatnonzero(new), (np.cumsum(new, dtype=np.int32) - 1)[first]
