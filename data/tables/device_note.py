"""The kind of device that computes a table, noted beside its shards: one that was begun on a GPU is not finished on a CPU.

Their vectors and logits differ at the level of rounding noise, under one fingerprint: in one table nobody could tell them apart. A table
that is whole serves everywhere.
"""

from __future__ import annotations

import json
from pathlib import Path

from data.errors import UserError
from data.store import mirror
from data.tables.shards import atomic_write

NOTE_NAME = "device.json"


def note_device(folder: Path, device: str, *, option: str, begun: bool) -> None:
    """Note the device of the shards to come. `begun`: some are there already, which were computed on the noted one.

    Raises UserError where that is another one.
    """
    try:
        noted = str(json.loads(mirror.fresh(folder / NOTE_NAME, now=True).read_text())["device"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        noted = None
    if begun and noted not in (None, device):
        raise UserError(
            f"{folder} was begun with {option}={noted}, and a table holds the numbers of one kind of device: go on with {option}={noted}, "
            f"or delete its part-*.parquet to begin it again with {option}={device} (stored logits are not scored again)"
        )
    if noted != device:
        atomic_write(folder / NOTE_NAME, json.dumps({"device": device}).encode())
