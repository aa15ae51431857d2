"""A run file parsed once for all shards of queries: a piece for each of them has its entries.

The run's own piece, which comes last, says that all are there.
"""

from __future__ import annotations

import contextlib

import numpy as np
import polars as pl
import pyarrow as pa

from data.remote.cache import local_file
from data.tables.shards import read_shard
from pipeline.negatives.sources import RUN_ENTRIES, run_entries
from pipeline.pooling.asked import corpus_of, training_queries
from pipeline.stage import Piece, StageContext

RUN = "run"  # name of the run's own piece
_SHARDS_AT_ONCE = 512  # open files; more shards are served by another pass over the run
_SHARDS = pa.schema([("shard", pa.int32()), ("entries", pa.int64())])


def split_run(context: StageContext, piece: Piece) -> None:
    """Write each shard's entries of the run, in the order of the file. Raises UserError where a line is bad."""
    path = local_file(context.experiment.hard_negatives.run_file or "")
    with context.piece_writer(piece, _SHARDS) as done:
        for start in range(0, context.shard_count, _SHARDS_AT_ONCE):
            shards = range(start, min(start + _SHARDS_AT_ONCE, context.shard_count))
            place_of, of_shard, place_in = _places(context, shards)
            counts = np.zeros(len(shards), np.int64)
            with contextlib.ExitStack() as stack:
                writers = [stack.enter_context(context.piece_writer(Piece(piece.round, _name(shard)), RUN_ENTRIES)) for shard in shards]
                for entries in run_entries(path, place_of, corpus_of(context)):
                    places = entries["place"].to_numpy()
                    mine = entries.with_columns(place=pl.Series(place_in[places]), shard=pl.Series(of_shard[places]))
                    for (number,), part in mine.group_by(["shard"], maintain_order=True):
                        writers[number].write(part.select(RUN_ENTRIES.names).to_arrow())
                    counts += np.bincount(of_shard[places], minlength=len(shards))
                    context.report("entries", len(entries))
            done.write(pa.table([np.array(shards, np.int32), counts], schema=_SHARDS))


def entries_of(context: StageContext) -> pl.DataFrame:
    """The run's entries of the queries of the task's shard, by their places among its training queries."""
    return pl.DataFrame(pl.from_arrow(read_shard(context.piece_path(_name(context.shard)))))


def _name(shard: int) -> str:
    return f"{RUN}-{shard:05d}"


def _places(context: StageContext, shards: range) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """(number of each training query of some shards; by this number its shard, from the first of these, and its place in it)."""
    ids = [training_queries(context, shard).column("query_id").to_pylist() for shard in shards]
    numbers = {query_id: number for number, query_id in enumerate(query_id for mine in ids for query_id in mine)}
    lengths = [len(mine) for mine in ids]
    place_in = np.concatenate([np.empty(0, np.int64), *(np.arange(length) for length in lengths)])
    return numbers, np.repeat(np.arange(len(ids)), lengths), place_in
