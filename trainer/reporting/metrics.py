"""A run's figures, step by step: metrics.jsonl (each step's line exactly once, also after a kill) and TensorBoard curves."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from data.tables.shards import atomic_write

METRICS_NAME = "metrics.jsonl"
SPEEDS = ("seconds", "waited", "queries_per_second", "tokens_per_second", "mfu")  # all else repeats when a run is repeated
_CURVES = ("loss", "supervised", "distillation", "kept", "share", "learning_rate", "gradient_norm", *SPEEDS)


class Metrics:
    """Appends a line a step. Lines of steps after `step`, where the run resumes, are dropped: they will come again."""

    def __init__(self, output: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # imports slowly

        path = output / METRICS_NAME
        kept: list[bytes] = []
        for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
            with contextlib.suppress(ValueError, TypeError, KeyError):  # cut short by a kill, or damaged
                if json.loads(line)["step"] <= step:
                    kept.append(line)
        self.lost = step - len(kept)  # lines of steps that the run has done
        atomic_write(path, b"".join(kept))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run
        self._curves = SummaryWriter(str(output / "tensorboard"), purge_step=step + 1)

    def write(self, figures: dict[str, Any]) -> None:
        """Append one step's figures; they carry their `step`, counted from 1."""
        self._file.write(json.dumps(figures) + "\n")
        self._file.flush()
        for name in _CURVES:
            if name in figures:
                self._curves.add_scalar(f"train/{name}", figures[name], figures["step"])
        for name, value in figures.get("dev", {}).items():
            self._curves.add_scalar(f"dev/{name}", value, figures["step"])

    def sync(self) -> None:
        """Have all lines on the disk: called before a checkpoint, which relies on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file and the curves."""
        self._file.close()
        self._curves.close()


def last_figures(output: Path) -> dict[str, Any]:
    """The last step's figures, empty where there are none."""
    path = output / METRICS_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return json.loads(lines[-1]) if lines else {}


def figures_of_step(output: Path, step: int) -> dict[str, Any]:
    """A step's figures, empty where its line is not there, or damaged."""
    path = output / METRICS_NAME
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError):
            if (figures := json.loads(line))["step"] == step:
                return dict(figures)
    return {}
