"""All passages by row: ids, text hashes, and lookups both ways, in at most about 60 bytes a passage, shared by a machine's workers.

A row is a passage's place in the corpus's shards, one after the other; vectors lie in the same order. Inside the pipeline passages are
rows in arrays; ids are looked up when rows of a table are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.tables.ragged import bounds_of
from data.tables.shards import group_rows, read_row_groups
from pipeline.negatives.passage_index import PassageIndex
from pipeline.stage import Stored
from retrieval.search.embedding_table import EmbeddingTable

if TYPE_CHECKING:
    from data.config.settings import Experiment
    from retrieval.search.bm25 import Bm25Index
    from retrieval.search.searcher import Searcher

Made = TypeVar("Made")


class Corpus:
    """The passages of a stored corpus, and what is made of them once a worker."""

    def __init__(self, stored: Stored) -> None:
        self.index = PassageIndex.of(stored)
        self._stored = stored
        self._searcher: Searcher | None = None
        self._bm25: Bm25Index | None = None
        self._made: dict[object, Any] = {}

    def __len__(self) -> int:
        return len(self.index)

    @property
    def ids(self) -> pa.Array:
        """[N] ids."""
        return self.index.ids

    @property
    def hashes(self) -> NDArray[np.int64]:
        """[N] hashes of the texts."""
        return self.index.hashes

    def rows_of(self, ids: pa.Array) -> NDArray[np.int64]:
        """[n] rows of the passages of these ids; -1 where there is none."""
        return self.index.rows_of(ids)

    def ids_of(self, rows: NDArray[np.int64]) -> pa.Array:
        """The ids of some rows."""
        return self.ids.take(pa.array(rows)).cast(pa.string())

    def texts_of(self, rows: NDArray[np.int64]) -> pa.Array:
        """The texts of some rows, each row group that has one of them read once: in memory are these and one row group."""
        requested, place = np.unique(rows, return_inverse=True)
        parts = [pa.array([], pa.large_string())]
        first = 0
        for path, shard in zip(self._stored.paths(), self._stored.manifest.shards, strict=True):
            mine = requested[slice(*np.searchsorted(requested, [first, first + shard.rows]))] - first
            first += shard.rows
            if not len(mine):  # a shard without a requested row is not opened
                continue
            bounds = bounds_of(np.array(group_rows(path)))
            groups = np.unique(np.searchsorted(bounds, mine, side="right") - 1).tolist()
            for group, table in zip(groups, read_row_groups(path, columns=["text"], groups=groups), strict=True):
                rows_of_group = mine[slice(*np.searchsorted(mine, bounds[group : group + 2]))] - bounds[group]
                parts += table.column("text").take(pa.array(rows_of_group)).cast(pa.large_string()).chunks
        return pa.concat_arrays(parts).take(pa.array(place))

    def passages(self) -> Iterator[tuple[list[str], list[str]]]:
        """(ids, texts) of all passages, some thousands at a time: in memory is one row group."""
        for group in self._stored.row_groups(columns=["doc_id", "text"]):
            yield group.column("doc_id").to_pylist(), group.column("text").to_pylist()

    def once(self, make: Callable[[Corpus], Made]) -> Made:
        """`make(corpus)`, made once and kept as long as the corpus: a source's own index."""
        return self.kept(make, lambda: make(self))

    def kept(self, name: object, make: Callable[[], Made]) -> Made:
        """What `make` makes, once for each name."""
        if name not in self._made:
            self._made[name] = make()
        return cast(Made, self._made[name])

    def searcher(self, vectors: Stored, index: Stored | None, experiment: Experiment) -> Searcher:
        """The search over the corpus's vectors, kept with what it holds of them."""
        if self._searcher is None:
            from retrieval.search.searcher import searcher_for

            settings, runner, folder = experiment.search, experiment.runner, index.folder if index else None
            table = EmbeddingTable(vectors.folder, "doc_id")
            self._searcher = searcher_for(table, settings, index=folder, device=runner.device, threads=runner.threads)
        return self._searcher

    def bm25(self, *, stop_words: str) -> Bm25Index:
        """The BM25 index of all passages, built once a worker; `stop_words` are those of a language, see `retrieval.search.bm25`."""
        if self._bm25 is None:
            from retrieval.search.bm25 import Bm25Index

            self._bm25 = Bm25Index(self.ids, (texts for _, texts in self.passages()), stop_words=stop_words)
        return self._bm25
