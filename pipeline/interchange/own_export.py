"""`prep export format=lists`: all that a store knows of its lists, see `data.formats.scored_lists.exported`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from data.formats.scored_lists.exported import LISTS, LISTS_FOLDER, NEVER, NEVER_NAME, ExportNote
from data.logits.store import LogitStore, namespace_note, namespaces
from data.tables.shards import ROW_GROUP_ROWS, ShardWriter, open_shard, shard_name
from pipeline.interchange.stored_lists import StoredLists
from pipeline.scoring.requested_pairs import RequestedPairs
from pipeline.stage import Say
from pipeline.stages.training_rows import with_promoted
from retrieval.teachers.imported import BESIDE

_FOOTER = {"format": "lists"}


@dataclass(frozen=True)
class OtherTeacher:
    """A namespace of the logit store beside the lists' own."""

    column: str
    store: LogitStore
    note: dict[str, Any]

    def logits(self, pairs: RequestedPairs) -> pa.Array:
        """Its logits of the rows of a shard, null where it has none."""
        return pa.array(self.store.lookup(pairs.keys).logits[pairs.pair_of_row], from_pandas=True)


def write(
    folder: Path, stored: StoredLists, *, root: Path, teacher: dict[str, Any], training: dict[str, Any], licence: str | None, warn: Say
) -> ExportNote:
    """Write lists, never_ids and note. `root` is the store, `teacher` the note's own (empty: none)."""
    others = other_teachers(stored, root, own=teacher.get("namespace"), warn=warn)
    (folder / LISTS_FOLDER).mkdir()
    counts = {"queries": 0, "lists": 0, "candidates": 0}
    schema = LISTS
    for other in others:
        schema = schema.append(pa.field(other.column, pa.float32()))
    with open_shard(folder / NEVER_NAME, NEVER, _FOOTER) as never:
        for shard in range(stored.shards):
            with open_shard(folder / LISTS_FOLDER / shard_name(shard, stored.shards), schema, _FOOTER) as writer:
                queries = _write_shard(writer, stored, shard, others, counts)
            _write_never(never, stored, shard, queries)
            counts["queries"] += len(queries)
    note = ExportNote(teacher, [{**other.note, "column": other.column} for other in others], training, counts, licence)
    note.write(folder)
    return note


def _write_shard(writer: ShardWriter, stored: StoredLists, shard: int, others: list[OtherTeacher], counts: dict[str, int]) -> pa.Array:
    """The shard's rows, whole lists in each row group. Returns its distinct query ids."""
    of_others: list[pa.Array] = []
    if others:
        pairs = RequestedPairs.read(stored.lists.path(shard))
        of_others = [other.logits(pairs) for other in others]
    done = 0
    ids: list[pa.Array] = []
    for table in _larger(stored.tables(shard)):
        for other, logits in zip(others, of_others, strict=True):
            table = table.append_column(other.column, logits.slice(done, table.num_rows))
        writer.write_row_group(table)
        done += table.num_rows
        counts["candidates"] += table.num_rows
        counts["lists"] += int((table.column("position").to_numpy() == 0).sum())
        ids.append(table.column("query_id").unique())
    return pc.unique(pa.concat_arrays(ids)) if ids else pa.array([], pa.string())


def _larger(tables: Iterator[pa.Table]) -> Iterator[pa.Table]:
    """The same pieces, small ones together."""
    pending: list[pa.Table] = []
    for table in tables:
        pending.append(table)
        if sum(one.num_rows for one in pending) >= ROW_GROUP_ROWS // 2:
            yield pa.concat_tables(pending)
            pending = []
    if pending:
        yield pa.concat_tables(pending)


def _write_never(writer: ShardWriter, stored: StoredLists, shard: int, queries: pa.Array) -> None:
    promotions = None if stored.promotions is None else stored.promotions.read(shard, columns=["query_id", "promoted_ids"])
    for group in stored.never.shard_groups(shard, columns=NEVER.names):
        rows = group.filter(pc.is_in(group.column("query_id"), value_set=queries)).select(NEVER.names)
        if promotions is not None:
            never = with_promoted(rows.column("never_ids"), rows.column("query_id"), promotions)
            rows = rows.set_column(1, NEVER.field(1), never)
        writer.write(rows)


def public_name(name: str) -> str:
    """The name of a teacher for others: of a folder of this machine its last part."""
    own, beside, completed = name.partition(BESIDE)
    return (Path(own).name if Path(own).is_absolute() else own) + beside + completed


def other_teachers(stored: StoredLists, root: Path, *, own: str | None, warn: Say) -> list[OtherTeacher]:
    """The teachers that have a logit of some pair of the lists, beside their own. Raises UserError as the tables do."""
    found: list[OtherTeacher] = []
    for namespace in namespaces(root):
        store = LogitStore(root, namespace, warn=warn)
        if namespace != own and store.segment_paths() and _knows_some(store, stored):
            found_note = namespace_note(root, namespace)
            note = {**found_note, "name": public_name(found_note["name"]), "namespace": namespace}
            column = f"logit:{note['name']}"
            taken = {other.column for other in found}
            found.append(OtherTeacher(f"{column}@{namespace[:12]}" if column in taken or note["name"] == "?" else column, store, note))
    return found


def _knows_some(store: LogitStore, stored: StoredLists) -> bool:
    return any(np.isfinite(store.lookup(RequestedPairs.read(path).keys).logits).any() for path in stored.lists.paths())
