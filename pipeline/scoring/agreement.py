"""Whether imported logits are those that a teacher gives itself, before it completes them: `teacher.completes`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from data.errors import UserError
from data.logits.store import LogitStore
from data.store.paths import store_root
from data.tables.shards import read_row_groups
from pipeline.scoring.requested_pairs import RequestedPairs, look_up, open_teacher, texts_of_rows
from retrieval.models.resolved import ResolvedModels
from retrieval.teachers.base import Pair
from retrieval.teachers.imported import known_teachers

COMPARED = 32  # pairs
TOLERANCE = 0.05  # largest difference of two logits of a pair: a little above the rounding of bf16 at 8


def refuse_nothing_to_complete(models: ResolvedModels) -> None:
    """Raises UserError where the store has no logit of the teacher that is completed, nor any that was taken from it before."""
    declared, store = models.teacher.completes, store_root(models.experiment.store)
    if declared is not None and not any(LogitStore(store, name).segment_paths() for name in (declared.namespace, models.namespace)):
        raise UserError(
            f"teacher.completes={declared.name}@{declared.revision}: the store {models.experiment.store} has no logits of it, "
            f"scores={declared.scores}: {known_teachers(store)}; leave teacher.completes out where there is nothing to complete"
        )


def compare_with_imported(models: ResolvedModels, paths: Sequence[str]) -> str:
    """Score some imported pairs of the shards at `paths`; what was found, for people. Runs in a worker.

    A softmax mixes the logits of a list, so they must be on one scale: an order that agrees is not enough.

    Raises UserError where a logit differs by more than `TOLERANCE`.
    """
    shared: list[tuple[Pair, float]] = []
    for path in map(Path, paths):
        shared += list(_imported(models, path, COMPARED - len(shared)))
        if len(shared) == COMPARED:
            break
    if not shared:
        return "no pair has an imported logit that is not the teacher's own already"
    declared = models.teacher.completes
    assert declared is not None
    given = np.array([logit for _, logit in shared])
    own = open_teacher(models).score([pair for pair, _ in shared])
    place = int(np.abs(own - given).argmax())
    difference = float(abs(own[place] - given[place]))
    if difference > TOLERANCE:
        raise UserError(
            f"teacher.completes={declared.name}@{declared.revision}: of {len(shared)} pairs that were compared, one has the imported "
            f"logit {given[place]:.3f} and {own[place]:.3f} from teacher.model={models.experiment.teacher.model} ({TOLERANCE} may lie "
            "between them): they are not the logits of one teacher, and do not go into one list; leave teacher.completes out"
        )
    return f"{len(shared)} imported logits differ from the teacher's own by at most {difference:.4f}"


def _imported(models: ResolvedModels, path: Path, most: int) -> Iterator[tuple[Pair, float]]:
    """Up to `most` pairs of a shard with imported logits."""
    requested = RequestedPairs.read(path, models.teacher_marks)
    known, adopted = look_up(models, requested.keys, warn=lambda line: None)
    _, first_rows = np.unique(requested.pair_of_row, return_index=True)
    chosen = np.flatnonzero(adopted)
    chosen = chosen[np.unique(np.linspace(0, len(chosen) - 1, min(most, len(chosen))).astype(int))] if len(chosen) else chosen
    start = 0
    for table in read_row_groups(path, columns=["query", "text"]):
        here = chosen[(first_rows[chosen] >= start) & (first_rows[chosen] < start + table.num_rows)]
        yield from zip(texts_of_rows(table.take(first_rows[here] - start), models.teacher_marks), known.logits[here].tolist(), strict=True)
        start += table.num_rows
