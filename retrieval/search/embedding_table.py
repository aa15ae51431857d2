"""Stored embeddings: a folder of vector shards with its manifest, read block by block."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.errors import UserError
from data.tables.manifest import Manifest, ShardRecord
from data.tables.shards import group_rows, read_footer, read_row_groups
from retrieval.encoding.vector_formats import VectorFormat, first_dimensions


def table_paths(folder: Path) -> list[Path]:
    """The shards of a stored table, from its manifest."""
    return [folder / shard.name for shard in manifest_of(folder).shards]


def manifest_of(folder: Path) -> Manifest:
    """The manifest of a stored table. Raises UserError where there is none."""
    manifest = Manifest.read(folder)
    if manifest is None:
        raise UserError(f"{folder} is no stored table: it has no manifest.json (is its stage complete? see `prep path`)")
    return manifest


def embedding_matrix(table: pa.Table) -> NDArray[np.float16]:
    """[n, D] fp16 vectors of a table's `embedding` column; of one chunk they are not copied.

    Raises UserError where they are stored otherwise.
    """
    if (kind := table.schema.field("embedding").type.value_type) != pa.float16():
        raise UserError(f"vectors in fp16 are needed here, and these are stored as {kind}: encode them again with precision=auto")
    return _stored_numbers(table)


def _stored_numbers(table: pa.Table) -> NDArray[Any]:
    """[n, W] numbers of a table's `embedding` column, of its own type."""
    kind = table.schema.field("embedding").type
    dtype = np.dtype(kind.value_type.to_pandas_dtype())
    flat = [chunk.flatten() for chunk in table.column("embedding").chunks]
    # As they lie in memory: Arrow's own `to_numpy` imports pandas where it is installed, 0.15 s and 30 MB.
    parts = [np.frombuffer(part.buffers()[1], dtype, count=len(part), offset=dtype.itemsize * part.offset) for part in flat]
    rows = [part.reshape(-1, kind.list_size) for part in parts]
    return rows[0] if len(rows) == 1 else np.concatenate([np.empty((0, kind.list_size), dtype), *rows])


@dataclass(frozen=True)
class EmbeddingTable:
    """The vectors of a corpus or of queries, in row order, as fp16 however they are stored. Iterating reads the shards once more."""

    folder: Path
    id_name: str  # doc_id or query_id
    dimensions: int | None = None  # first ones that are kept of a vector, which gets length 1 again where its student normalises
    shards: range | None = None  # the only ones that there are, rows numbered from their first; None: all

    @cached_property
    def manifest(self) -> Manifest:
        """Shards, rows and key of the table."""
        return manifest_of(self.folder)

    @property
    def rows(self) -> int:
        """N, the number of vectors."""
        return sum(shard.rows for shard in self._records)

    @property
    def _records(self) -> list[ShardRecord]:
        shards = self.manifest.shards
        return shards if self.shards is None else shards[self.shards.start : self.shards.stop]

    @property
    def _paths(self) -> list[Path]:
        return [self.folder / shard.name for shard in self._records]

    @cached_property
    def size(self) -> int:
        """D, dimensions; 0 where there is no vector."""
        return next((vectors.shape[1] for _, vectors in self), 0)

    def __iter__(self) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """(number of the first row, [b, D] fp16 vectors), a row group at a time."""
        first_row = 0
        for path in self._paths:
            for group in read_row_groups(path, columns=["embedding"]):
                yield first_row, self._vectors(group)
                first_row += group.num_rows

    def between(self, start: int, stop: int) -> Iterator[tuple[int, NDArray[np.float16]]]:
        """(number of the first row, vectors) of the rows start..stop-1, a row group at a time; only groups that have some are read."""
        first_row = 0
        for path, shard in zip(self._paths, self._records, strict=True):
            if first_row < stop and start < first_row + shard.rows:
                edges = np.cumsum([first_row, *group_rows(path)]).tolist()
                groups = [number for number, (row, end) in enumerate(itertools.pairwise(edges)) if row < stop and start < end]
                for number, group in zip(groups, read_row_groups(path, columns=["embedding"], groups=groups), strict=True):
                    row, end = max(start, edges[number]), min(stop, edges[number + 1])
                    yield row, self._vectors(group)[row - edges[number] : end - edges[number]]
            first_row += shard.rows

    @property
    def precision(self) -> str:
        """What the vectors are stored as: fp16, or one of `QUANTIZED`."""
        return str(self.manifest.key.get("stored", "fp16"))

    @cached_property
    def _format(self) -> VectorFormat:
        return VectorFormat.of_footer(read_footer(self._paths[0]) or {})

    def _vectors(self, group: pa.Table) -> NDArray[np.float16]:
        """Raises UserError where they have fewer than `dimensions`."""
        vectors = embedding_matrix(group) if self.precision == "fp16" else self._format.restore(_stored_numbers(group))
        if self.dimensions is None:
            return vectors
        if self.dimensions > vectors.shape[1]:
            raise UserError(f"dimensions={self.dimensions}: the vectors of {self.folder} have {vectors.shape[1]}")
        return first_dimensions(vectors, self.dimensions, normalize=bool(self.student_key.get("normalize")))

    @cached_property
    def ids(self) -> pa.ChunkedArray:
        """[N] ids as Arrow strings: their bytes and 8 more each, where Python strings take 60."""
        groups = (group for path in self._paths for group in read_row_groups(path, columns=[self.id_name]))
        parts = [chunk.cast(pa.large_string()) for group in groups for chunk in group.column(self.id_name).chunks]
        return pa.chunked_array(parts, pa.large_string())

    def matrix(self, *, threads: int = 1) -> NDArray[np.float16]:
        """[N, D], all of it in memory. Each thread reads a part of each file: most of the time goes into unpacking.

        Raises UserError where the table holds no row.
        """
        if not self.rows:
            raise UserError(f"{self.folder} holds no embeddings: its table is empty")
        matrix = np.empty((self.rows, self.size), dtype=np.float16)

        def read(path: Path, groups: range, row: int) -> None:
            for group in read_row_groups(path, columns=["embedding"], groups=groups):
                matrix[row : row + group.num_rows] = self._vectors(group)
                row += group.num_rows

        first_row = 0
        with ThreadPoolExecutor(threads) as executor:
            reads = []
            for path in self._paths:
                starts = np.cumsum([first_row, *group_rows(path)])
                cuts = np.linspace(0, len(starts) - 1, threads + 1).astype(int).tolist()
                reads += [executor.submit(read, path, range(start, end), int(starts[start])) for start, end in itertools.pairwise(cuts)]
                first_row = int(starts[-1])
            for done in reads:
                done.result()
        return matrix

    @property
    def student_key(self) -> dict[str, Any]:
        """What the manifest says of the model: weights, tokenizer, pooling. Empty where it says nothing."""
        key = self.manifest.key
        return key.get("student") or key.get("settings", {}).get("student") or {}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what the vectors of two student keys must share and do not. A key that names no model differs in nothing."""
    both = [name for name in ("weights", "tokenizer", "layers", "pooling", "normalize") if name in one and name in other]
    sizes = ["truncate_dim"] if both else []  # keyed only where vectors are cut
    return [name for name in both + sizes if one.get(name) != other.get(name)]
