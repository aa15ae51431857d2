"""Peak memory of the stage `pools` on a shard of queries: shallow pools against deep ones, which must be ranked and written in pieces.

    python benchmarks/pool_memory.py [--passages 1000000] [--queries 8000] [--depth 10000] [--source student] [--size 32]

The real stage in this process on made-up passages of 40 words and random vectors, each depth in a process of its own. `peer` is the peak
at depth 100, `ours` at the greater one. A list of 8,000 x 10,000 entries would be 640 MB of rows alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from support.sides import print_peaks, write_table

SHALLOW = 100
WORDS = np.array([f"word{number}" for number in range(20_000)])


def passages(count: int) -> Iterator[pa.Table]:
    """Row groups of a corpus; words follow Zipf's law."""
    from data.tables.schemas import CORPUS

    chance = np.random.default_rng(0)
    for start in range(0, count, 4096):
        numbers = np.arange(start, min(start + 4096, count))
        drawn = WORDS[np.minimum(chance.zipf(1.2, (len(numbers), 40)), len(WORDS)) - 1]
        yield pa.table([[f"passage_{number}" for number in numbers], [" ".join(words) for words in drawn], numbers], schema=CORPUS)


def vectors(count: int, size: int, *, id_name: str, name: Callable[[int], str]) -> Iterator[pa.Table]:
    """Row groups of random vectors."""
    from data.tables.schemas import embeddings

    chance = np.random.default_rng(1)
    for start in range(0, count, 4096):
        numbers = range(start, min(start + 4096, count))
        values = chance.normal(size=(len(numbers), size)).astype(np.float16)
        column = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), size)
        yield pa.table([[name(number) for number in numbers], column], schema=embeddings(size, id_name=id_name))


def stored(folder: Path, tables: Iterator[pa.Table]) -> Any:
    """A complete table of one shard."""
    from pipeline.stage import Stored

    return Stored(folder, write_table(folder, tables))


def run_stage(arguments: argparse.Namespace) -> dict[str, float]:
    """Build one shard; peak memory in MB, that before the stage, and seconds."""
    from data.config.settings import Experiment
    from data.tables.schemas import QRELS, QUERIES
    from pipeline.stage import Cutting, StageContext, WorkerCache
    from pipeline.stages import pools
    from retrieval.models.resolved import ResolvedModels

    count = arguments.queries
    depth = arguments.one
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = {
            "store": folder, "ingest": {"path": folder}, "student": {"model": folder}, "teacher": {"model": folder},
            "hard_negatives": {"source": arguments.source, "depth": depth, "range_max": min(depth, 100)},
        }  # fmt: skip
        experiment = Experiment.model_validate(settings)
        ids = [f"q{number}" for number in range(count)]
        chance = np.random.default_rng(2)
        texts = [" ".join(WORDS[chance.integers(100, len(WORDS), 5)]) for _ in ids]
        labels = [f"passage_{row}" for row in chance.integers(0, arguments.passages, count)]
        inputs = {
            "ingest.corpus": stored(root / "corpus", passages(arguments.passages)),
            "ingest.queries": stored(root / "queries", iter([pa.table([ids, texts], schema=QUERIES)])),
            "ingest.qrels": stored(root / "qrels", iter([pa.table([["train"] * count, ids, labels, [1] * count], schema=QRELS)])),
            "embed.corpus": stored(
                root / "c", vectors(arguments.passages, arguments.size, id_name="doc_id", name=lambda number: f"passage_{number}")
            ),
            "embed.queries": stored(root / "q", vectors(count, arguments.size, id_name="query_id", name=lambda number: f"q{number}")),
        }
        table = pools.table(experiment)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        started = time.perf_counter()
        context = StageContext(
            ResolvedModels(experiment), table, root / "out", "f", [0], 1, inputs, WorkerCache(), report=lambda unit, count: None, warn=print
        )
        for number, each in enumerate(table.rounds):
            for piece in each.cut(Cutting(context.models, inputs, [0], context.folder, number, workers=1)):
                each.build(context, piece)
        table.build(context)
        seconds = time.perf_counter() - started
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, "before": before, "seconds": seconds}


def main() -> None:
    """Both depths, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passages", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=8000)
    parser.add_argument("--depth", type=int, default=10_000)
    parser.add_argument("--source", default="student")
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_stage(arguments)))
        return
    print_peaks("pool_memory", "depth", SHALLOW, arguments.depth)


if __name__ == "__main__":
    main()
