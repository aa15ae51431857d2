"""Weights & Biases, also offline (`WANDB_MODE=offline`): then its files lie in OUTPUT/wandb, for `wandb sync`."""

from __future__ import annotations

from typing import Any

from trainer.reporting.trackers.base import RunInfo
from trainer.reporting.trackers.wandb_files import last_step


class WandbTracker:
    """One run of W&B, resumed by its id."""

    _run: Any

    def start(self, run: RunInfo) -> int | None:
        """See `Tracker`."""
        import wandb

        # Neither code, nor the command line and its paths, nor what is printed: of the run itself the config says enough.
        quiet = wandb.Settings(console="off", save_code=False, disable_git=True, x_disable_meta=True)
        lies_here = last_step(run.output, run.id)
        self._run = wandb.init(
            project=run.project, name=run.name, id=run.id, resume="allow", dir=str(run.output), config=run.config, settings=quiet
        )
        if self._run.offline:
            return lies_here
        return self._run.starting_step - 1 if self._run.resumed else 0

    def log(self, step: int, figures: dict[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(figures, step=step, commit=True)  # without it a step is sent with the next one, and lost in a kill

    def finish(self) -> None:
        """See `Tracker`."""
        self._run.finish()
