"""`prep import`: scored lists of others into a collection, a run, and logits of a declared teacher."""

from __future__ import annotations

from data.errors import UserError
from pipeline.stage import Say


def run_import(args: list[str], *, say: Say) -> None:
    """Import what `path=` names."""
    raise UserError("prep import is not there yet")
