"""Queries of one text: what differs in case or spaces alone is the same question, under whatever id and in whatever split."""

from __future__ import annotations

import pyarrow as pa

from data.digests import text_hash
from pipeline.stage import Stored


def folded(text: str) -> str:
    """What is the same for two queries that differ in case or spaces alone."""
    return " ".join(text.casefold().split())


def equal_queries(mine: pa.Table, queries: Stored) -> dict[str, list[str]]:
    """Of each query the ids of all judged queries that have its text, itself among them, in the order of their table.

    Args:
        mine: some rows of `ingest.queries`.
        queries: all of it. Only texts that are equal to the byte lie in one shard, so all are read, a row group at a time.
    """
    own = _hashes(mine)
    ids_of: dict[int, list[str]] = {hashed: [] for hashed in own}
    for group in queries.row_groups():
        for query_id, hashed in zip(group.column("query_id").to_pylist(), _hashes(group), strict=True):
            if hashed in ids_of:
                ids_of[hashed].append(query_id)
    return {query_id: ids_of[hashed] for query_id, hashed in zip(mine.column("query_id").to_pylist(), own, strict=True)}


def _hashes(queries: pa.Table) -> list[int]:
    return [text_hash(folded(text)) for text in queries.column("text").to_pylist()]
