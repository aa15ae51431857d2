"""Search over stored embeddings: a folder of vector shards is read once, block by block, for all queries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.errors import UserError
from data.manifest import Manifest
from data.shards import read_row_groups
from retrieval.index import exact_search

Ranked = dict[str, tuple[list[str], list[float]]]  # query_id -> (doc_ids, scores), best first, ties by id


def table_paths(folder: Path) -> list[Path]:
    """The shards of a stored table, from its manifest."""
    manifest = Manifest.read(folder)
    if manifest is None:
        raise UserError(f"{folder} is no stored table: it has no manifest.json (is its stage complete? see `prep path`)")
    return [folder / shard.name for shard in manifest.shards]


def embedding_matrix(table: pa.Table) -> NDArray[np.float32]:
    """[n, D] fp32 vectors of a table's `embedding` column."""
    size = table.schema.field("embedding").type.list_size
    parts = [chunk.flatten().to_numpy(zero_copy_only=False).reshape(-1, size) for chunk in table.column("embedding").chunks]
    return np.concatenate(parts).astype(np.float32) if parts else np.empty((0, size), dtype=np.float32)


def read_embeddings(folder: Path, *, id_name: str) -> tuple[list[str], NDArray[np.float32]]:
    """(ids, [n, D] fp32 vectors) of a whole stored table: for queries; a corpus is read in blocks."""
    groups = [group for path in table_paths(folder) for group in read_row_groups(path)]
    ids = [identifier for group in groups for identifier in group.column(id_name).to_pylist()]
    return ids, np.concatenate([embedding_matrix(group) for group in groups])


def search_embeddings(query_ids: list[str], query_vectors: NDArray[np.float32], corpus_folder: Path, *, k: int, threads: int = 1) -> Ranked:
    """The k best passages of each query by inner product over a stored corpus, ties by doc_id."""
    doc_ids: list[str] = []

    def blocks() -> Iterator[tuple[int, NDArray[np.float32]]]:
        for path in table_paths(corpus_folder):
            for group in read_row_groups(path):
                first_row = len(doc_ids)
                doc_ids.extend(group.column("doc_id").to_pylist())
                yield first_row, embedding_matrix(group)

    scores, rows = exact_search(query_vectors, blocks(), k=k, threads=threads)
    return {query_id: _ordered(scores[place], rows[place], doc_ids) for place, query_id in enumerate(query_ids)}


def _ordered(scores: NDArray[np.float32], rows: NDArray[np.int64], doc_ids: list[str]) -> tuple[list[str], list[float]]:
    found = [(doc_ids[row], float(score)) for score, row in zip(scores, rows, strict=True) if row >= 0]
    found.sort(key=lambda entry: (-entry[1], entry[0]))
    return [doc_id for doc_id, _ in found], [score for _, score in found]
