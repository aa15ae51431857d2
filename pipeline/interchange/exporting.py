"""`prep export`: a store's lists in the layouts of other trainers."""

from __future__ import annotations

from data.config.arguments import Args
from data.config.settings import Experiment
from data.errors import UserError
from pipeline.stage import Say


def run_export(experiment: Experiment, own: Args, *, say: Say) -> None:
    """Export as `format=` asks."""
    raise UserError("prep export is not there yet")
