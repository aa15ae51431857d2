"""Our own layout of exported lists: all that a store knows of them, so that training from a copy gives the same student.

DIR/lists/part-00000-of-00004.parquet   schema LISTS, then a column `logit:NAME` for each further teacher; a list in one row group
DIR/never.parquet                       schema NEVER: passages that are never negatives of a query
DIR/export.json                         an `ExportNote`
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.errors import DamagedShard, UserError
from data.remote.cache import RemoteFolder
from data.remote.object_store import is_remote
from data.tables.schemas import CURRICULUM
from data.tables.shards import atomic_write, read_row_groups, shard_name

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


@dataclass(frozen=True)
class ListsTraining:
    """What training shards of the lists say of them: `ExportNote.training`, checked."""

    teachers: list[str]  # namespaces; none: the lists are not scored
    draws: int
    negatives_source: str
    negatives: int  # m
    mask_ratios: list[float]
    curriculum: list[str] = field(default_factory=list)  # of lists of a curriculum: what each draw is made of
    reinforced: bool = True  # whether there may be mixed passages
    mixed_tokens: int | None = None  # longest mixed passage
    order: str | None = None  # content digest of the training shards that were made of the lists: their rows' order is drawn from it

    @staticmethod
    def of(values: Any, *, place: Path) -> ListsTraining:
        """Raises UserError where something is missing or of another type."""
        known = {one.name: one for one in dataclasses.fields(ListsTraining)}
        try:
            found = ListsTraining(**{name: value for name, value in values.items() if name in known})
            lists = (found.teachers, str), (found.mask_ratios, (int, float)), (found.curriculum, str)
            plain = (found.draws, int), (found.negatives, int), (found.negatives_source, str), (found.reinforced, bool)
            maybe = (found.mixed_tokens, (int, type(None))), (found.order, (str, type(None)))
            right = all(isinstance(given, list) and all(isinstance(one, kind) for one in given) for given, kind in lists)
            right = right and all(isinstance(given, kind) for given, kind in (*plain, *maybe))
        except (AttributeError, TypeError) as error:
            raise UserError(
                f"{place} does not say what training needs ({error}): export the lists again (prep export format=lists)"
            ) from error
        if not right or not 1 <= found.draws <= 100:
            raise UserError(f"{place} says of its training {values}, of which a value is of another type: export the lists again")
        return found


@dataclass(frozen=True)
class Export:
    """An exported folder, found and complete by its names."""

    folder: Path  # on this machine
    note: ExportNote
    parts: list[Path]  # in order

    @cached_property
    def training(self) -> ListsTraining:
        """What training shards say of the lists. Raises UserError, see `ListsTraining.of`."""
        return ListsTraining.of(self.note.training, place=self.folder / NOTE_NAME)

    @property
    def never(self) -> Path:
        """Passages that are never negatives."""
        return self.folder / NEVER_NAME

    @property
    def files(self) -> list[Path]:
        """All that is read of it."""
        return [self.folder / NOTE_NAME, self.never, *self.parts]


def find_export(path: str, *, option: str) -> Export:
    """The export of a folder, local or on an object store, from where it is copied.

    Raises UserError: no such folder, no export of this layout, a part that is missing.
    """
    folder = _local(path, option=option) if is_remote(path) else Path(path)
    if not folder.is_dir():
        raise UserError(f"{option}={path}: no such folder; give the one that `prep export format=lists out=FOLDER` wrote")
    note = ExportNote.read(folder)
    found = sorted((folder / LISTS_FOLDER).glob("part-*.parquet"))
    expected = [shard_name(number, len(found)) for number in range(len(found))]
    if not found or [part.name for part in found] != expected or not (folder / NEVER_NAME).is_file():
        names = ", ".join(part.name for part in found[:4]) or "no parts"
        raise UserError(
            f"{option}={path} is not whole ({LISTS_FOLDER}/ holds {len(found)} files: {names}; {NEVER_NAME} "
            f"{'is there' if (folder / NEVER_NAME).is_file() else 'is missing'}): copy or export it again"
        )
    return Export(folder, note, found)


def _local(path: str, *, option: str) -> Path:
    remote = RemoteFolder(path)
    names = [*(remote.names() or []), *(f"{LISTS_FOLDER}/{name}" for name in remote.names(LISTS_FOLDER) or [])]
    if NOTE_NAME not in names:
        raise UserError(f"{option}={path} has no {NOTE_NAME}: expected a folder that `prep export format=lists` wrote")
    return remote.local([name for name in names if name in (NOTE_NAME, NEVER_NAME) or name.startswith(f"{LISTS_FOLDER}/part-")])


def exported_groups(path: Path) -> Iterator[pa.Table]:
    """The row groups of a file of an export. Raises UserError where it cannot be read."""
    try:
        yield from read_row_groups(path)
    except DamagedShard as error:
        raise UserError(f"{str(error).partition(';')[0].partition('. It is')[0]}: it is damaged; copy or export the lists again") from error
