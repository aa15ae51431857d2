"""A run's figures, step by step: metrics.jsonl has each step's line exactly once, also after a kill. A tracker shows some as curves."""

from __future__ import annotations

import contextlib
import json
import operator
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.tables.shards import atomic_write

METRICS_NAME = "metrics.jsonl"
_OF_PROCESSES = ("memory_gb", "rank_computed_least", "rank_computed_most", "rank_waited_least", "rank_waited_most")
# All else repeats when a run is repeated.
SPEEDS = ("seconds", "waited", "queries_per_second", "tokens_per_second", "mfu", *_OF_PROCESSES)
_CURVES = ("loss", "supervised", "distillation", "kept", "share", "learning_rate", "gradient_norm", *SPEEDS)


class Metrics:
    """Appends a line a step. Lines of steps after `step`, where the run resumes, are dropped: they will come again."""

    def __init__(self, output: Path, *, step: int) -> None:
        self._path = output / METRICS_NAME
        kept = [line for number, line in _lines(self._path) if number <= step]
        self.lost = step - len(kept)  # lines of steps that the run has done
        atomic_write(self._path, b"".join(kept))
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def write(self, figures: dict[str, Any]) -> None:
        """Append one step's figures; they carry their `step`, counted from 1."""
        self._file.write(json.dumps(figures) + "\n")
        self._file.flush()

    def curves_after(self, step: int) -> Iterator[tuple[int, dict[str, float]]]:
        """The steps above one that have a line, each with its curves."""
        for number, line in _lines(self._path):
            if number > step:
                yield number, curves(json.loads(line))

    def sync(self) -> None:
        """Have all lines on the disk: called before a checkpoint, which relies on them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def curves(figures: dict[str, Any]) -> dict[str, float]:
    """What a tracker shows of a step, by name: `train/loss`, ..., `dev/MRR@10`."""
    of_step = {f"train/{name}": figures[name] for name in _CURVES if name in figures}
    return of_step | {f"dev/{name}": value for name, value in figures.get("dev", {}).items()}


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Each whole line with its step."""
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # cut short by a kill, or damaged
            yield operator.index(json.loads(line)["step"]), line


def last_figures(output: Path) -> dict[str, Any]:
    """The last step's figures, empty where there are none."""
    path = output / METRICS_NAME
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return json.loads(lines[-1]) if lines else {}


def figures_of_step(output: Path, step: int) -> dict[str, Any]:
    """A step's figures, empty where its line is not there, or damaged."""
    return next((json.loads(line) for number, line in _lines(output / METRICS_NAME) if number == step), {})
