"""Tables of embeddings that no student made, and what is read of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.tables.manifest import Manifest, ShardRecord
from data.tables.schemas import embeddings
from data.tables.shards import describe, open_shard, read_row_groups, shard_name
from retrieval.search import embedding_table
from retrieval.search.embedding_table import EmbeddingTable


def draw(rows: int, size: int, *, seed: int) -> NDArray[np.float16]:
    """[rows, size] vectors."""
    return np.random.default_rng(seed).standard_normal((rows, size)).astype(np.float16)


def stored(
    folder: Path, vectors: NDArray[np.float16], *, shards: int = 3, id_name: str = "doc_id", groups: int | None = None
) -> EmbeddingTable:
    """A table of embeddings; an empty shard among the others. `groups`: rows of a row group."""
    size, records = vectors.shape[1], []
    schema = embeddings(size, id_name=id_name)
    bounds = np.linspace(0, len(vectors), shards).astype(int).tolist()
    for shard, (start, stop) in enumerate(zip([0, *bounds], [*bounds, len(vectors)], strict=True)):
        path = folder / shard_name(shard, shards + 1)
        with open_shard(path, schema, {}) as writer:
            for first in range(start, max(start + 1, stop), groups or max(1, stop - start)):
                end = min(stop, first + (groups or stop))
                column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[first:end].reshape(-1)), size)
                rows = pa.table([[f"d{row:05d}" for row in range(first, end)], column], schema=schema)
                (writer.write_row_group if groups and end > first else writer.write)(rows)
        records.append(ShardRecord(path.name, *describe(path)))
    Manifest("embed", "corpus", "", {}, records, {}).write(folder)
    return EmbeddingTable(folder, id_name)


class Reads:
    """Bytes of columns that were read of tables of embeddings."""

    bytes = 0


@contextmanager
def reads_counted() -> Iterator[Reads]:
    """Inside, reads of vectors and ids grow a count."""
    reads = Reads()

    def counted(path: Path, **more: Any) -> Iterator[pa.Table]:
        for group in read_row_groups(path, **more):
            reads.bytes += group.nbytes
            yield group

    with mock.patch.object(embedding_table, "read_row_groups", counted):
        yield reads
