"""A large corpus read in ranges of its files, by several workers; the tables and their quarantine are those of one pass, byte for byte.

1. A piece for each range: its passages, by the group of shards that they belong to, and its broken lines.
2. One piece for all: which lines repeat an id of an earlier one, the counts, and the quarantine. Equal ids are in one group, so this looks
   at one group's hashes at a time.
3. A task for each group of shards: their passages from all ranges in order, less the repeated ones.

Lines are numbered within their range until step 2, which knows how many lines came before.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.digests import text_hash
from data.formats.collection import Collection, find_collection
from data.formats.readers import Fault, Range, RangeEnd, corpus_ranges, empty_line, places_of, read_range
from data.formats.record_counts import MAX_QUARANTINED, RecordCounts
from data.tables import schemas
from data.tables.ragged import bounds_of
from data.tables.shards import BLOCK_ROWS, ShardWriter, open_footer, read_groups, table_of
from pipeline.stage import Cutting, Piece, Round, StageContext
from pipeline.stages.ingest import DUPLICATE, hash_of_passage, refuse_empty

_LEAST_BYTES = 64 << 20  # of the corpus's files: below that one pass is soon done
_RANGE_BYTES = 32 << 20  # a worker holds the passages of one range
_GROUPS = 32  # of shards, at most: a range's file has a row group for each
_ROWS_AT_ONCE = 1 << 13

PASSAGES = pa.schema(
    [
        *schemas.CORPUS,
        ("id_hash", pa.uint64()),
        ("line", pa.int64()),  # from 1 in the range
        # Of a broken line, which has no passage; these stand in the last row group.
        ("reason", pa.string()),
        ("record", pa.string()),
        ("detail", pa.string()),
    ]
)
REPEATED = pa.schema([("range", pa.int32()), ("line", pa.int64())])
_MERGED = "records"  # name of the one piece of step 2
_FAULTS = ["line", "reason", "record", "detail"]

Settle = Callable[[StageContext, RecordCounts], None]  # writes the quarantine; raises UserError where too many records are broken


@dataclass(frozen=True)
class CorpusInRanges:
    """The rounds and the tasks of the table, where its files are large and can be cut."""

    settle: Settle

    def rounds(self) -> tuple[Round, ...]:
        """Steps 1 and 2."""
        return Round(self._cut, _read), Round(self._cut_merging, self._merge)

    def are_cut(self, experiment: Experiment) -> bool:
        """Whether the corpus is read in ranges."""
        return bool(_ranges(_collection(experiment)))

    def groups(self, cutting: Cutting) -> list[tuple[int, ...]]:
        """The tasks of step 3, none where one task does it all."""
        if not self.are_cut(cutting.experiment):
            return []
        count = cutting.experiment.ingest.corpus_shards
        return [tuple(shards) for _, shards in itertools.groupby(cutting.shards, lambda shard: int(_group_of(shard, count)))]

    def build(self, context: StageContext) -> None:
        """Step 3, of shards of one group."""
        ranges = _RangeFiles(context, _ranges(_collection(context.experiment)))
        metadata, figures = open_footer(context.piece_path(_MERGED))
        repeated = read_groups(context.piece_path(_MERGED), range(metadata.num_row_groups), metadata)
        group = int(_group_of(context.shards[0], context.shard_count))
        with contextlib.ExitStack() as stack:
            writers = {shard: stack.enter_context(context.writer(shard, schemas.CORPUS)) for shard in context.shards}
            blocks = {shard: _InBlocks(writer) for shard, writer in writers.items()}
            for number in range(len(ranges)):
                table = ranges.read(number, group, [*schemas.CORPUS.names, "id_hash", "line"])
                gone = repeated.column("line").filter(pc.equal(repeated.column("range"), number)).to_numpy()
                table = table.filter(pa.array(~np.isin(table.column("line").to_numpy(), gone)))
                shards = table.column("id_hash").to_numpy() % np.uint64(context.shard_count)
                for shard, block in blocks.items():
                    block.write(table.select(schemas.CORPUS.names).take(pa.array(np.flatnonzero(shards == shard))))
            for block in blocks.values():
                block.close()
            if 0 in writers:  # the counts are of the whole table; one shard carries them
                writers[0].figures["counts"] = figures["counts"]

    def _cut(self, cutting: Cutting) -> list[Piece]:
        ranges = _ranges(_collection(cutting.experiment))
        return [Piece(cutting.round, _name(part), {"range": list(astuple(part))}) for part in ranges]

    def _cut_merging(self, cutting: Cutting) -> list[Piece]:
        return [Piece(cutting.round, _MERGED)] if self.are_cut(cutting.experiment) else []

    def _merge(self, context: StageContext, piece: Piece) -> None:
        collection = _collection(context.experiment)
        ranges = _RangeFiles(context, _ranges(collection))
        repeated = _repeated(ranges, _group_count(context.shard_count))
        report = RecordCounts()
        for _, parts in itertools.groupby(enumerate(ranges.ranges), lambda one: one[1].file):
            _count_file(report, collection, ranges, list(parts), repeated)
        refuse_empty(report, collection.corpus)
        self.settle(context, report)
        with context.piece_writer(piece, REPEATED) as writer:
            writer.figures["counts"] = report.counts
            for number, lines in repeated.items():
                writer.write(pa.table([np.full(len(lines), number, np.int32), lines], schema=REPEATED))


def _collection(experiment: Experiment) -> Collection:
    return find_collection(experiment.ingest.collection, format=experiment.ingest.format)


def _ranges(collection: Collection) -> list[Range]:
    """The corpus in ranges; none where it is small, or cannot be cut."""
    if not all(path.is_file() for path in collection.corpus) or sum(path.stat().st_size for path in collection.corpus) < _LEAST_BYTES:
        return []
    ranges = corpus_ranges(collection, _RANGE_BYTES)
    return ranges if len(ranges) > 1 else []


def _name(part: Range) -> str:
    return f"rows-{part.file:05d}-{part.start}-{'end' if part.stop is None else part.stop}"


def _group_count(shards: int) -> int:
    return min(shards, _GROUPS)


def _group_of(shard: Any, count: int) -> Any:
    """The group of a shard, or of an array of them."""
    return shard * _group_count(count) // count


def _read(context: StageContext, piece: Piece) -> None:
    """Step 1: the passages and broken lines of one range."""
    collection = _collection(context.experiment)
    report, end = RecordCounts(), RangeEnd()
    blocks = [PASSAGES.empty_table()]
    rows: list[tuple[Any, ...]] = []
    for place, passage in read_range(collection, Range(*piece.values["range"]), end):
        if isinstance(passage, Fault):
            report.broken(passage)
            continue
        report.kept += 1
        rows.append((*passage, text_hash(passage.text), hash_of_passage(passage.doc_id), place.number, None, None, None))
        if len(rows) == _ROWS_AT_ONCE:
            blocks.append(table_of(rows, PASSAGES))
            rows = []
    table = pa.concat_tables([*blocks, table_of(rows, PASSAGES)])
    shards = (table.column("id_hash").to_numpy() % np.uint64(context.shard_count)).astype(np.int64)
    groups = _group_of(shards, context.shard_count)
    order = np.argsort(groups, kind="stable")
    bounds = bounds_of(np.bincount(groups, minlength=_group_count(context.shard_count)))
    faults = [(None, None, None, None, fault.line, fault.reason, fault.record, fault.detail) for fault in report.kept_faults]
    with context.piece_writer(piece, PASSAGES) as writer:
        for start, stop in itertools.pairwise(bounds.tolist()):
            writer.write_row_group(table.take(pa.array(order[start:stop])))
        writer.write_row_group(table_of(faults, PASSAGES))
        writer.figures |= {"kept": report.kept, "broken": report.broken_by_reason, "lines": end.lines, "empty": end.empty}
    context.report("records", report.counts["in"])


class _RangeFiles:
    """What step 1 wrote of all ranges. Each footer is read once."""

    def __init__(self, context: StageContext, ranges: list[Range]) -> None:
        self.ranges = ranges
        self._paths = [context.piece_path(_name(part)) for part in ranges]
        footers: list[tuple[pq.FileMetaData, dict[str, Any]]] = [open_footer(path) for path in self._paths]
        self._metadata = [metadata for metadata, _ in footers]
        self.figures = [figures for _, figures in footers]

    def __len__(self) -> int:
        return len(self.ranges)

    def read(self, number: int, group: int, columns: list[str]) -> pa.Table:
        """A range's rows of a group, in order of lines; the last row group, -1, is the broken ones."""
        metadata = self._metadata[number]
        return read_groups(self._paths[number], [group % metadata.num_row_groups], metadata, columns=columns)


def _repeated(ranges: _RangeFiles, groups: int) -> dict[int, NDArray[np.int64]]:
    """Range -> its lines, in order, whose id an earlier line has: in this range or in one before."""
    found: dict[int, list[NDArray[np.int64]]] = {}
    for group in range(groups):
        tables = [ranges.read(number, group, ["id_hash", "line"]) for number in range(len(ranges))]
        hashes = np.concatenate([table.column("id_hash").to_numpy() for table in tables])
        order = np.argsort(hashes, kind="stable")
        again = np.sort(order[1:][hashes[order[1:]] == hashes[order[:-1]]])
        bounds = bounds_of(np.array([table.num_rows for table in tables]))
        for number, table in enumerate(tables):
            mine = again[slice(*np.searchsorted(again, bounds[number : number + 2]))] - bounds[number]
            if len(mine):
                found.setdefault(number, []).append(table.column("line").to_numpy()[mine])
    return {number: np.sort(np.concatenate(lines)) for number, lines in sorted(found.items())}


def _count_file(
    report: RecordCounts,
    collection: Collection,
    ranges: _RangeFiles,
    parts: list[tuple[int, Range]],
    repeated: dict[int, NDArray[np.int64]],
) -> None:
    """Add what became of the records of one file, in order of its lines."""
    before = empty = 0  # lines of the ranges before, and how many of the last ones of these are empty
    for number, part in parts:
        figures = ranges.figures[number]
        name = collection.name(collection.corpus[part.file])
        if figures["kept"] or figures["broken"]:
            for line in range(before - empty + 1, before + 1):
                report.broken(empty_line(name, line))
            empty = 0
            again = repeated.get(number, np.empty(0, np.int64))
            report.kept += figures["kept"] - len(again)
            told = again[: MAX_QUARANTINED - len(report.kept_faults)].tolist()
            for fault in _in_order(collection, part, _broken(ranges, number, name), told):
                report.broken(fault._replace(line=fault.line + before))
            for reason, count in _untold(ranges, number, figures["broken"]).items():
                report.more_broken(reason, count)
            if len(again) > len(told):
                report.more_broken(DUPLICATE, len(again) - len(told))
        empty += figures["empty"]
        before += figures["lines"]


def _broken(ranges: _RangeFiles, number: int, name: str) -> list[Fault]:
    table = ranges.read(number, -1, _FAULTS)
    return [Fault(name, *row) for row in zip(*(table.column(column).to_pylist() for column in _FAULTS), strict=True)]


def _untold(ranges: _RangeFiles, number: int, broken: dict[str, int]) -> dict[str, int]:
    """Broken records of a range, by reason, that come after those that it keeps."""
    told = Counter(ranges.read(number, -1, ["reason"]).column("reason").to_pylist())
    return {reason: count - told[reason] for reason, count in broken.items() if count > told[reason]}


def _in_order(collection: Collection, part: Range, broken: list[Fault], repeated: list[int]) -> Iterator[Fault]:
    """The faults of a range by line; those of repeated ids are read again, to be shown."""
    again = [place.fault(DUPLICATE) for place in places_of(collection, part, frozenset(repeated))] if repeated else []
    return iter(sorted([*broken, *again], key=lambda fault: fault.line))


class _InBlocks:
    """Rows to a shard in tables of `BLOCK_ROWS`, as rows that come one by one reach it: the pages of a file are cut by these."""

    def __init__(self, writer: ShardWriter) -> None:
        self._writer = writer
        self._waiting = schemas.CORPUS.empty_table()

    def write(self, table: pa.Table) -> None:
        """Append rows."""
        self._waiting = pa.concat_tables([self._waiting, table])
        while self._waiting.num_rows >= BLOCK_ROWS:
            self._writer.write(self._waiting.slice(0, BLOCK_ROWS).combine_chunks())
            self._waiting = self._waiting.slice(BLOCK_ROWS)

    def close(self) -> None:
        """Append what waits."""
        if self._waiting.num_rows:
            self._writer.write(self._waiting.combine_chunks())
