"""Stage `lists`: lists that somebody exported, as they are, in the shards of this store: `lists.path`.

In: a folder of `data.formats.scored_lists.exported`. Out: table `lists`, the rows of a shard in the order of the export (a query's shard is
that of `ingest`: a hash of its text), and table `lists.never`, the passages that are never negatives of these queries.

So the training shards of a copy are those of the store that it came from, where student, seed and number of shards are the same: nothing
is mined, drawn or scored, and no collection is read.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.digests import hash64, text_hash
from data.errors import UserError
from data.formats.scored_lists.exported import LISTS, NEVER, Export, exported_groups, find_export
from data.tables.schemas import ADAM_KINDS, GROUPS, CandidateKind
from data.tables.shards import ShardWriter
from pipeline.stage import StageContext, Table
from pipeline.stages.ingest import shard_of_query
from retrieval.models.marks import Marks, marks_of
from retrieval.models.resolved import ResolvedModels

_TEXT_COLUMNS = ("query_id", "draw", "position", "candidate_kind", "candidate_id", "query", "text")  # what no row may lack


def export_of(experiment: Experiment) -> Export:
    """The export that the settings name. Raises UserError as `find_export` does."""
    return find_export(experiment.lists.folder, option="lists.path")


def marks_of_lists(models: ResolvedModels) -> Marks:
    """What stands, in the student's reading, for the marks in exported lists."""
    experiment, student = models.experiment, models.student
    training = export_of(experiment).training
    made = {"mask_ratios": training.mask_ratios, "reinforced": training.reinforced}
    settings = experiment.dark_examples.model_copy(update=made)
    return marks_of(student.weights_folder, settings, option="student.model", trusted=student.trust_remote_code)


@dataclass
class _Seen:
    """What is known of the lists before the next one: some bytes each."""

    draws: int
    groups: bool  # lists of a curriculum
    scored: bool  # lists that a teacher has scored
    texts: dict[int, int] = field(default_factory=dict)  # hash of a query's id -> of its text
    lists: set[int] = field(default_factory=set)  # hashes of (query id, draw), without groups of (query id, draw, p+)
    candidates: int = 0
    unscored: int = 0  # candidates
    unscored_lists: int = 0


def _build(context: StageContext) -> None:
    """All shards in one pass over the export: they appear together, or none does."""
    export = export_of(context.experiment)
    training = export.training
    seen = _Seen(training.draws, bool(training.curriculum), bool(training.teachers))
    with contextlib.ExitStack() as stack:
        sinks: list[ShardWriter | None] = [None] * context.shard_count
        for shard in context.shards:
            sinks[shard] = stack.enter_context(context.writer(shard, LISTS))
        for path in export.parts:
            first = 1
            for table in _groups(path):
                _deal(_checked(table, seen, path=path, first=first), sinks)
                context.report("rows", table.num_rows)
                first += table.num_rows
        _refuse_incomplete(export, seen)
        counts = {"in": len(seen.lists), "kept": len(seen.lists), "dropped": {}, "candidates": seen.candidates}
        if sinks[0] is not None:  # the counts are of the whole table; one shard carries them
            sinks[0].figures["counts"] = counts


def _groups(path: Path) -> Iterator[pa.Table]:
    """The row groups of a part, in the columns of LISTS."""
    for table in exported_groups(path):
        missing = [name for name in LISTS.names if name not in table.column_names]
        if missing:
            raise UserError(f"{path} has no column {missing[0]}: export the lists again (prep export format=lists)")
        try:
            yield table.select(LISTS.names).cast(LISTS)
        except pa.ArrowInvalid as error:
            raise UserError(f"{path} has a column of another type ({error}): export the lists again (prep export format=lists)") from error


def _deal(table: pa.Table, sinks: list[ShardWriter | None]) -> None:
    """Whole lists to the shards of their queries."""
    encoded = table.column("query").combine_chunks().dictionary_encode()
    shards = np.array([shard_of_query(text, len(sinks)) for text in encoded.dictionary.to_pylist()], np.int64)
    shard_of_row = shards[encoded.indices.to_numpy()] if table.num_rows else np.empty(0, np.int64)
    for shard, sink in enumerate(sinks):
        if sink is not None:
            sink.write(table.filter(pa.array(shard_of_row == shard)))


def _checked(table: pa.Table, seen: _Seen, *, path: Path, first: int) -> pa.Table:
    """The rows, which are whole lists; those without a teacher have logits that are no numbers.

    `first` is the number of the first row in its file. Raises UserError where a list is none, or is there twice.
    """
    for name in _TEXT_COLUMNS:
        if table.column(name).null_count:
            row = pc.index(pc.is_null(table.column(name)), True).as_py()
            raise _fault(path, first + row, f"has no {name}")
    columns: dict[str, Any] = {name: table.column(name).to_numpy() for name in ("position", "draw", "candidate_kind")}
    begins = np.flatnonzero(columns["position"] == 0)
    if table.num_rows and (not len(begins) or begins[0] != 0):
        raise _fault(path, first, "is the middle of a list: each list lies in one row group, from position 0")
    lengths = np.diff(np.append(begins, table.num_rows))
    _check_places(table, columns, np.repeat(begins, lengths), path=path, first=first)
    _check_kinds(columns["candidate_kind"], begins, groups=seen.groups, path=path, first=first)
    _check_lists(
        table.take(pa.array(begins)).select(["query_id", "draw", "query", "candidate_id"]).to_pylist(), begins, seen, path=path, first=first
    )
    seen.candidates += table.num_rows
    for name in ("logit", "confidence"):
        values = table.column(name).to_numpy(zero_copy_only=False).astype(np.float32)  # null becomes NaN
        unknown = ~np.isfinite(values)
        if seen.scored and name == "logit":
            seen.unscored += int(unknown.sum())
            seen.unscored_lists += int(np.maximum.reduceat(unknown, begins).sum()) if len(begins) else 0
        elif seen.scored and unknown.any():
            raise _fault(path, first + int(unknown.argmax()), "has no confidence, though its list has logits")
        table = table.set_column(LISTS.get_field_index(name), LISTS.field(name), pa.array(values))
    return table


def _check_places(table: pa.Table, columns: dict[str, Any], begin: NDArray[np.int64], *, path: Path, first: int) -> None:
    """Raises UserError where a row does not go on with the list that begins in row `begin` [n]."""
    if (wrong := columns["position"] != np.arange(len(begin)) - begin).any():
        raise _fault(path, first + int(wrong.argmax()), "has a position that does not follow the one before it")
    for name in ("query_id", "query", "draw", "confidence"):
        column = table.column(name)
        same = pc.fill_null(pc.equal(column, column.take(pa.array(begin))), True)  # NaN and null are looked at later
        if name == "confidence":
            same = pc.or_(same, pc.fill_null(pc.is_nan(column), True))
        if (wrong := ~same.to_numpy()).any():
            raise _fault(path, first + int(wrong.argmax()), f"has another {name} than its list")


def _check_kinds(kinds: NDArray[np.int8], begins: NDArray[np.int64], *, groups: bool, path: Path, first: int) -> None:
    known = [int(kind) for kind in (GROUPS if groups else ADAM_KINDS)]
    if (wrong := ~np.isin(kinds, known)).any():
        what = "a curriculum" if groups else "lists with one positive"
        raise _fault(path, first + int(wrong.argmax()), f"has candidate_kind {kinds[wrong.argmax()]}, which is none of {what}")
    if groups:
        return
    opens = np.zeros(len(kinds), bool)
    opens[begins] = True
    if (wrong := (kinds == CandidateKind.POSITIVE) != opens).any():
        raise _fault(path, first + int(wrong.argmax()), "is no list of one positive, which stands first")


def _check_lists(lists: list[dict[str, Any]], begins: NDArray[np.int64], seen: _Seen, *, path: Path, first: int) -> None:
    for row, one in zip(begins.tolist(), lists, strict=True):
        query_id, draw = one["query_id"], one["draw"]
        if not 0 <= draw < seen.draws:
            raise _fault(path, first + row, f"is of draw {draw}; export.json promises draws 0 to {seen.draws - 1}")
        p_plus = one["candidate_id"]  # a query may have a list for each of its positives
        if (key := hash64(query_id, draw) if seen.groups else hash64(query_id, draw, p_plus)) in seen.lists:
            raise _fault(path, first + row, f"begins another list of query {query_id}, draw {draw}")
        seen.lists.add(key)
        text = text_hash(one["query"])
        if seen.texts.setdefault(hash64(query_id), text) != text:
            raise _fault(path, first + row, f"gives query {query_id} another text than a list before it")


def _fault(path: Path, row: int, what: str) -> UserError:
    return UserError(
        f"{path}: row {row:,} {what}: the export was changed, or is damaged; export the lists again (prep export format=lists)"
    )


def _refuse_incomplete(export: Export, seen: _Seen) -> None:
    """Raises UserError: lists without logits, fewer or more lists than the export counted, or none."""
    if seen.unscored:
        raise UserError(
            f"lists.path={export.folder}: {seen.unscored:,} of {seen.candidates:,} candidates, in {seen.unscored_lists:,} of "
            f"{len(seen.lists):,} lists, have no logit, so nothing can be learned from these lists: have them scored where they were made "
            "(prep run stage=confidence) and export them again"
        )
    counted = export.note.counts.get("lists", len(seen.lists))
    if counted != len(seen.lists) or not seen.lists:
        raise UserError(
            f"lists.path={export.folder} holds {len(seen.lists):,} lists, its export.json counts {counted:,}: was all of it copied? Export "
            "or copy it again"
        )


def _build_never(context: StageContext) -> None:
    """Of each query of a shard what is never its negative; a query of which the export says nothing has none."""
    ids = context.inputs["lists"].read(context.shard, columns=["query_id"]).column("query_id").combine_chunks().unique()
    never: dict[str, list[str]] = {}
    path = export_of(context.experiment).never
    for table in exported_groups(path):
        if not set(NEVER.names) <= set(table.column_names):
            raise UserError(f"{path} has the columns {', '.join(table.column_names)}; expected {', '.join(NEVER.names)}: export again")
        asked = table.filter(pc.is_in(table.column("query_id"), value_set=ids))
        never |= dict(zip(asked.column("query_id").to_pylist(), asked.column("never_ids").to_pylist(), strict=True))
    listed = ids.to_pylist()
    rows = pa.table([pa.array(listed, pa.string()), pa.array([never.get(one) or [] for one in listed], NEVER.field(1).type)], schema=NEVER)
    context.write(rows, {"in": len(listed), "kept": len(listed), "dropped": {}})


def _key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    export = export_of(experiment)
    return {"lists": {path.relative_to(export.folder).as_posix(): models.digests.file(path) for path in export.files}}


TABLE = Table(stage="lists", version=1, reads=(), key=_key, build=_build, builds_all_shards=True)
OF_NEVER = Table(stage="lists", name="never", version=1, reads=("lists",), key=_key, build=_build_never)
