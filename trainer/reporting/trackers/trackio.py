"""Trackio: its folder on this machine, or the Space or server that its own variables name."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from trainer.reporting.trackers.base import RunInfo


class TrackioTracker:
    """One run of Trackio. It knows runs by their names, so the name ends in the run's id."""

    _run: Any

    def start(self, run: RunInfo) -> int | None:
        """See `Tracker`."""
        with contextlib.redirect_stdout(sys.stderr):
            import trackio

            self._run = trackio.init(run.project, name=f"{run.name}-{run.id[:8]}", resume="allow", config=run.config, embed=False)
        following = getattr(self._run, "_next_step", None)  # one above the last that it has: nothing public tells it of a Space, too
        return max(0, following - 1) if isinstance(following, int) else None

    def log(self, step: int, figures: dict[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(figures, step=step)

    def finish(self) -> None:
        """See `Tracker`."""
        with contextlib.redirect_stdout(sys.stderr):
            self._run.finish()
