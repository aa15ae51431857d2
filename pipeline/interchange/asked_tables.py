"""Which tables of an experiment ask pairs of its teacher, and what they ask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data.errors import UserError
from pipeline.plan import Planner, tables
from pipeline.scoring.requested_pairs import RequestedPairs
from pipeline.stage import Stored


@dataclass(frozen=True)
class AskedTables:
    """The complete tables whose rows the teacher scores, and those that are not complete yet. All have the same shards."""

    complete: list[Stored]
    waiting: list[str] = field(default_factory=list)  # labels

    @staticmethod
    def of(planner: Planner) -> AskedTables:
        """Those of an experiment. Raises UserError where it has no teacher, or none of them is complete."""
        labels = [table.scores_pairs_of for table in tables(planner.experiment) if table.scores_pairs_of]
        by_label = {table.label: table for table in tables(planner.experiment)}
        if not labels:
            raise UserError("format=pairs: nothing is asked of a teacher here (see teacher.backend and lists.path)")
        plans = {label: planner.plan(by_label[label]) for label in dict.fromkeys(labels)}
        complete = [plan.stored for plan in plans.values() if plan.complete]
        if not complete:
            stages = " and ".join(dict.fromkeys(f"stage={label.split('.')[0]}" for label in plans))
            raise UserError(f"format=pairs: which pairs are asked for is not known yet: prep run {stages} first")
        return AskedTables(complete, [label for label, plan in plans.items() if not plan.complete])

    def shards(self, planner: Planner) -> Iterator[tuple[list[Path], list[RequestedPairs]]]:
        """Shard by shard the files, and the pairs that they ask for. Equal queries lie in one shard, so no pair is in two."""
        for paths in zip(*(stored.paths() for stored in self.complete), strict=True):
            yield list(paths), [RequestedPairs.read(path, planner.models.teacher_marks) for path in paths]
