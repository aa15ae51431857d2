"""What a tracker is: three methods, called by the first process of a run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class RunInfo:
    """What a tracker is told of the run that it shows."""

    project: str  # train.tracker_project
    name: str  # for people: train.tracker_name, or that of the output folder
    id: str  # 16 hex digits, drawn when the run begins and kept in its folder: a resumed run has the same
    output: Path  # the run's folder
    config: dict[str, Any]  # all that decides the parameters, as in run.json; no paths, no secrets
    step: int  # steps that the run has done: 0, or more where it resumes


class Tracker(Protocol):
    """Shows figures by step. It is made without arguments, and imports what it needs in `start`."""

    def start(self, run: RunInfo) -> int | None:
        """Open the run, or go on with the one of this id. What it raises ends the training before its first step.

        Returns the last step of this run that the tracker has, 0 where it has none, or None where it cannot tell: then the record in the
        run's folder decides.
        """

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Show a step's figures (`train/loss`, `dev/MRR@10`). Steps count from 1 and rise; each comes once. What it raises is told once."""

    def finish(self) -> None:
        """The training has ended or was interrupted: send what is left."""


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings by dotted keys."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
