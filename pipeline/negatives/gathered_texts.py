"""Texts of passages by id, for a table each of whose shards wants some of the whole corpus: gathered once, not once for each shard.

In a round before the shards each piece reads a block of the corpus's shards once, and writes the texts that any shard wants: one row group
for each part, so that a part reads its own texts and no others. A part is a shard; or some rows of it, where a shard wants more texts than
memory should hold.

Where too few shards are to be built for that to pay, and wherever a piece is not there, the texts come from the corpus itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.errors import DamagedShard
from data.tables.manifest import Manifest
from data.tables.ragged import bounds_of
from data.tables.shards import open_footer, read_groups, read_row_groups
from pipeline.negatives.passage_index import hash_ids
from pipeline.stage import Cutting, Piece, Round, StageContext, Stored

CORPUS = "ingest.corpus"
SCHEMA = pa.schema([("doc_id", pa.string()), ("text", pa.large_string())])
_WORTH_BYTES = 8 << 20  # reading of the corpus that is saved: below that a round of its own costs more than it saves
_BLOCKS = 32  # for so many workers at most, as long as these bounds allow
_LEAST_BLOCK, _LARGEST_BLOCK = 16 << 20, 128 << 20  # bytes of the corpus's files: so that row groups are not tiny, and memory is bounded

IdsOfParts: TypeAlias = Callable[[Experiment, Stored, int], Iterator[pa.Array]]  # of a shard: the ids that each part wants, repeated or not


@dataclass(frozen=True)
class Block:
    """Shards of the corpus that are read together: from `start` to before `stop`."""

    start: int
    stop: int

    @property
    def piece(self) -> str:
        """The name of its piece. Of the table's stale shards it says nothing: the piece is for all shards."""
        return f"texts-{self.start:05d}-{self.stop:05d}"


def blocks_of(corpus: Manifest) -> list[Block]:
    """The corpus in blocks: by its manifest alone, so that cutting and reading agree."""
    wanted = min(max(sum(shard.bytes for shard in corpus.shards) // _BLOCKS, _LEAST_BLOCK), _LARGEST_BLOCK)
    blocks: list[Block] = []
    start = size = 0
    for shard, record in enumerate(corpus.shards):
        size += record.bytes
        if size >= wanted or shard + 1 == len(corpus.shards):
            blocks.append(Block(start, shard + 1))
            start, size = shard + 1, 0
    return blocks


@dataclass(frozen=True)
class GatheredTexts:
    """Which texts a table wants: `ids_of_parts` says so from its input `source`."""

    source: str
    ids_of_parts: IdsOfParts

    def round(self) -> Round:
        """The round of pieces that gathers them."""
        return Round(self._cut, self._gather)

    def _cut(self, cutting: Cutting) -> list[Piece]:
        corpus = cutting.inputs[CORPUS].manifest
        if (len(cutting.shards) - 1) * sum(shard.bytes for shard in corpus.shards) < _WORTH_BYTES:
            return []
        return [Piece(cutting.round, block.piece, {"start": block.start, "stop": block.stop}) for block in blocks_of(corpus)]

    def _gather(self, context: StageContext, piece: Piece) -> None:
        wanted = context.worker_cache.get_or_create(("wanted texts", context.folder), lambda: _Wanted.read(self, context))
        corpus = context.inputs[CORPUS]
        found = [_found(corpus.path(shard), wanted) for shard in range(piece.values["start"], piece.values["stop"])]
        texts = pa.concat_tables([table for table, _, _ in found])
        begins = bounds_of(np.array([table.num_rows for table, _, _ in found]))
        rows = np.concatenate([rows + begin for (_, rows, _), begin in zip(found, begins, strict=False)])
        parts = np.concatenate([parts for _, _, parts in found])
        rows = rows[np.argsort(parts, kind="stable")]
        bounds = bounds_of(np.bincount(parts, minlength=wanted.parts))
        with context.piece_writer(piece, SCHEMA) as writer:
            writer.figures["first_parts"] = wanted.first_parts
            for part in range(wanted.parts):
                writer.write_row_group(texts.take(pa.array(rows[bounds[part] : bounds[part + 1]])))
        context.report("texts", len(rows))


class TextReader:
    """The texts of a table's parts, from the pieces that were gathered. A worker keeps it: the pieces' footers are read once."""

    def __init__(self, context: StageContext) -> None:
        self._corpus = context.inputs[CORPUS]
        self._pieces = {block: context.piece_path(block.piece) for block in blocks_of(self._corpus.manifest)}
        self._footers: dict[Path, tuple[pq.FileMetaData, list[int]]] = {}

    def texts_of(self, ids: pa.Array, *, shard: int, part: int = 0) -> pa.Array:
        """[n] texts of passages that this part of a shard wants. In memory are all texts of the part. Raises DamagedShard."""
        distinct = ids.unique()
        there = pa.concat_tables([self._of_block(block, distinct, shard, part) for block in self._pieces]).combine_chunks()
        places = pc.index_in(ids, value_set=there.column("doc_id"))
        if places.null_count:
            unknown = ids.filter(places.is_null())[0].as_py()
            raise DamagedShard(f"{self._corpus.folder} has no passage {unknown!r}, which a later table names: delete it and run again")
        return there.column("text").take(places).combine_chunks()

    def _of_block(self, block: Block, ids: pa.Array, shard: int, part: int) -> pa.Table:
        path = self._pieces[block]
        try:
            if path not in self._footers:
                metadata, figures = open_footer(path)
                self._footers[path] = metadata, figures["first_parts"]
            metadata, first_parts = self._footers[path]
            return read_groups(path, [first_parts[shard] + part], metadata)
        except FileNotFoundError:
            found = [_rows_of(self._corpus.path(number), ids) for number in range(block.start, block.stop)]
            return pa.concat_tables(found)


@dataclass(frozen=True)
class _Wanted:
    """Who wants a passage, of all shards: (hash of its id, part) as one number each, sorted, in 8 bytes for each text of a part.

    Low bits are the part, the others those of the hash. Where two ids share them a text too many is gathered, and no reader asks for it.
    """

    keys: NDArray[np.uint64]
    first_parts: list[int]  # of each shard
    parts: int
    mask: np.uint64  # of the part's bits

    @staticmethod
    def read(texts: GatheredTexts, context: StageContext) -> _Wanted:
        hashes: list[NDArray[np.uint64]] = []
        first_parts: list[int] = []
        for shard in range(context.shard_count):
            first_parts.append(len(hashes))
            hashes += [np.unique(hash_ids(ids)) for ids in texts.ids_of_parts(context.experiment, context.inputs[texts.source], shard)]
        mask = np.uint64((1 << max(len(hashes) - 1, 0).bit_length()) - 1)
        keys = np.empty(sum(map(len, hashes)), np.uint64)
        start = 0
        for part, mine in enumerate(hashes):
            keys[start : start + len(mine)] = (mine & ~mask) | np.uint64(part)
            start += len(mine)
        keys.sort()
        return _Wanted(keys, first_parts, len(hashes), mask)

    def of(self, ids: pa.Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(place of an id, part that wants it), for each such pair, in order of places."""
        hashes = hash_ids(ids)
        low, high = np.searchsorted(self.keys, hashes & ~self.mask), np.searchsorted(self.keys, hashes | self.mask, side="right")
        counts = high - low
        places = np.repeat(np.arange(len(ids)), counts)
        of_each = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        return places, (self.keys[low[places] + of_each] & self.mask).astype(np.int64)


def _found(path: Path, wanted: _Wanted) -> tuple[pa.Table, NDArray[np.int64], NDArray[np.int64]]:
    """Of one shard of the corpus: its wanted passages, and for each pair of one and a part that wants it their row there, and the part."""
    ids: dict[int, pa.Array] = {}  # of the wanted ones, by row group
    rows: list[NDArray[np.int64]] = []
    of_passages, of_parts = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    before = 0
    for group, table in enumerate(read_row_groups(path, columns=["doc_id"])):
        column = table.column("doc_id").combine_chunks()
        places, parts = wanted.of(column)
        if len(places):
            distinct, numbers = np.unique(places, return_inverse=True)
            rows.append(distinct)
            ids[group] = column.take(pa.array(distinct))
            of_passages.append(numbers + before)
            of_parts.append(parts)
            before += len(distinct)
    texts = read_row_groups(path, columns=["text"], groups=list(ids))
    columns = ([ids[group], table.column("text").take(pa.array(mine))] for group, mine, table in zip(ids, rows, texts, strict=True))
    tables = [pa.table(both, names=SCHEMA.names).cast(SCHEMA) for both in columns]
    return pa.concat_tables([SCHEMA.empty_table(), *tables]), np.concatenate(of_passages), np.concatenate(of_parts)


def _rows_of(path: Path, ids: pa.Array) -> pa.Table:
    """The passages of a shard of the corpus that have one of the ids. Texts are read of those row groups alone that hold one."""
    holds = [pc.is_in(group.column("doc_id"), value_set=ids) for group in read_row_groups(path, columns=["doc_id"])]
    groups = [number for number, here in enumerate(holds) if pc.any(here).as_py()]
    read = read_row_groups(path, columns=["doc_id", "text"], groups=groups)
    found = [group.filter(holds[number]).cast(SCHEMA) for number, group in zip(groups, read, strict=True)]
    return pa.concat_tables([SCHEMA.empty_table(), *found])
