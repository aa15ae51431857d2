"""The texts of some passages or queries out of a stored table."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from data.tables.shards import read_row_groups
from retrieval.search.embedding_table import table_paths


def texts_of(ids: Collection[str], folder: Path, *, id_name: str) -> dict[str, str]:
    """id -> text of those ids that the table (schema CORPUS or QUERIES) has. In memory are these and one row group."""
    requested = pa.array(sorted(set(ids)), pa.string())
    texts: dict[str, str] = {}
    for path in table_paths(folder):
        for group in read_row_groups(path, columns=[id_name, "text"]):
            found = group.filter(pc.is_in(group.column(id_name), value_set=requested))
            texts.update(zip(found.column(id_name).to_pylist(), found.column("text").to_pylist(), strict=True))
    return texts


def known_ids(ids: Collection[str], folder: Path, *, id_name: str) -> set[str]:
    """Those of the ids that the table has. Its texts are not read."""
    requested = pa.array(sorted(set(ids)), pa.string())
    found: set[str] = set()
    for path in table_paths(folder):
        for group in read_row_groups(path, columns=[id_name]):
            column = group.column(id_name)
            found.update(column.filter(pc.is_in(column, value_set=requested)).to_pylist())
    return found
