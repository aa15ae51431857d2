"""A small dev set of the training rows themselves, so that training helps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from data.digests import canonical_json
from data.tables.manifest import Manifest, ShardRecord
from data.tables.schemas import DEV, SCHEMA_VERSION, DevRole
from data.tables.shards import describe, open_shard
from retrieval.model_files.files import tokenizer_digest


def write_dev_set(folder: Path, made: list[dict[str, Any]], *, student: Path) -> Path:
    """Rows of `support.training.make_row` as queries, their first four candidates as passages."""
    rows: list[tuple[Any, ...]] = [(DevRole.QUERY, row["query_id"], row["query_tokens"], [row["candidate_id"][0]], [1]) for row in made]
    passages = {row["candidate_id"][place]: row["candidate_tokens"][place] for row in made for place in range(4)}
    rows += [(DevRole.PASSAGE, doc_id, tokens, [], []) for doc_id, tokens in sorted(passages.items())]
    metadata = {"schema_version": SCHEMA_VERSION, "tokenizer": tokenizer_digest(student), "split": "dev", "depth": 3, "random": 0}
    table = pa.table([list(column) for column in zip(*rows, strict=True)], schema=DEV.with_metadata({"dev": canonical_json(metadata)}))
    name = "part-00000-of-00001.parquet"
    with open_shard(folder / name, table.schema, {}) as writer:
        writer.write(table)
    Manifest("dev", "", "f", {}, [ShardRecord(name, *describe(folder / name))], {}).write(folder)
    return folder
