"""Our own layout of exported lists: all that a store knows of them, so that training from a copy gives the same student.

DIR/lists/part-00000-of-00004.parquet   schema LISTS, then a column `logit:NAME` for each further teacher; a list in one row group
DIR/never.parquet                       schema NEVER: passages that are never negatives of a query
DIR/export.json                         an `ExportNote`
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.errors import UserError
from data.tables.schemas import CURRICULUM
from data.tables.shards import atomic_write

LISTS = CURRICULUM  # query_id, draw, position, candidate_kind, candidate_id, query, text, logit (null: not scored), confidence
NEVER = pa.schema([("query_id", pa.string()), ("never_ids", pa.list_(pa.string()))])
LISTS_FOLDER, NEVER_NAME, NOTE_NAME = "lists", "never.parquet", "export.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ExportNote:
    """What the lists are of."""

    teacher: dict[str, Any]  # {"name", "namespace", "key"} of the column `logit`; empty: no teacher
    other_teachers: list[dict[str, Any]]  # the same of each further column, with its "column"
    training: dict[str, Any]  # what training shards of these lists say of them: draws, negatives, mask_ratios, teachers, ...
    counts: dict[str, int] = field(default_factory=dict)  # queries, lists, candidates
    licence: str | None = None  # the line that the user gave
    format: str = "lists"
    version: int = FORMAT_VERSION

    def write(self, folder: Path) -> None:
        """Write it into an export."""
        atomic_write(folder / NOTE_NAME, json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False).encode())

    @staticmethod
    def read(folder: Path) -> ExportNote:
        """Raises UserError where the folder is no export of this layout."""
        path = folder / NOTE_NAME
        try:
            note = ExportNote(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise UserError(f"{folder} has no {NOTE_NAME}: expected a folder that `prep export format=lists` wrote") from None
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise UserError(f"{path} is not readable as what `prep export format=lists` writes ({error}): export again") from error
        if note.format != "lists" or note.version != FORMAT_VERSION:
            raise UserError(f"{path} is of format {note.format!r}, version {note.version}; this version reads lists, {FORMAT_VERSION}")
        return note
