"""Search over stored embeddings within a given memory: as many queries at a time as it holds, for each group one look at the corpus."""

from __future__ import annotations

import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.config.settings import Search
from data.errors import UserError
from retrieval.compute.allocator import tune_allocator
from retrieval.search.embedding_table import EmbeddingTable
from retrieval.search.exact import BLOCK_ROWS, TILE_BYTES, Engine, Rows, ScoreArray, Vectors, cpu_engines, exact_search, margin
from retrieval.search.tie_break import ties_by_id

GROUP_QUERIES = 256  # searched at a time, or a multiple: with fewer the corpus would be read more than it is computed with
MOST_QUERIES = 16_384  # at a time: beyond it reading costs nothing beside computing, and a kill would lose more


@dataclass(frozen=True)
class SearchPlan:
    """How a search fits into its memory."""

    queries_at_once: int
    resident: bool  # the corpus is kept in memory, not read again for each group and pass
    bytes: int  # what it will take at most, beyond what the process has already


def plan_search(*, queries: int, rows: int, size: int, k: int, memory: int, threads: int) -> SearchPlan:
    """Fit a search for `k` of `rows` passages of `size` dimensions into `memory` bytes beyond what the process holds.

    Raises UserError where not even a few queries fit, naming the memory that they need.
    """
    fixed = BLOCK_ROWS * size * 24 + threads * TILE_BYTES + (64 << 20)
    # Vectors in three formats; for each candidate its places in a list, row, score and sort key; for each result its row and score.
    each = size * 14 + (k + margin(k, rows)) * 72 + k * 24
    least = fixed + min(queries, GROUP_QUERIES) * each
    if memory < least:
        found = f"memory_gb leaves {max(0, memory) / 1e9:.2f} GB for the search, which needs {least / 1e9:.2f} GB at k={k:,}"
        remedy = f"set it {(least - memory) / 1e9 + 0.01:.2f} GB higher, or ask for fewer passages"
        raise UserError(f"{found} and {size} dimensions: {remedy}")
    corpus = rows * size * 2
    resident = corpus <= (memory - least) * 3 // 4  # the rest is for more queries at a time
    at_once = min(MOST_QUERIES, (memory - fixed - corpus * resident) // each)
    at_once = max(1, queries if at_once >= queries else at_once // GROUP_QUERIES * GROUP_QUERIES)
    return SearchPlan(at_once, resident, fixed + corpus * resident + at_once * each)


def _resident_bytes() -> int:
    """Memory of this process."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except (OSError, ValueError):  # not Linux: the peak so far
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


Engines = Callable[[int], Sequence[tuple[Engine, int]]]  # k -> what `exact_search` tries, and how many candidates it asks for


def engines_for(settings: Search, index: Path | None, *, device: str, threads: int) -> Engines | None:
    """What searches: the approximate index in the folder `index`, a GPU, or (None) what suits the processor."""
    if index is not None:
        from retrieval.search.index_table import IndexEngine

        by_index = IndexEngine(index, settings, threads=threads)
        return lambda k: [(by_index, k + 16)]  # it ranks by rounded scores
    if device == "cuda":
        from retrieval.search.gpu import DeviceEngine

        on_gpu = DeviceEngine(device)
        return lambda k: [(on_gpu, k + 64), (on_gpu, 2 * k + 512)]
    return None


@dataclass(frozen=True)
class Found:
    """The results of some of the queries: those from number `first` on."""

    first: int
    scores: ScoreArray  # [n, k], best first, equal scores by row
    rows: Rows  # [n, k], -1 where the corpus ran out


class Searcher:
    """A corpus ready to be searched, by queries in any number of calls, within a peak memory of the process."""

    def __init__(self, corpus: EmbeddingTable, *, memory_gb: float, threads: int = 1, engines: Engines | None = None) -> None:
        tune_allocator()  # tiles of scores are made and freed all the time
        self.corpus = corpus
        self._memory_gb = memory_gb
        self._threads = threads
        self._engines = engines
        self._matrix: NDArray[np.float16] | None = None

    def search(self, queries: Vectors, *, k: int) -> Iterator[Found]:
        """The k best passages of each query [n, D], some queries at a time: a multiple of `GROUP_QUERIES`, but for the last ones.

        Raises UserError: the memory is too small, or the vectors have different sizes.
        """
        size = queries.shape[1]
        if len(queries) and self.corpus.rows and size != self.corpus.size:
            sizes = f"queries have {size} dimensions, the corpus has {self.corpus.size}"
            raise UserError(f"{self.corpus.folder} cannot be searched with these queries: {sizes}")
        kept = 0 if self._matrix is None else self._matrix.nbytes
        memory = int(self._memory_gb * 1e9) - _resident_bytes() + kept
        plan = plan_search(queries=len(queries), rows=self.corpus.rows, size=size, k=k, memory=memory, threads=self._threads)
        if plan.resident and self._matrix is None and self.corpus.rows:
            self._matrix = self.corpus.matrix(threads=self._threads)
        engines = self._engines(k) if self._engines else cpu_engines(k, threads=self._threads, rows=self.corpus.rows)
        blocks: Iterable[tuple[int, Vectors]] = self.corpus if self._matrix is None else [(0, self._matrix)]
        for start in range(0, len(queries), plan.queries_at_once):
            group = queries[start : start + plan.queries_at_once]
            yield Found(start, *exact_search(group, blocks, k=k, threads=self._threads, engines=engines))

    def recall(self, queries: Vectors, *, k: int, sampled: int) -> tuple[int, int]:
        """(how many of the exact k best are found, how many there are) for `sampled` of the queries, spread evenly.

        What an approximate index misses, measured.
        """
        if not len(queries):
            return 0, 0
        asked = queries[np.unique(np.linspace(0, len(queries) - 1, min(sampled, len(queries))).astype(np.int64))]
        found = np.concatenate([part.rows for part in self.search(asked, k=k)])
        exact = Searcher(self.corpus, memory_gb=self._memory_gb, threads=self._threads)
        exact._matrix = self._matrix
        best = np.concatenate([part.rows for part in exact.search(asked, k=k)])
        hits = sum(len(np.intersect1d(mine, theirs[theirs >= 0])) for mine, theirs in zip(found, best, strict=True))
        return hits, int((best >= 0).sum())

    def vectors_of(self, rows: NDArray[np.int64]) -> NDArray[np.float16]:
        """[n, D] vectors of some rows; read from the files where the corpus is not in memory."""
        if self._matrix is not None:
            return self._matrix[rows]
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
