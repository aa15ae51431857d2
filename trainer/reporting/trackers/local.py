"""Trackers that need no service and no record: TensorBoard's files in the run's folder, and none."""

from __future__ import annotations

from typing import Any

from trainer.reporting.trackers.base import RunInfo


class TensorBoard:
    """OUTPUT/tensorboard/: what it has of steps that a resumed run takes again is hidden by TensorBoard itself."""

    _writer: Any

    def start(self, run: RunInfo) -> int:
        """See `Tracker`."""
        from torch.utils.tensorboard import SummaryWriter  # imports slowly

        folder = run.output / "tensorboard"
        has_events = folder.is_dir() and any(folder.iterdir())
        self._writer = SummaryWriter(str(folder), purge_step=run.step + 1)
        return run.step if has_events else 0

    def log(self, step: int, figures: dict[str, float]) -> None:
        """See `Tracker`."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def finish(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class NoTracker:
    """metrics.jsonl alone."""

    def start(self, run: RunInfo) -> int:
        """See `Tracker`."""
        return run.step

    def log(self, step: int, figures: dict[str, float]) -> None:
        """See `Tracker`."""

    def finish(self) -> None:
        """See `Tracker`."""
