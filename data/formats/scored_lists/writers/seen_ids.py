"""Which ids were seen before, in 16 bytes an id: sorted digests, merged as they grow."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


class SeenIds:
    """A set of ids that answers for many at a time."""

    def __init__(self) -> None:
        self._runs: list[NDArray[np.bytes_]] = []  # each sorted, the larger ones first

    def first_places(self, ids: pa.Array) -> NDArray[np.int64]:
        """Places of the ids that come for the first time, each once, rising. They count as seen from now on."""
        digests = np.array([hashlib.blake2b(one.encode(), digest_size=16).digest() for one in ids.to_pylist()], "S16")
        distinct, places = np.unique(digests, return_index=True)
        new = np.ones(len(distinct), np.bool_)
        for run in self._runs:
            found = np.searchsorted(run, distinct)
            new &= run[np.minimum(found, len(run) - 1)] != distinct
        self._add(distinct[new])
        return np.sort(places[new])

    def _add(self, run: NDArray[np.bytes_]) -> None:
        if not len(run):
            return
        self._runs.append(run)
        while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
            self._runs[-2:] = [np.sort(np.concatenate(self._runs[-2:]), kind="stable")]
