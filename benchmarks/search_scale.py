"""Exact search over ever larger corpora, side by side with one call of `faiss.knn`: seconds, peak memory against the memory given.

    python benchmarks/search_scale.py [--sizes 30000 331000 3000000] [--queries 10000] [--depth 200] [--memory 4] [--threads N] [--fp32]

Vectors of 384 dimensions around 500 centres, stored as the stage `embed` stores them. Ours reads them from the disk and writes nothing;
the peer has them in memory in fp32 before its clock starts. `same` is the share of passages that both found (the peer rounds). With
--fp32 our candidates come from fp32 products, as on a processor without bf16; the result is the same bits.

Whether time is linear in the number of passages: `fixed_seconds` and `seconds_a_million` are the line that fits best (relative errors),
`off_line` is the largest share by which a measured time departs from it. With two sizes any line fits; give three or more.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from support.sides import middle, report, run_again, write_table

from pipeline.executors.resources import usable_cpus

if TYPE_CHECKING:
    import pyarrow as pa

SIZE = 384
_PART = 65_536


def made_up(rows: int, seed: int) -> NDArray[np.float16]:
    """[rows, SIZE] vectors of length 1 around 500 centres."""
    chance = np.random.default_rng(seed)
    centres = np.random.default_rng(1).standard_normal((500, SIZE), dtype=np.float32)
    vectors = centres[chance.integers(0, 500, rows)] + chance.standard_normal((rows, SIZE), dtype=np.float32)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def embeddings_of(rows: int) -> Iterator[pa.Table]:
    """Row groups of a table of embeddings."""
    import pyarrow as pa

    from data.tables.schemas import embeddings

    schema = embeddings(SIZE, id_name="doc_id")
    for start in range(0, rows, _PART):
        vectors = made_up(min(_PART, rows - start), seed=start + 7)
        ids = [str(start + place) for place in range(len(vectors))]
        yield pa.table([ids, pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), SIZE)], schema=schema)


def ours(folder: Path, arguments: argparse.Namespace) -> None:
    """`Searcher`, as stage `pools` and `retrieve search` use it."""
    from retrieval.search import exact as exact_search
    from retrieval.search.embedding_table import EmbeddingTable
    from retrieval.search.searcher import Searcher

    if arguments.fp32:
        exact_search.cpu_computes_bf16 = lambda: False  # type: ignore[assignment]
    queries = made_up(arguments.queries, seed=3)
    started = time.perf_counter()
    searcher = Searcher(EmbeddingTable(folder, "doc_id"), memory_gb=arguments.memory, threads=arguments.threads)
    found = [one.rows for one in searcher.search(queries, k=arguments.depth)]
    report(started)
    np.save(folder / "ours.npy", np.concatenate(found))


def peer(folder: Path, arguments: argparse.Namespace) -> None:
    """One call of faiss.knn in fp32."""
    import faiss

    from retrieval.search.embedding_table import EmbeddingTable

    corpus = np.concatenate([vectors.astype(np.float32) for _, vectors in EmbeddingTable(folder, "doc_id")])
    queries = made_up(arguments.queries, seed=3).astype(np.float32)
    faiss.omp_set_num_threads(arguments.threads)
    started = time.perf_counter()
    _, rows = faiss.knn(queries, corpus, arguments.depth, metric=faiss.METRIC_INNER_PRODUCT)
    report(started)
    np.save(folder / "peer.npy", rows)


def line_through(sizes: list[int], seconds: list[float]) -> dict[str, float]:
    """The line of time over size with the least sum of squared relative errors, and how far the times are off it."""
    rows, times = np.array(sizes, dtype=float), np.array(seconds)
    (fixed, each), *_ = np.linalg.lstsq(np.stack([1 / times, rows / times], axis=1), np.ones(len(rows)))
    off = np.abs(times / (fixed + each * rows) - 1).max()
    return {"fixed_seconds": round(float(fixed), 3), "seconds_a_million": round(float(each) * 1e6, 3), "off_line": round(float(off), 4)}


def main() -> None:
    """Size by size, both sides in turn; then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[30_000, 331_000, 3_000_000])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--depth", type=int, default=200)
    parser.add_argument("--memory", type=float, default=4.0, help="GB")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="of each side")
    parser.add_argument("--fp32", action="store_true", help="our candidates from fp32 products")
    parser.add_argument("--side", choices=("ours", "peer"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        {"ours": ours, "peer": peer}[arguments.side](arguments.folder, arguments)
        return
    lines: list[dict[str, Any]] = []
    for rows in arguments.sizes:
        with tempfile.TemporaryDirectory() as folder:
            write_table(Path(folder), embeddings_of(rows))
            rounds: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}
            for _ in range(arguments.rounds):
                for side, done in rounds.items():
                    done.append(run_again("--side", side, "--folder", folder))
            mine, theirs = (np.load(Path(folder) / f"{side}.npy") for side in ("ours", "peer"))
        same = float(np.mean([len(np.intersect1d(a, b)) for a, b in zip(mine[:1000], theirs[:1000], strict=True)])) / arguments.depth
        seconds, peak = middle(rounds, "seconds"), middle(rounds, "peak")
        figures = {"ours_seconds": seconds["ours"], "ours_peak": peak["ours"], "peer_seconds": seconds["peer"], "peer_peak": peak["peer"]}
        lines.append({"rows": rows, **{name: round(value, 3) for name, value in figures.items()}})
        lines[-1]["ratio"] = round(seconds["peer"] / seconds["ours"], 3)
        lines[-1] |= {"microseconds_a_row": round(seconds["ours"] / rows * 1e6, 2), "same": round(same, 5)}
        print(lines[-1], flush=True)
    last = {"ours": lines[-1]["ours_seconds"], "peer": lines[-1]["peer_seconds"], "ratio": lines[-1]["ratio"], "unit": "seconds"}
    line = line_through(arguments.sizes, [one["ours_seconds"] for one in lines])
    print(json.dumps({"name": "search_scale", **last, **line, "memory_given_gb": arguments.memory, "sizes": lines}))


if __name__ == "__main__":
    main()
