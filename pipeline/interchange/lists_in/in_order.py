"""The run and the judgements of all queries, in the order in which the queries were first read."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.interchange.lists_in.spill import Spill, bucket_ranges

_TAG = "imported"


def in_order(lists: Iterable[pa.Table], rows: Spill, *, count: int) -> Iterator[pa.Table]:
    """Lists of any order in that of their queries' first ones, by way of the disk. `count` is how many lists were read."""
    width = np.uint64(0xFFFFFFFFFFFFFFFF) // np.uint64(max(1, count)) or np.uint64(1)
    for table in lists:
        rows.add(table, table.column("first_list").to_numpy().astype(np.uint64) * width)
    for buckets in bucket_ranges(rows):
        table = rows.read(buckets)
        order = np.lexsort((table.column("number").to_numpy(), table.column("first_list").to_numpy()))
        yield table.take(pa.array(order))


def write_lists(lists: Iterable[pa.Table], *, run: Path, qrels: Path) -> None:
    """`run` gets the candidates of each query without its positives; their score is the number of those from them on, so the order stays.

    `qrels` gets the positives in BEIR's form. Tables are those of `grouping.ROWS`, a query's rows in one of them.
    """
    with open(run, "wb") as run_file, open(qrels, "wb") as qrels_file:
        qrels_file.write(b"query-id\tcorpus-id\tscore\n")
        for table in lists:
            frame = pl.DataFrame(pl.from_arrow(table))
            _write(_run_columns(frame.filter(pl.col("in_run"))), run_file)
            _write(frame.filter(pl.col("relevance") > 0).select("query_id", "doc_id", "relevance"), qrels_file)


def _run_columns(frame: pl.DataFrame) -> pl.DataFrame:
    """Rows of a query stand together."""
    lists = frame["first_list"].to_numpy()
    begins = np.flatnonzero(np.diff(lists, prepend=-1))
    sizes = np.diff(begins, append=len(lists))
    rank = np.arange(len(lists)) - np.repeat(begins, sizes) + 1
    own = [pl.Series("rank", rank), pl.Series("score", np.repeat(sizes, sizes) - rank + 1)]
    constant = [pl.lit("Q0").alias("Q0"), pl.lit(_TAG).alias("tag")]
    return frame.with_columns(*own, *constant).select("query_id", "Q0", "doc_id", "rank", "score", "tag")


def _write(frame: pl.DataFrame, file: IO[bytes]) -> None:
    """Columns between tabs: ids may hold spaces and quotes."""
    frame.write_csv(file, separator="\t", include_header=False, quote_style="never")
