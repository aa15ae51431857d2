"""All passages by row: ids, text hashes, and lookups both ways, in at most about 60 bytes a passage.

A row is a passage's place in the corpus's shards, one after the other; vectors lie in the same order. Inside the pipeline passages are
rows in arrays; ids are looked up when rows of a table are written.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.tables.ragged import bounds_of
from data.tables.shards import group_rows, read_row_groups
from pipeline.stage import Stored
from retrieval.search.embedding_table import EmbeddingTable

if TYPE_CHECKING:
    from data.config.settings import Experiment
    from retrieval.search.bm25 import Bm25Index
    from retrieval.search.searcher import Searcher

_HASHED_AT_ONCE = 1 << 16
Made = TypeVar("Made")


class Corpus:
    """Ids and text hashes of all passages of a stored corpus, read row group by row group."""

    def __init__(self, stored: Stored) -> None:
        ids = [pa.array([], pa.large_string())]
        hashes = [np.empty(0, np.int64)]
        for table in stored.row_groups(columns=["doc_id", "text_hash"]):
            ids += table.column("doc_id").cast(pa.large_string()).chunks
            hashes.append(table.column("text_hash").to_numpy())
        self.ids: pa.Array = pa.concat_arrays(ids)  # large: the ids of 10 M passages may be more than 2 GB
        self.hashes: NDArray[np.int64] = np.concatenate(hashes)
        self._stored = stored
        self._searcher: Searcher | None = None
        self._bm25: Bm25Index | None = None
        self._made: dict[Callable[[Corpus], Any], Any] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @functools.cached_property
    def _index(self) -> tuple[NDArray[np.uint64], NDArray[np.int32]]:
        """(hashes of all ids, sorted; the row of each)."""
        hashes = np.concatenate([np.empty(0, np.uint64), *(hash_ids(part) for part in slices(self.ids))])
        order = np.argsort(hashes, kind="stable")
        return hashes[order], order.astype(np.int32)

    def rows_of(self, ids: pa.Array) -> NDArray[np.int64]:
        """[n] rows of the passages of these ids; -1 where there is none."""
        ids = ids.cast(pa.large_string())
        hashes, order = self._index
        asked = hash_ids(ids)
        place = np.searchsorted(hashes, asked)
        rows = np.full(len(ids), -1, dtype=np.int64)
        open_ = np.flatnonzero(place < len(hashes))
        while len(open_):  # once, unless two ids share a hash
            open_ = open_[hashes[place[open_]] == asked[open_]]
            found = order[place[open_]].astype(np.int64)
            same = pc.equal(self.ids.take(pa.array(found)), ids.take(pa.array(open_))).to_numpy(zero_copy_only=False).astype(bool)
            rows[open_[same]] = found[same]
            open_ = open_[~same]
            place[open_] += 1
            open_ = open_[place[open_] < len(hashes)]
        return rows

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
        if make not in self._made:
            self._made[make] = make(self)
        return cast(Made, self._made[make])

    def searcher(self, vectors: Stored, index: Stored | None, experiment: Experiment) -> Searcher:
        """The search over the corpus's vectors, kept with what it holds of them."""
        if self._searcher is None:
            from retrieval.search.searcher import Searcher, engines_for

            settings, runner = experiment.search, experiment.runner
            engines = engines_for(settings, index.folder if index else None, device=runner.device, threads=runner.threads)
            table = EmbeddingTable(vectors.folder, "doc_id")
            self._searcher = Searcher(table, memory_gb=settings.memory_gb, threads=runner.threads, engines=engines)
        return self._searcher

    def bm25(self, *, stop_words: str) -> Bm25Index:
        """The BM25 index of all passages, built once a worker; `stop_words` are those of a language, see `retrieval.search.bm25`."""
        if self._bm25 is None:
            from retrieval.search.bm25 import Bm25Index

            self._bm25 = Bm25Index(self.ids, (texts for _, texts in self.passages()), stop_words=stop_words)
        return self._bm25


def hash_ids(ids: pa.Array) -> NDArray[np.uint64]:
    """A 64-bit hash of each id, for lookups within a process: it may differ between versions of polars, so it is never stored."""
    return pl.Series("id", pl.from_arrow(ids)).hash(0).to_numpy()


def slices(ids: pa.Array) -> Iterator[pa.Array]:
    """Pieces of the ids, so that few of them are Python objects at a time."""
    return (ids.slice(start, _HASHED_AT_ONCE) for start in range(0, len(ids), _HASHED_AT_ONCE))
