"""An approximate index of a corpus as a stored table: one faiss index for each shard of vectors, so that each is built alone.

IVF and HNSW are for corpora whose exact search takes too long. What they find is scored exactly, so scores never depend on the index; how
much they miss is measured against exact search on a sample of the queries (`Searcher.recall`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from data.config.settings import Search
from data.digests import json_digest
from data.errors import UserError
from data.tables.manifest import Manifest, ShardRecord, refuse_others
from data.tables.schemas import INDEX
from data.tables.shards import describe, open_shard, read_footer, read_row_groups
from retrieval.search.embedding_table import EmbeddingTable, embedding_matrix, manifest_of, table_paths
from retrieval.search.exact import Candidates, Vectors
from retrieval.search.faiss_index import build_index, open_index, search_index

_PART_BYTES = 16 << 20
_OF_BUILDING = {"ivf": ("index", "lists"), "hnsw": ("index", "links", "build_width")}


def building_key(settings: Search) -> dict[str, Any]:
    """The settings that decide an index's bytes."""
    return {name: getattr(settings, name) for name in _OF_BUILDING[settings.index]}


def index_parts(vectors: Path, settings: Search) -> Iterator[pa.Table]:
    """A shard of embeddings to the rows of its index (schema `INDEX`): a faiss index as bytes, in parts; none for no vectors."""
    groups = [embedding_matrix(group) for group in read_row_groups(vectors, columns=["embedding"])]
    rows = sum(map(len, groups))
    if not rows:
        return
    content = build_index(np.concatenate(groups), settings)
    for start in range(0, len(content), _PART_BYTES):
        yield pa.table([[rows], [content[start : start + _PART_BYTES]]], schema=INDEX)


def build_index_table(vectors: Path, out: Path, settings: Search, *, report: Callable[[str], None] = lambda line: None) -> None:
    """Index a stored table of embeddings shard by shard into the folder `out`; shards that are complete there are kept, the manifest
    comes last.

    Raises UserError: `vectors` is no such table or quantised, or `out` holds the index of other vectors or of another kind.
    """
    table = EmbeddingTable(vectors, "doc_id")
    if table.precision != "fp16":
        raise UserError(f"corpus={vectors} is stored as {table.precision}; an index is of vectors in fp16: encode them with precision=auto")
    source = table.manifest
    key = {"vectors": source.content_digest, **building_key(settings)}
    fingerprint = json_digest(key)
    footers = {shard.name: read_footer(out / shard.name) for shard in source.shards}
    refuse_others(out, fingerprint, footers, what="an index of other vectors or of another kind")
    for shard in source.shards:
        if footers[shard.name] is None:
            with open_shard(out / shard.name, INDEX, {"fingerprint": fingerprint}) as writer:
                for part in index_parts(vectors / shard.name, settings):
                    writer.write_row_group(part)
            report(f"{shard.name}: {shard.rows:,} vectors")
    records = [ShardRecord(shard.name, *describe(out / shard.name)) for shard in source.shards]
    Manifest("index", "", fingerprint, key, records, {"in": source.rows, "kept": source.rows, "dropped": {}}).write(out)


def index_key(folder: Path, corpus: EmbeddingTable) -> dict[str, Any]:
    """What an index in `folder` is the index of. Raises UserError where there is none, or it is of other vectors."""
    manifest = manifest_of(folder)
    if manifest.stage != "index":
        raise UserError(f"index={folder} holds no index: make one with `retrieve index`")
    own = manifest.key.get("vectors") or manifest.key.get("inputs", {}).get("embed.corpus")  # of `retrieve index`, of `prep`
    if own != corpus.manifest.content_digest:
        raise UserError(f"index={folder} is of other vectors than corpus={corpus.folder}")
    return {"index": manifest.content_digest}


class IndexEngine:
    """An engine of `exact_search` that takes what the indexes find for the truth: nothing is proved."""

    def __init__(self, folder: Path, settings: Search, *, threads: int) -> None:
        self._paths = table_paths(folder)
        self._settings = settings
        self._threads = threads

    def __call__(self, queries: Vectors, blocks: Iterable[tuple[int, Vectors]], k: int) -> Candidates:
        """The candidates of all shards' indexes, one index in memory at a time."""
        rows = np.full((len(queries), k), -1, dtype=np.int64)
        scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
        first_row = 0
        for path in self._paths:
            count, content = _content(path)
            if not count:
                continue
            index = open_index(content, self._settings)
            found_scores, found = search_index(index, queries, min(k, count), threads=self._threads)
            scores = np.concatenate([scores, np.where(found >= 0, found_scores, -np.inf)], axis=1)
            rows = np.concatenate([rows, np.where(found >= 0, found + first_row, -1)], axis=1)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
            scores, rows = np.take_along_axis(scores, best, axis=1), np.take_along_axis(rows, best, axis=1)
            first_row += count
        return Candidates(rows, np.full(len(queries), -np.inf))


def _content(path: Path) -> tuple[int, bytes]:
    """(vectors of the shard, bytes of its index)."""
    rows = [row for group in read_row_groups(path) for row in group.to_pylist()]
    return rows[0]["rows"] if rows else 0, b"".join(row["part"] for row in rows)
