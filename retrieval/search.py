"""Search over stored embeddings: a folder of vector shards is read once, block by block, for all queries."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.errors import UserError
from data.manifest import Manifest
from data.shards import read_row_groups

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
    """(ids, [n, D] fp32 vectors) of a whole stored table: for queries; a corpus is read in blocks.

    Raises UserError where the table holds no row, or other ids or columns than asked for.
    """
    groups = [group for path in table_paths(folder) for group in _embedding_groups(path, id_name=id_name)]
    if not groups:
        raise UserError(f"{folder} holds no embeddings: its table is empty")
    ids = [identifier for group in groups for identifier in group.column(id_name).to_pylist()]
    return ids, np.concatenate([embedding_matrix(group) for group in groups])


def _embedding_groups(path: Path, *, id_name: str) -> Iterator[pa.Table]:
    for group in read_row_groups(path):
        if set(group.column_names) != {id_name, "embedding"}:
            raise UserError(f"{path} has columns {', '.join(group.column_names)}; expected {id_name} and embedding")
        yield group


def same_student(queries_folder: Path, corpus_folder: Path) -> bool:
    """False where both manifests name the model they were embedded with, and it is not the same: their scores would mean nothing."""
    queries, corpus = (_student_key(Manifest.read(folder)) for folder in (queries_folder, corpus_folder))
    both = queries.keys() & corpus.keys() & _MUST_AGREE
    return all(queries[name] == corpus[name] for name in both)


_MUST_AGREE = {"weights", "tokenizer", "layers", "pooling", "normalize"}


def _student_key(manifest: Manifest | None) -> dict[str, Any]:
    key = manifest.key if manifest else {}
    return key.get("student") or key.get("settings", {}).get("student") or {}


def search_embeddings(query_ids: list[str], query_vectors: NDArray[np.float32], corpus_folder: Path, *, k: int, threads: int = 1) -> Ranked:
    """The k best passages of each query by inner product over a stored corpus, ties by doc_id (by row at the cut).

    Args:
        query_ids: n ids.
        query_vectors: [n, D].
        corpus_folder: an embeddings table with its manifest, read once, a row group at a time.
        k: passages a query; fewer where the corpus is smaller.
        threads: see `exact_search`.

    Raises:
        UserError: no such table, or its vectors have another size than the queries'.
    """
    from retrieval.index import exact_search, ranked_ids  # here, so that reading labels from a table loads no faiss

    doc_ids: list[str] = []

    def blocks() -> Iterator[tuple[int, NDArray[np.float32]]]:
        for path in table_paths(corpus_folder):
            for group in _embedding_groups(path, id_name="doc_id"):
                first_row = len(doc_ids)
                doc_ids.extend(group.column("doc_id").to_pylist())
                yield first_row, embedding_matrix(group)

    try:
        scores, rows = exact_search(query_vectors, blocks(), k=k, threads=threads)
    except ValueError as error:
        raise UserError(f"{corpus_folder} cannot be searched with these queries: {error}") from error
    return {query_id: ranked_ids(scores[place], rows[place], doc_ids) for place, query_id in enumerate(query_ids)}
