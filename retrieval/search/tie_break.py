"""Equal scores go by passage id, so that a ranked list does not depend on where passages lie."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


def ties_by_id(rows: NDArray[np.int64], scores: NDArray[np.floating], ids: pa.Array | pa.ChunkedArray) -> NDArray[np.int64]:
    """Rows [n] of the corpus, best first, with each run of equal scores [n] in the order of their ids. `ids`: of the whole corpus."""
    equal = scores[1:] == scores[:-1]
    if not equal.any():
        return rows
    tied = np.flatnonzero(np.concatenate([[False], equal]) | np.concatenate([equal, [False]]))
    run = np.concatenate([[0], np.cumsum(~equal)])[tied].tolist()
    names = ids.take(pa.array(rows[tied])).to_pylist()
    order = sorted(range(len(tied)), key=lambda place: (run[place], names[place]))
    ordered = rows.copy()
    ordered[tied] = rows[tied[order]]
    return ordered
