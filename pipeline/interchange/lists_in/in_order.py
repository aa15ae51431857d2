"""The run and the judgements of all queries, in the order in which the queries were first read."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline.interchange.lists_in.spill import Spill, bucket_ranges

_TAG = "imported"


def write_lists(rows: Spill, *, run: Path, qrels: Path) -> None:
    """`run` gets the candidates of each query without its positives; their score is the number of those from them on, so the order stays.

    `qrels` gets the positives in BEIR's form. Rows are those of `grouping.ROWS`.
    """
    with open(run, "wb") as run_file, open(qrels, "wb") as qrels_file:
        qrels_file.write(b"query-id\tcorpus-id\tscore\n")
        for buckets in bucket_ranges(rows):
            table = rows.read(buckets)
            order = np.lexsort((table.column("number").to_numpy(), table.column("first_list").to_numpy()))
            frame = pl.DataFrame(pl.from_arrow(table.take(pa.array(order))))
            _write(_run_columns(frame.filter(pl.col("in_run"))), run_file)
            _write(frame.filter(pl.col("relevance") > 0).select("query_id", "doc_id", "relevance"), qrels_file)


def _run_columns(frame: pl.DataFrame) -> pl.DataFrame:
    rank = pl.int_range(1, pl.len() + 1).over("first_list")
    score = pl.len().over("first_list") - rank + 1
    return frame.select("query_id", pl.lit("Q0").alias("Q0"), "doc_id", rank.alias("rank"), score.alias("score"), pl.lit(_TAG).alias("tag"))


def _write(frame: pl.DataFrame, file: IO[bytes]) -> None:
    """Columns between tabs: ids may hold spaces and quotes."""
    frame.write_csv(file, separator="\t", include_header=False, quote_style="never")
