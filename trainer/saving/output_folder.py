"""The folder that a run writes to: its names, and whether it is fit for them, before any work is paid."""

from __future__ import annotations

import os
from pathlib import Path

from data.config.settings import Train
from data.errors import UserError
from data.files.what_lies import stored_table
from data.remote.cache import staging_folder
from data.remote.object_store import is_remote

RUN_NAME, RESULT_NAME, LOCK_NAME = "run.json", "result.json", "running.json"
CARD_NAME = "README.md"  # of a model's folder
OPEN_LICENSE = "FILL_IN"  # in a card, until its author has chosen one
THIS_MODEL = "this-model"  # in the code of a card; `train push` puts the repository's name there
RESULT_REMEDY = "delete it and start the same command again: nothing is trained again, the last checkpoint is there"
_OTHER = "choose another train.output=FOLDER"


def check_output(train: Train) -> None:
    """Raises UserError where the run of these settings cannot, or must not, write.

    That is no folder or no permission, a table's folder or one in it, and another kind of thing under a name that the run needs.
    """
    output = staging_folder(train.output) if is_remote(train.output) else Path(train.output)
    setting = f"train.output={train.output}"
    there = next(path for path in (output.absolute(), *output.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UserError(f"{setting}: {there} is no folder; {_OTHER}")
    if not os.access(there, os.W_OK | os.X_OK) and not (output / RESULT_NAME).is_file():
        raise UserError(f"{setting}: no permission to write in {there}; {_OTHER}")
    own = output.resolve()
    table = next((folder for folder in (own, *own.parents) if stored_table(folder)), None)
    if table and not (output / RUN_NAME).is_file():  # a run that was begun there goes on
        raise UserError(f"{setting}: {table} is the folder of a table that `prep` made; {_OTHER}")
    kinds = {"folder": ("checkpoints", "tensorboard", "best", train.task), "file": (RUN_NAME, RESULT_NAME, LOCK_NAME, "metrics.jsonl")}
    for kind, names in kinds.items():
        for path in (output / name for name in names):
            if os.path.lexists(path) and not (path.is_dir() if kind == "folder" else path.is_file()):
                raise UserError(f"{path} is no {kind}, and the run keeps one of that name; {_OTHER}")
