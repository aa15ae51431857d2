"""The kinds of stored tables that `retrieve` reads, told apart by their columns. One in place of another is refused before any work."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.parquet as pq

from data.errors import UserError
from data.files.what_lies import table_name, what_lies
from data.tables.manifest import MANIFEST_NAME, Manifest

TableKind = Literal["texts", "corpus texts", "query texts", "corpus vectors", "query vectors", "index", "qrels"]
_KINDS: dict[TableKind, tuple[tuple[str, ...], str]] = {  # columns, and what they are
    "texts": (("text",), "texts of passages or queries (`prep path stage=ingest`)"),
    "corpus texts": (("doc_id", "text"), "texts of passages (`prep path stage=ingest table=corpus`)"),
    "query texts": (("query_id", "text"), "texts of queries (`prep path stage=ingest table=queries`)"),
    "corpus vectors": (("doc_id", "embedding"), "embeddings of passages (`prep path stage=embed table=corpus`)"),
    "query vectors": (("query_id", "embedding"), "embeddings of queries (`prep path stage=embed table=queries`)"),
    "index": (("rows", "part"), "an index (`retrieve index`, or `prep path stage=index`)"),
    "qrels": (("split", "query_id", "doc_id", "relevance"), "labels (`prep path stage=ingest table=qrels`)"),
}


def checked_table(folder: Path, kind: TableKind, *, key: str) -> Path:
    """The folder. Raises UserError, naming the argument `key` that gave it, where it holds no table of this kind."""
    required, meaning = _KINDS[kind]
    expected = f"expected {' and '.join(required)}: {meaning}"
    manifest = Manifest.read(folder)
    if manifest is None:
        raise UserError(f"{key}={folder} is no stored table (it has no {MANIFEST_NAME}): it is {what_lies(folder)}; {expected}")
    try:
        columns = pq.read_schema(folder / manifest.shards[0].name).names if manifest.shards else list(required)
    except (OSError, pa.ArrowException):
        return folder  # whoever reads it says what is damaged
    if not set(required) <= set(columns):
        raise UserError(f"{key}={folder} is {table_name(manifest)}, with the columns {', '.join(columns)}; {expected}")
    return folder


def is_of_kind(folder: Path, kind: TableKind) -> bool:
    """Whether a folder holds a table of this kind, as far as can be told without an error."""
    try:
        checked_table(folder, kind, key="")
    except UserError:
        return False
    return True
