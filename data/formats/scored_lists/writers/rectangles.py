"""Lists as rows of one width, a positive and m negatives: for layouts in which a candidate is a column, or a batch a matrix."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.errors import UserError
from data.formats.scored_lists.writers.lists import Lists, ListSource, WriteOptions, Written

NO_POSITIVE, SHORTER = "lists without a labelled positive", "lists with fewer negatives"
MORE_NEGATIVES, MORE_POSITIVES = "negatives beyond that number", "further positives of a list"


def width(source: ListSource, options: WriteOptions) -> int:
    """The number of negatives that each row gets: what was asked for, else that by which the fewest candidates are lost.

    Raises UserError where no list has so many, or any.
    """
    lists: Counter[int] = Counter()  # number of negatives -> lists with a positive and so many
    for piece in source.read(texts=False):
        has_positive = piece.count(piece.positive) > 0
        lists.update(piece.count(~piece.positive)[has_positive].tolist())
    longest = max(lists, default=0)
    if not longest:
        raise UserError("no list has a labelled positive and a negative: there is nothing to write in this format")
    if options.negatives is not None and options.negatives > longest:
        raise UserError(f"negatives={options.negatives}: the longest list has {longest}; give a smaller number, or none")
    return options.negatives or most_kept(lists)


def most_kept(lists: Counter[int]) -> int:
    """The m for which m times the number of lists with at least m negatives is largest; of two the smaller, which loses fewer lists."""
    kept = {m: m * sum(count for negatives, count in lists.items() if negatives >= m) for m in lists if m}
    return max(kept, key=lambda m: (kept[m], -m))


def rows_of(lists: Lists, negatives: int, written: Written) -> tuple[Lists, NDArray[np.int64]]:
    """The lists that are long enough, and their candidates [n, 1 + negatives]: the first positive, then the first negatives of the list."""
    positives, others = lists.count(lists.positive), lists.count(~lists.positive)
    enough = (positives > 0) & (others >= negatives)
    kept = lists.keep_lists(enough)
    written.left_out[NO_POSITIVE] += int((positives == 0).sum())
    written.left_out[SHORTER] += int(((positives > 0) & ~enough).sum())
    written.left_out[MORE_POSITIVES] += int((positives[enough] - 1).sum())
    written.left_out[MORE_NEGATIVES] += int((others[enough] - negatives).sum())
    candidates = np.concatenate([_first(kept, kept.positive, 1), _first(kept, ~kept.positive, negatives)], axis=1)
    written.counts.update({"lists": len(kept), "candidates": candidates.size})
    return kept, candidates


def _first(lists: Lists, chosen: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    """[n, count] the first of the chosen candidates of each list, which has so many."""
    before: NDArray[np.int64] = np.cumsum(chosen) - chosen  # chosen ones before each candidate
    rank: NDArray[np.int64] = before - before[lists.bounds[:-1]][lists.list_of]
    return np.flatnonzero(chosen & (rank < count)).reshape(len(lists), count)


def list_array(values: pa.Array, rows: int) -> pa.ListArray:
    """[rows] lists of one length from their values, row after row."""
    size = len(values) // max(1, rows)
    return pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32) * size), values)


def companion(lists: Lists, candidates: NDArray[np.int64]) -> pa.Table:
    """What the layout's own rows have no place for, row by row: candidates in the order of the row."""
    flat = candidates.ravel()
    columns = {
        "query_id": lists.query_ids,
        "draw": pa.array(lists.draws),
        "candidate_ids": list_array(lists.ids_of(flat), len(lists)),
        "candidate_kinds": list_array(pa.array(lists.kinds[flat]), len(lists)),
        "confidence": pa.array(lists.confidences, from_pandas=True),
    }
    return pa.table(columns)
