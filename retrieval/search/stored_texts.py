"""The texts of some passages or queries out of a stored table."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import pyarrow as pa

from data.errors import UserError
from data.tables.shards import read_row_groups
from retrieval.search.embedding_table import table_paths


def texts_of(ids: Collection[str], folder: Path, *, id_name: str) -> dict[str, str]:
    """id -> text of those ids that the table has. Reads a row group at a time: memory is that of the texts asked for.

    Args:
        ids: the wanted ones.
        folder: a stored table of schema CORPUS or QUERIES.
        id_name: doc_id or query_id.

    Raises:
        UserError: no such table, or it has no such columns.
    """
    wanted, texts = set(ids), dict[str, str]()
    for path in table_paths(folder):
        for group in _text_groups(path, id_name):
            listed = group.column(id_name).to_pylist()
            rows = [row for row, identifier in enumerate(listed) if identifier in wanted]
            texts.update(zip((listed[row] for row in rows), group.column("text").take(pa.array(rows, pa.int64())).to_pylist(), strict=True))
    return texts


def _text_groups(path: Path, id_name: str) -> Iterator[pa.Table]:
    for group in read_row_groups(path):
        if not {id_name, "text"} <= set(group.column_names):
            columns = ", ".join(group.column_names)
            raise UserError(f"{path} has columns {columns}; expected {id_name} and text: a table of `prep run stage=ingest`")
        yield group
