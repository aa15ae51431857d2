"""Training shards as a stream of batches, in an order that is a pure function of (shards' content digest, seed, epoch), or, of lists
that were exported, of the digest that the export notes.

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
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.digests import uniforms
from data.errors import UserError
from data.files.what_lies import output_of
from data.tables.manifest import MANIFEST_NAME
from data.tables.ragged import Ragged
from data.tables.schemas import GRADED_VERSION, LABELLED_VERSION, TRAINING_SCHEMAS, TRAINING_VERSION, CandidateKind
from data.tables.shards import read_row_groups

WINDOW_GROUPS = 4  # of 512 rows: at the paper's sizes 6 MB each
METADATA_KEY = b"training"
_POSITIVE = int(CandidateKind.POSITIVE)
_NO_LABELS = np.empty(0, np.float32)
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
    curriculum: tuple[str, ...] = ()  # of CL-DRD's lists: what each draw, an iteration, is made of
    order: str = ""  # of lists from elsewhere: content digest of the shards that were made of them there

    @property
    def has_never_ids(self) -> bool:
        """Whether the rows say which passages are never negatives of their query."""
        return self.schema_version >= TRAINING_VERSION

    @property
    def has_labels(self) -> bool:
        """Whether the candidates carry labels. Such a list needs no positive."""
        return self.schema_version == LABELLED_VERSION

    @property
    def has_grades(self) -> bool:
        """Whether the rows say which label their p+ has."""
        return self.schema_version == GRADED_VERSION


class TokenSequences(Sequence[NDArray[np.int32]]):
    """Token sequences that are kept as their bytes, by which they are compared; each is an array where it is asked for."""

    def __init__(self, raw: tuple[bytes, ...], counts: NDArray[np.int64]) -> None:
        self.raw, self.counts = raw, counts  # tokens of each: bytes that are not looked at again need not be fetched for their length

    def __len__(self) -> int:
        return len(self.raw)

    def __getitem__(self, index: Any) -> Any:
        found = self.raw[index]
        return np.frombuffer(found, np.int32) if isinstance(found, bytes) else TokenSequences(found, self.counts[index])


@dataclass(frozen=True)
class TrainingRow:
    """One query with its candidates, K of them."""

    query_id: str
    query_tokens: NDArray[np.int32]
    candidate_tokens: Sequence[NDArray[np.int32]]
    kinds: tuple[int, ...]
    candidate_ids: tuple[str, ...]
    teacher_logits: NDArray[np.float32]
    confidence: float
    never_ids: tuple[str, ...] = ()  # passages that are never its negatives, positives among them; unknown to shards of version 2
    labels: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))  # [K], or none
    positive_grade: int | None = None  # label of p+, 0 of a promoted one; None where the shards do not say


@dataclass(frozen=True)
class RowGroup:
    """A Parquet row group, and how many of its rows belong to each draw."""

    path: Path
    index: int
    rows_of_draw: tuple[int, ...]
    grades: frozenset[int] = frozenset()  # of all p+, where the shards have them


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
    only_order: str | None = None  # that the user gave

    @property
    def order(self) -> str:
        """What the order of the rows is drawn from: the content, or that of the shards that a copy's lists were trained from first."""
        return self.only_order or self.metadata.order or self.digest

    @property
    def grades(self) -> frozenset[int]:
        """The labels that a p+ has, where the shards say so."""
        return frozenset().union(*(group.grades for group in self.groups))

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
    folder: Path, *, tokenizer: str, remedy: str = REMEDY, verify: bool = True, draw: int | None = None, order: str | None = None
) -> TrainingShards:
    """Check a folder of training shards, byte by byte, and read how its rows are spread.

    Args:
        folder: Where manifest.json lies.
        tokenizer: Digest of the tokenizer of what is trained.
        remedy: What to do where the shards have another, for people.
        verify: Whether to compare every file's digest, which reads it once; of several processes one is enough.
        draw: The one that all epochs use; None: each its own.
        order: What the order of the rows is drawn from; None: see `TrainingShards.order`.

    Raises:
        UserError: No manifest, a missing shard, no training shards, another schema version, another tokenizer, no such draw.
        DamagedShard: A shard whose bytes are not those that the manifest records.
    """
    manifest = output_of("shards", folder, metadata=METADATA_KEY, what="training rows")
    if verify:
        with ThreadPoolExecutor() as threads:
            list(threads.map(lambda shard: shard.check(folder), manifest.shards))
    metadata: TrainingMetadata | None = None
    groups: list[RowGroup] = []
    for shard in manifest.shards:
        metadata = _read_metadata(folder / shard.name, tokenizer=tokenizer, remedy=remedy)
        groups += _row_groups(folder / shard.name, draws=metadata.draws, graded=metadata.has_grades)
    if metadata is None or not any(sum(group.rows_of_draw) for group in groups):
        raise UserError(f"shards={folder}: no training rows in it; see the counts of its {MANIFEST_NAME} for where the queries went")
    shards = TrainingShards(digest=manifest.content_digest, metadata=metadata, groups=tuple(groups))
    if empty := [draw for draw in range(metadata.draws) if not shards.epoch_rows(draw)]:
        raise UserError(f"shards={folder}: no rows of draw {empty[0]}, though {metadata.draws} draws are promised; make the shards again")
    if draw is not None and draw >= metadata.draws:
        raise UserError(f"train.draw={draw}: shards={folder} have draws 0 to {metadata.draws - 1}")
    return replace(shards, only_draw=draw, only_order=order)


def _read_metadata(path: Path, *, tokenizer: str, remedy: str) -> TrainingMetadata:
    schema = pq.read_schema(path)
    content: dict[str, Any] = json.loads((schema.metadata or {}).get(METADATA_KEY, "{}"))
    version: Any = content.get("schema_version")
    known = version in TRAINING_SCHEMAS and schema.equals(TRAINING_SCHEMAS[version])
    if not known or (content.get("curriculum") and version < LABELLED_VERSION):
        read = "no labels, which CL-DRD's lists carry now" if known else f"this trainer reads {', '.join(map(str, TRAINING_SCHEMAS))}"
        raise UserError(
            f"{path} has schema version {version}, {read}: run `prep run config=FILE` with this version of the project (vectors and "
            "teacher logits are kept) and give the new folder"
        )
    names = {field.name for field in fields(TrainingMetadata)}
    values: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items() if name in names}
    metadata = TrainingMetadata(**values)
    if metadata.tokenizer != tokenizer:
        raise UserError(
            f"{path} holds tokens of another tokenizer ({metadata.tokenizer}) than that of the model to train ({tokenizer}): {remedy}"
        )
    return metadata


def _row_groups(path: Path, *, draws: int, graded: bool) -> Iterator[RowGroup]:
    for index, table in enumerate(read_row_groups(path, columns=["draw", *(["positive_grade"] if graded else [])])):
        draw = table.column("draw").to_numpy()
        if len(draw) and (draw.min() < 0 or draw.max() >= draws):
            raise UserError(f"{path} has draws {draw.min()} to {draw.max()}, its metadata promises 0 to {draws - 1}; make the shards again")
        grades = frozenset(table.column("positive_grade").unique().to_pylist()) if graded else frozenset()
        yield RowGroup(path, index, tuple(np.bincount(draw, minlength=draws).tolist()), grades)


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
    key = (shards.order, seed, epoch)
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


class _DecodedGroup:
    """The rows of a draw of one row group in memory: flat columns, of which a row is a slice. They are decoded once, not row by row."""

    _token_size = np.dtype(np.int32).itemsize

    def __init__(self, group: RowGroup, *, draw: int) -> None:
        (table,) = read_row_groups(group.path, groups=[group.index])
        mine = np.flatnonzero(table.column("draw").to_numpy() == draw)
        if len(mine) < len(table):
            table = table.take(mine)
        columns: dict[str, pa.Array] = {name: table.column(name).combine_chunks() for name in table.column_names}
        self._path = group.path
        self.rows = range(len(mine))
        self._query_ids: list[str] = columns["query_id"].to_pylist()
        self._confidence: list[float] = columns["confidence"].to_pylist()
        self._queries = _Lists(columns["query_tokens"])
        self._candidates = _Lists(columns["candidate_tokens"])
        tokens = Ragged.of_lists(self._candidates.values)
        self._tokens = tokens.values.astype(np.int32, copy=False).tobytes()
        self._token_counts = np.diff(tokens.bounds)
        self._token_bounds: list[int] = (tokens.bounds * self._token_size).tolist()
        self._never = _Lists(columns["never_ids"]) if "never_ids" in columns else None
        self._logits = _Lists(columns["teacher_logits"])
        self._labels = _Lists(columns["labels"]) if "labels" in columns else None
        self._grades: list[int] | None = columns["positive_grade"].to_pylist() if "positive_grade" in columns else None
        kinds, ids = _Lists(columns["candidate_kind"]), _Lists(columns["candidate_id"])
        self._check(kinds, ids)
        self._kinds: tuple[int, ...] = tuple(kinds.values.to_pylist())
        self._ids: tuple[str, ...] = tuple(ids.values.to_pylist())
        self._never_ids: tuple[str, ...] = tuple(self._never.values.to_pylist()) if self._never else ()

    def row(self, row: int) -> TrainingRow:
        start, stop = self._candidates.span(row)  # of ids, kinds, logits and labels, too
        bounds = self._token_bounds[start : stop + 1]
        return TrainingRow(
            query_id=self._query_ids[row],
            query_tokens=self._queries.numbers(row),
            candidate_tokens=TokenSequences(
                tuple([self._tokens[first:last] for first, last in itertools.pairwise(bounds)]), self._token_counts[start:stop]
            ),
            kinds=self._kinds[start:stop],
            candidate_ids=self._ids[start:stop],
            teacher_logits=self._logits.numbers(row),
            confidence=self._confidence[row],
            never_ids=self._never_ids[slice(*self._never.span(row))] if self._never else (),
            labels=self._labels.numbers(row) if self._labels else _NO_LABELS,
            positive_grade=self._grades[row] if self._grades else None,
        )

    def _check(self, kinds: _Lists, ids: _Lists) -> None:
        """Raises UserError: columns of unequal lengths, or a list that has neither one positive nor labels."""
        columns = {"candidates": self._candidates, "kinds": kinds, "logits": self._logits, "ids": ids}
        if self._labels:
            columns["labels"] = self._labels
        counts = {name: column.lengths for name, column in columns.items()}
        positives = np.diff(np.concatenate([[0], np.cumsum(kinds.values.to_numpy() == _POSITIVE)])[kinds.bounds])
        sound = np.all([count == counts["kinds"] for count in counts.values()], axis=0)
        if not self._labels:
            sound &= positives == 1
        if sound.all():
            return
        row = int(np.argmin(sound))
        listed = ", ".join(f"{count[row]} {name}" for name, count in counts.items())
        raise UserError(
            f"{self._path}: query {self._query_ids[row]} has {listed} and {positives[row]} positives; expected equal numbers, and one "
            "positive where there are no labels: make the shards again"
        )


class _Lists:
    """A column of lists: all their values, and where each row's lie among them."""

    def __init__(self, lists: pa.ListArray) -> None:
        self.values: pa.Array = lists.flatten()
        offsets = lists.offsets.to_numpy()
        self.bounds: NDArray[np.int64] = offsets - offsets[0]
        self.lengths = np.diff(self.bounds)
        self._bounds: list[int] = self.bounds.tolist()

    @cached_property
    def _numbers(self) -> NDArray[Any]:
        return self.values.to_numpy(zero_copy_only=False)

    def numbers(self, row: int) -> NDArray[Any]:
        """A row's values as an array."""
        return self._numbers[self._bounds[row] : self._bounds[row + 1]]

    def span(self, row: int) -> tuple[int, int]:
        """First value of a row, and the one after its last."""
        return self._bounds[row], self._bounds[row + 1]
