"""Places of candidates in the columns of a layout: a text, an id, or both, one a record or a list of them; and what can be wrong there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pyarrow as pa

from data.formats.scored_lists.readers.records.assembling import Part, aligned, is_there, lengths, score_counts_fit, values
from data.formats.scored_lists.readers.records.fields import Problem

Columns = Mapping[str, pa.Array]
Place = tuple[str | None, str | None]  # names of a text and of an id; one of them may lack


def part_of(
    columns: Columns, text: str | None, doc_id: str | None, *, relevance: pa.Array | int | None = None, score: pa.Array | None = None
) -> Part:
    """The part of one place; `relevance` and `score` are columns like it, single values or lists, or one number for all."""
    texts = None if text is None else columns[text]
    ids = None if doc_id is None else columns[doc_id]
    column = ids if texts is None else texts
    if column is None:
        raise ValueError("a place has a text or an id")
    counts = lengths(column)
    return Part(
        counts,
        doc_id=None if ids is None else aligned(ids, counts),
        text=None if texts is None else values(texts),
        relevance=relevance if relevance is None or isinstance(relevance, int) else aligned(relevance, counts),
        score=None if score is None else aligned(score, counts),
        is_padded=not pa.types.is_list(column.type),
    )


def unequal_lists(columns: Columns, pairs: Iterable[tuple[str | None, str | None]]) -> dict[int, Problem]:
    """Records where the list of the first name is not as long as that of the second; a null is as long as any."""
    found: dict[int, Problem] = {}
    for name, other in pairs:
        if name is None or other is None:
            continue
        counts, expected = lengths(columns[name]), lengths(columns[other])
        is_there = columns[name].is_valid().to_numpy(zero_copy_only=False)
        for row in np.flatnonzero((counts != expected) & is_there):
            found.setdefault(int(row), Problem("lists of unequal lengths", f"{counts[row]} in {name} for {expected[row]} candidates"))
    return found


def place_problems(
    columns: Columns, parts: Callable[[Columns], Sequence[Part]], places: Iterable[Place], scores: str | None
) -> dict[int, Problem]:
    """Records whose ids do not match their texts, that have no candidate, or another number of scores than candidates.

    Lists that `parts` reads beside the places must be as long as these: see `unequal_lists`.
    """
    if found := unequal_lists(columns, ((doc_id, text) for text, doc_id in places)):
        return found
    built = parts(columns)
    counts = np.sum([part.counts for part in built], axis=0)
    there = np.sum([_there(part) for part in built], axis=0)
    found = {int(row): Problem("no candidate") for row in np.flatnonzero(there == 0)}
    if scores is not None:
        numbers = lengths(columns[scores])
        for row in np.flatnonzero(~score_counts_fit(columns[scores], counts, there)):
            found.setdefault(int(row), Problem("scores of another length", f"{numbers[row]} scores for {there[row]} candidates"))
    return found


def _there(part: Part) -> np.ndarray:
    """How many candidates with a text or an id each record has."""
    rows = np.repeat(np.arange(len(part.counts)), part.counts)
    return np.bincount(rows[is_there(part.text, part.doc_id, len(rows))], minlength=len(part.counts))
