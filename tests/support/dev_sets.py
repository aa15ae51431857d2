"""Dev sets of made-up tokens, written as the stage does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.digests import canonical_json
from data.tables.manifest import Manifest, ShardRecord
from data.tables.schemas import DEV, SCHEMA_VERSION, DevRole
from data.tables.shards import describe, open_shard
from retrieval.model_files.files import tokenizer_digest


def write_dev_set(folder: Path, make_row: Callable[..., Any], *, student: Path, queries: range, **metadata: Any) -> Path:
    """Queries and passages of training rows, those of seed 1 by their numbers; the first passage of each row is its query's positive."""
    generator = np.random.default_rng(1)
    made = [make_row(generator, f"q{number:02d}") for number in range(queries.stop)][queries.start :]
    return write_dev_rows(folder, made, student=student, **metadata)


def write_dev_rows(folder: Path, made: list[dict[str, Any]], *, student: Path, **metadata: Any) -> Path:
    """The same of training rows that are given."""
    rows: list[tuple[Any, ...]] = [(DevRole.QUERY, row["query_id"], row["query_tokens"], [row["candidate_id"][0]], [1]) for row in made]
    passages = {row["candidate_id"][place]: row["candidate_tokens"][place] for row in made for place in range(4)}
    rows += [(DevRole.PASSAGE, doc_id, tokens, [], []) for doc_id, tokens in sorted(passages.items())]
    told = {"schema_version": SCHEMA_VERSION, "tokenizer": tokenizer_digest(student), "split": "dev", **metadata}
    table = pa.table([list(column) for column in zip(*rows, strict=True)], schema=DEV.with_metadata({"dev": canonical_json(told)}))
    with open_shard(folder / "part-00000-of-00001.parquet", table.schema, {}) as writer:
        writer.write(table)
    record = ShardRecord("part-00000-of-00001.parquet", *describe(folder / "part-00000-of-00001.parquet"))
    Manifest("dev", metadata.get("name", ""), "f", {}, [record], {}).write(folder)
    return folder
