"""Training shards as a stream of batches, in an order that is a pure function of (shards' content digest, seed, epoch).

    DIR/manifest.json                  names, rows, bytes and digests of the shards
    DIR/part-00000-of-00004.parquet    rows of `data.tables.schemas.TRAINING`; schema metadata "training": see `TrainingMetadata`

1. The row groups of all shards are permuted.
2. Runs of `WINDOW_GROUPS` of them are windows: only one window is in memory, as Arrow columns.
3. The window's rows of this epoch's draw are permuted. (Rows come pre-shuffled by a hash, so a small window is enough.)
4. A batch is the next b rows; it may span windows, the last one of an epoch may be short, none spans epochs.

Epoch e uses the rows whose draw is e modulo the number of draws, or always those of one draw. To resume at a step, whole windows before it
are skipped by their row counts, without decoding them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.digests import uniforms
from data.errors import UserError
from data.files.what_lies import refuse_other_table, what_lies
from data.tables.cl_drd_groups import has_groups, is_list_of_groups
from data.tables.manifest import MANIFEST_NAME, Manifest
from data.tables.schemas import TRAINING_SCHEMAS, TRAINING_VERSION, CandidateKind
from data.tables.shards import read_row_groups

WINDOW_GROUPS = 4  # of 512 rows: at the paper's sizes 6 MB each
METADATA_KEY = b"training"
REMEDY = "run `prep run stage=shards` with this student.model, or train the student that the shards were made for"


@dataclass(frozen=True)
class TrainingMetadata:
    """What the shards' schema metadata says of how they were made."""

    schema_version: int
    tokenizer: str  # digest of the student's tokenizer
    teachers: tuple[str, ...]  # namespaces of the teacher-logit store
    draws: int
    negatives_source: str  # student, bm25, run or random
    mask_ratios: tuple[float, ...]
    negatives: int  # m
    curriculum: tuple[str, ...] = ()  # K/N_h/N_s of each draw, where the lists are groups

    @property
    def has_never_ids(self) -> bool:
        """Whether the rows say which passages are never negatives of their query."""
        return self.schema_version >= TRAINING_VERSION


@dataclass(frozen=True)
class TrainingRow:
    """One query with its candidates, K of them."""

    query_id: str
    query_tokens: NDArray[np.int32]
    candidate_tokens: tuple[NDArray[np.int32], ...]
    kinds: tuple[int, ...]
    candidate_ids: tuple[str, ...]
    teacher_logits: NDArray[np.float32]
    confidence: float
    never_ids: tuple[str, ...] = ()  # passages that are never its negatives, positives among them; unknown to shards of version 2


@dataclass(frozen=True)
class RowGroup:
    """A Parquet row group, and how many of its rows belong to each draw."""

    path: Path
    index: int
    rows_of_draw: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """The global batch of one step; steps and epochs count from 0."""

    step: int
    epoch: int
    rows: list[TrainingRow]


@dataclass(frozen=True)
class TrainingShards:
    """A checked folder of training shards."""

    digest: str
    metadata: TrainingMetadata
    groups: tuple[RowGroup, ...]
    only_draw: int | None = None  # of all epochs

    def draw_of(self, epoch: int) -> int:
        """The draw that an epoch uses."""
        return epoch % self.metadata.draws if self.only_draw is None else self.only_draw

    def epoch_rows(self, epoch: int) -> int:
        """Rows, that is queries, of an epoch."""
        return sum(group.rows_of_draw[self.draw_of(epoch)] for group in self.groups)

    def epoch_steps(self, epoch: int, *, batch_queries: int) -> int:
        """Batches of an epoch, the short last one included."""
        return -(-self.epoch_rows(epoch) // batch_queries)


def open_training_shards(
    folder: Path, *, tokenizer: str, remedy: str = REMEDY, verify: bool = True, draw: int | None = None
) -> TrainingShards:
    """Check a folder of training shards, byte by byte, and read how its rows are spread.

    Args:
        folder: Where manifest.json lies.
        tokenizer: Digest of the tokenizer of what is trained.
        remedy: What to do where the shards have another, for people.
        verify: Whether to compare every file's digest, which reads it once; of several processes one is enough.
        draw: The one that all epochs use; None: each its own.

    Raises:
        UserError: No manifest, a missing shard, no training shards, another schema version, another tokenizer, no such draw.
        DamagedShard: A shard whose bytes are not those that the manifest records.
    """
    manifest = Manifest.read(folder)
    if manifest is None:
        found = f"it is {what_lies(folder)}, without {MANIFEST_NAME}"
        raise UserError(f"shards={folder}: {found}; give the output folder of `prep run stage=shards` (see `prep path`)")
    refuse_other_table(folder, manifest, metadata=METADATA_KEY, option="shards", expected="training rows, the output of stage=shards")
    metadata: TrainingMetadata | None = None
    groups: list[RowGroup] = []
    if verify:
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda shard: shard.check(folder), manifest.shards))
    for shard in manifest.shards:
        path = folder / shard.name
        metadata = _read_metadata(path, tokenizer=tokenizer, remedy=remedy)
        groups += _row_groups(path, draws=metadata.draws)
    if metadata is None or not any(sum(group.rows_of_draw) for group in groups):
        raise UserError(f"shards={folder}: no training rows in it; see the counts of its {MANIFEST_NAME} for where the queries went")
    shards = TrainingShards(digest=manifest.content_digest, metadata=metadata, groups=tuple(groups))
    if empty := [draw for draw in range(metadata.draws) if not shards.epoch_rows(draw)]:
        raise UserError(f"shards={folder}: no rows of draw {empty[0]}, though {metadata.draws} draws are promised; make the shards anew")
    if draw is not None and draw >= metadata.draws:
        raise UserError(f"train.draw={draw}: shards={folder} have draws 0 to {metadata.draws - 1}")
    return replace(shards, only_draw=draw)


def _read_metadata(path: Path, *, tokenizer: str, remedy: str) -> TrainingMetadata:
    schema = pq.read_schema(path)
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise UserError(f"{path} holds no training rows (no {METADATA_KEY.decode()!r} metadata); give shards= the output of stage=shards")
    content: dict[str, Any] = json.loads(raw)
    version = content.get("schema_version")
    if version not in TRAINING_SCHEMAS or not schema.equals(TRAINING_SCHEMAS[version]):
        versions = " and ".join(map(str, TRAINING_SCHEMAS))
        raise UserError(
            f"{path} has schema version {version}, this trainer reads {versions}: run `prep run config=FILE` with this version of the "
            "project (vectors and teacher logits are kept) and give the new folder"
        )
    names = {field.name for field in fields(TrainingMetadata)}
    known: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items() if name in names}
    metadata = TrainingMetadata(**known)
    if metadata.tokenizer != tokenizer:
        raise UserError(
            f"{path} holds tokens of another tokenizer ({metadata.tokenizer}) than that of the model to train ({tokenizer}): {remedy}"
        )
    return metadata


def _row_groups(path: Path, *, draws: int) -> list[RowGroup]:
    groups: list[RowGroup] = []
    for index, table in enumerate(read_row_groups(path, columns=["draw"])):
        draw = table.column("draw").to_numpy()
        if len(draw) and (draw.min() < 0 or draw.max() >= draws):
            raise UserError(f"{path} has draws {draw.min()} to {draw.max()}, its metadata promises 0 to {draws - 1}; make the shards anew")
        groups.append(RowGroup(path, index, tuple(np.bincount(draw, minlength=draws).tolist())))
    return groups


def permutation(count: int, *parts: object) -> NDArray[np.int64]:
    """A permutation of `count` numbers that is a pure function of the parts, the same in every numpy version."""
    return np.argsort(uniforms(count, *parts), kind="stable")


def windows(group_rows: Sequence[int], *parts: object) -> list[list[int]]:
    """Row groups in permuted order, cut into windows; groups without rows are left out."""
    order = [int(group) for group in permutation(len(group_rows), "row groups", *parts) if group_rows[group]]
    return [order[start : start + WINDOW_GROUPS] for start in range(0, len(order), WINDOW_GROUPS)]


def rows_of_epoch(shards: TrainingShards, *, seed: int, epoch: int, skip: int = 0) -> Iterator[TrainingRow]:
    """The epoch's rows in their order, from row `skip` on. Windows before it are not decoded."""
    draw = shards.draw_of(epoch)
    counts = [group.rows_of_draw[draw] for group in shards.groups]
    key = (shards.digest, seed, epoch)
    for place, window in enumerate(windows(counts, *key)):
        rows = sum(counts[group] for group in window)
        if skip >= rows:
            skip -= rows
            continue
        decoded = [_DecodedGroup(shards.groups[group], draw=draw) for group in window]
        located = [(group, row) for group in decoded for row in group.rows]
        for position in permutation(rows, "rows", place, *key)[skip:]:
            group, row = located[position]
            yield group.row(row)
        skip = 0


def batches(shards: TrainingShards, *, seed: int, epochs: int, batch_queries: int, first_step: int = 0) -> Iterator[Batch]:
    """All batches of a training run, from global step `first_step` on."""
    step = 0
    for epoch in range(epochs):
        steps = shards.epoch_steps(epoch, batch_queries=batch_queries)
        done = min(max(first_step - step, 0), steps)
        if done < steps:
            rows = rows_of_epoch(shards, seed=seed, epoch=epoch, skip=done * batch_queries)
            for place in range(done, steps):
                yield Batch(step=step + place, epoch=epoch, rows=list(itertools.islice(rows, batch_queries)))
        step += steps


class _Lists:
    """A list column as flat values and offsets, so that a row is a slice and not a Python list."""

    def __init__(self, array: Any) -> None:
        array = array.combine_chunks() if isinstance(array, pa.ChunkedArray) else array
        self.offsets = array.offsets.to_numpy()
        self.values = array.values

    def bounds(self, row: int) -> tuple[int, int]:
        return int(self.offsets[row]), int(self.offsets[row + 1])


class _DecodedGroup:
    """One row group in memory."""

    def __init__(self, group: RowGroup, *, draw: int) -> None:
        (table,) = read_row_groups(group.path, groups=[group.index])
        self._path = group.path
        self.rows = np.flatnonzero(table.column("draw").to_numpy() == draw).tolist()
        self._query_ids = table.column("query_id").to_pylist()
        self._confidence = table.column("confidence").to_numpy()
        self._query_tokens = _Lists(table.column("query_tokens"))
        self._query_values = self._query_tokens.values.to_numpy()
        self._candidates = _Lists(table.column("candidate_tokens"))
        self._tokens = _Lists(self._candidates.values)
        self._token_values = self._tokens.values.to_numpy()
        self._kinds = _Lists(table.column("candidate_kind"))
        self._ids = _Lists(table.column("candidate_id"))
        self._logits = _Lists(table.column("teacher_logits"))
        self._never = _Lists(table.column("never_ids")) if "never_ids" in table.column_names else None

    def row(self, row: int) -> TrainingRow:
        query_id = self._query_ids[row]
        start, end = self._query_tokens.bounds(row)
        first, last = self._candidates.bounds(row)
        kinds = self._slice(self._kinds, row).to_pylist()
        logits = self._slice(self._logits, row).to_numpy(zero_copy_only=False)
        ids = self._slice(self._ids, row).to_pylist()
        whole = is_list_of_groups(kinds) if has_groups(kinds) else kinds.count(CandidateKind.POSITIVE) == 1
        if not len(kinds) == len(logits) == len(ids) == last - first or not whole:
            raise UserError(
                f"{self._path}: query {query_id} has {last - first} candidates, {len(kinds)} kinds, {len(logits)} logits, {len(ids)} ids "
                f"and {kinds.count(CandidateKind.POSITIVE)} positives; expected equal numbers and one positive, or three groups in their "
                "order: make the shards anew"
            )
        tokens = tuple(self._token_values[slice(*self._tokens.bounds(place))] for place in range(first, last))
        return TrainingRow(
            query_id=query_id,
            query_tokens=self._query_values[start:end],
            candidate_tokens=tokens,
            kinds=tuple(kinds),
            candidate_ids=tuple(ids),
            teacher_logits=logits,
            confidence=float(self._confidence[row]),
            never_ids=tuple(self._slice(self._never, row).to_pylist()) if self._never else (),
        )

    @staticmethod
    def _slice(lists: _Lists, row: int) -> Any:
        start, end = lists.bounds(row)
        return lists.values.slice(start, end - start)
