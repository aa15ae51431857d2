"""`prep export format=pairs` and `prep import format=pairs`: pairs that another engine scores."""

from __future__ import annotations

from data.config.arguments import Args
from data.config.settings import Experiment
from data.errors import UserError
from pipeline.stage import Say


def export_pairs(experiment: Experiment, own: Args, *, say: Say) -> None:
    """Write the pairs that the tables of the experiment ask of its teacher."""
    raise UserError("prep export format=pairs is not there yet")
