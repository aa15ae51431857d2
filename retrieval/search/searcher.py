"""Search over stored embeddings within a given memory: as many queries at a time as it holds, for each group one look at the corpus.

A corpus that fits is read once: into memory, or onto the GPUs that search it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.config.settings import Search
from data.errors import UserError
from retrieval.compute.allocator import tune_allocator
from retrieval.search.devices.choice import Work, choose
from retrieval.search.devices.corpus import BLOCK_ROWS as DEVICE_BLOCK_ROWS
from retrieval.search.devices.corpus import HOST_BLOCKS, DeviceCorpus, InMemory
from retrieval.search.devices.engine import device_engines
from retrieval.search.embedding_table import EmbeddingTable
from retrieval.search.exact import BLOCK_ROWS, TILE_BYTES, Engine, Products, Rows, ScoreArray, Vectors, cpu_engines, exact_search, margin
from retrieval.search.tie_break import ties_by_id

GROUP_QUERIES = 256  # searched at a time, or a multiple: with fewer the corpus would be read more than it is computed with
MOST_QUERIES = 16_384  # at a time: beyond it reading costs nothing beside computing, and a kill would lose more


@dataclass(frozen=True)
class SearchPlan:
    """How a search fits into its memory."""

    queries_at_once: int
    resident: bool  # the corpus is kept in memory, not read again for each group and pass
    bytes: int  # what it will take at most, beyond what the process has already


def plan_search(
    *, queries: int, rows: int, size: int, k: int, memory: int, threads: int, devices: int = 0, kept_on_devices: bool = False
) -> SearchPlan:
    """Fit a search for `k` of `rows` passages of `size` dimensions into `memory` bytes beyond what the process holds.

    Args:
        devices: how many search; 0: the processor does.
        kept_on_devices: they have room for the corpus, so that none is wanted in memory.

    Raises UserError where not even a few queries fit, naming the memory that they need.
    """
    on_the_way = devices * HOST_BLOCKS * min(rows, DEVICE_BLOCK_ROWS) * size * 2 if devices else threads * TILE_BYTES
    fixed = BLOCK_ROWS * size * 24 + on_the_way + (64 << 20)
    # Vectors in three formats; for each candidate its places in a list, row, score and sort key; for each result its row and score.
    each = size * 14 + (k + margin(k, rows)) * 72 * max(1, devices) + k * 24
    least = fixed + min(queries, GROUP_QUERIES) * each
    if memory < least:
        found = f"memory_gb gives the search {memory / 1e9:.2f} GB, and it needs {least / 1e9:.2f} GB at k={k:,}"
        remedy = f"set it {(least - memory) / 1e9 + 0.01:.2f} GB higher, or ask for fewer passages"
        raise UserError(f"{found} and {size} dimensions: {remedy}")
    corpus = rows * size * 2
    resident = not kept_on_devices and corpus <= (memory - least) * 3 // 4  # the rest is for more queries at a time
    at_once = min(MOST_QUERIES, (memory - fixed - corpus * resident) // each)
    at_once = max(1, queries if at_once >= queries else at_once // GROUP_QUERIES * GROUP_QUERIES)
    return SearchPlan(at_once, resident, fixed + corpus * resident + at_once * each)


Engines = Callable[[int], Sequence[tuple[Engine, int]]]  # k -> what `exact_search` tries, and how many candidates it asks for


def searcher_for(
    corpus: EmbeddingTable, settings: Search, *, index: Path | None = None, device: str, threads: int, memory_gb: float | None = None
) -> Searcher:
    """The search of a corpus: through the approximate index in the folder `index`, or exactly, with `device` cuda by all GPUs of the
    process where they are faster. `memory_gb`: instead of the settings'."""
    memory_gb = settings.memory_gb if memory_gb is None else memory_gb
    engines: Engines | None = None
    devices: tuple[str, ...] = ()
    if index is not None:
        from retrieval.search.index_table import IndexEngine

        by_index = IndexEngine(index, settings, threads=threads)

        def engines(k: int) -> Sequence[tuple[Engine, int]]:
            return [(by_index, k + 16)]  # it ranks by rounded scores
    elif device == "cuda":
        devices = gpus()
    return Searcher(corpus, memory_gb=memory_gb, threads=threads, engines=engines, devices=devices)


def gpus() -> tuple[str, ...]:
    """The GPUs that this process may use."""
    import torch

    return tuple(f"cuda:{number}" for number in range(torch.cuda.device_count()))


@dataclass(frozen=True)
class Found:
    """The results of some of the queries: those from number `first` on."""

    first: int
    scores: ScoreArray  # [n, k], best first, equal scores by row
    rows: Rows  # [n, k], -1 where the corpus ran out


class Searcher:
    """A corpus ready to be searched, by queries in any number of calls, within a memory beside the process's own."""

    def __init__(
        self, corpus: EmbeddingTable, *, memory_gb: float, threads: int = 1, engines: Engines | None = None, devices: Sequence[str] = ()
    ) -> None:
        tune_allocator()  # tiles of scores are made and freed all the time
        self.corpus = corpus
        self._memory_gb = memory_gb
        self._threads = threads
        self._engines = engines
        self._devices = tuple(devices)
        self._products = Products()
        self._matrix: NDArray[np.float16] | None = None
        self._on_devices: DeviceCorpus | None = None

    def search(self, queries: Vectors, *, k: int) -> Iterator[Found]:
        """The k best passages of each query [n, D], some queries at a time: a multiple of `GROUP_QUERIES`, but for the last ones.

        Raises UserError: the memory is too small, or the vectors have different sizes.
        """
        size = queries.shape[1]
        if len(queries) and self.corpus.rows and size != self.corpus.size:
            sizes = f"queries have {size} dimensions, the corpus has {self.corpus.size}"
            raise UserError(f"{self.corpus.folder} cannot be searched with these queries: {sizes}")
        by_devices = self._by_devices(len(queries), size, k=k)
        plan = plan_search(
            queries=len(queries), rows=self.corpus.rows, size=size, k=k, memory=int(self._memory_gb * 1e9), threads=self._threads,
            devices=len(self._devices) if by_devices else 0, kept_on_devices=by_devices and self._device_corpus().fits(),
        )  # fmt: skip
        if plan.resident and self._matrix is None and self.corpus.rows:
            self._matrix = self.corpus.matrix(threads=self._threads)
        blocks: Iterable[tuple[int, Vectors]] = self.corpus if self._matrix is None else [(0, self._matrix)]
        if by_devices:
            blocks = self._device_corpus()
            engines: Sequence[tuple[Engine, int]] = device_engines(blocks, k)
        elif self._engines:
            engines = self._engines(k)
        else:
            engines = cpu_engines(k, threads=self._threads, rows=self.corpus.rows, products=self._products)
        for start in range(0, len(queries), plan.queries_at_once):
            group = queries[start : start + plan.queries_at_once]
            yield Found(start, *exact_search(group, blocks, k=k, threads=self._threads, engines=engines))

    def _by_devices(self, queries: int, size: int, *, k: int) -> bool:
        """Whether the devices search; once they have vectors they always do."""
        if not self._devices or not queries or not self.corpus.rows:
            return False
        work = Work(queries, self.corpus.rows, size, k)
        return self._on_devices is not None or choose(work, self._devices, threads=self._threads).by_devices

    def _device_corpus(self) -> DeviceCorpus:
        """The corpus on the devices; what they lack comes from memory where it lies there, too."""
        if self._on_devices is None:
            self._on_devices = DeviceCorpus(self.corpus, self._devices)
        if self._matrix is not None:
            self._on_devices.source = InMemory(self._matrix)
        return self._on_devices

    def recall(self, queries: Vectors, *, k: int, sampled: int) -> tuple[int, int]:
        """(how many of the exact k best are found, how many there are) for `sampled` of the queries, spread evenly.

        What an approximate index misses, measured.
        """
        if not len(queries):
            return 0, 0
        asked = queries[np.unique(np.linspace(0, len(queries) - 1, min(sampled, len(queries))).astype(np.int64))]
        found = np.concatenate([part.rows for part in self.search(asked, k=k)])
        exact = Searcher(self.corpus, memory_gb=self._memory_gb, threads=self._threads)  # by the processor: the queries are few
        exact._matrix = self._matrix
        best = np.concatenate([part.rows for part in exact.search(asked, k=k)])
        hits = sum(len(np.intersect1d(mine, theirs[theirs >= 0])) for mine, theirs in zip(found, best, strict=True))
        return hits, int((best >= 0).sum())

    def vectors_of(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """[n, D] vectors of some rows; read from the files where the corpus is neither in memory nor on devices."""
        if self._matrix is not None:
            return self._matrix[rows]
        if self._on_devices is not None:
            return self._on_devices.vectors_of(rows)
        found = np.empty((len(rows), self.corpus.size), dtype=np.float16)
        for first_row, vectors in self.corpus if len(rows) else ():
            here = (rows >= first_row) & (rows < first_row + len(vectors))
            found[here] = vectors[rows[here] - first_row]
        return found


def ranked(found: Found, ids: pa.ChunkedArray) -> list[tuple[list[str], list[float]]]:
    """Each query's (doc_ids, scores), best first, ties by doc_id; absent entries are left out."""
    rows = rows_by_id(found, ids)
    there = rows >= 0
    names = ids.take(pa.array(rows[there])).to_pylist()
    ends = np.cumsum(there.sum(axis=1)).tolist()
    parts = zip([0, *ends[:-1]], ends, found.scores, strict=True)
    return [(names[start:end], scores[: end - start].tolist()) for start, end, scores in parts]


def rows_by_id(found: Found, ids: pa.ChunkedArray | pa.Array) -> Rows:
    """Rows [n, k] with each run of equal scores in the order of their ids."""
    scores, rows = found.scores, found.rows
    ties = (rows[:, 1:] >= 0) & (scores[:, 1:] == scores[:, :-1])
    ordered = rows.copy()
    for place in np.flatnonzero(ties.any(axis=1)).tolist():
        length = int((rows[place] >= 0).sum())
        ordered[place, :length] = ties_by_id(rows[place, :length], scores[place, :length], ids)
    return ordered
