"""Peak memory of the stage `teacher_scores` on many pairs against few: it must not grow with their number.

    python benchmarks/scoring_memory.py TEACHER [--few 20000] [--many 2000000] [--shards 8]

The real stage in this process (keys, lookups, tokenising, segments, output shards) on made-up texts; only the forward pass is a stub.
TEACHER gives tokenizer and configuration. Each size runs in a process of its own, after another one that writes the texts: what that
takes is not the stage's. `peer` is the peak with few pairs, `ours` with many.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from support.sides import print_peaks

PER_QUERY = 26  # candidates: p+, m = 10 negatives, 10 mixed, 5 masked (ADAM, section 4.3)


class StubTeacher:
    """The shape of a cross-encoder without its arithmetic."""

    batch_tokens = 16_384
    length_multiple = 8
    one_thread_each = False
    packs = False

    def logits(self, ids: Any, mask: Any, segments: Any) -> Any:
        """[n, L] arrays to [n] numbers that depend on the pair alone."""
        return ((ids * mask).sum(1) % 1009).astype(np.float32)


def candidates(first: int, count: int) -> pa.Table:
    """`count` pairs from number `first` on, all different, 40 words each."""
    from data.tables.schemas import CANDIDATES

    words = np.array(["the", "a", "policy", "insurance", "pays", "when", "your", "car", "home", "life", "term", "claim", "agent", "cover"])
    drawn = words[np.random.default_rng(first).integers(0, len(words), (count, 40))]
    numbers = range(first, first + count)
    texts = [f"{' '.join(row)} {number}" for row, number in zip(drawn, numbers, strict=True)]
    ids = [str(number // PER_QUERY) for number in numbers]
    zeros = [0] * count
    positions = [number % PER_QUERY for number in numbers]
    return pa.table([ids, zeros, positions, zeros, ids, [f"what pays {query}" for query in ids], texts], schema=CANDIDATES)


def write_candidates(root: Path, pairs: int, shards: int) -> None:
    """The stage's input, a row group at a time."""
    from data.tables.schemas import CANDIDATES
    from data.tables.shards import open_shard, shard_name

    each = pairs // shards
    for shard in range(shards):
        with open_shard(root / shard_name(shard, shards), CANDIDATES, {}) as writer:
            for start in range(0, each, 4096):
                writer.write(candidates(shard * each + start, min(4096, each - start)))


def run_stage(teacher: Path, pairs: int, shards: int) -> dict[str, float]:
    """Build all shards of the stage; peak memory in MB, that before the stage, and seconds."""
    import torch  # noqa: F401  what a real worker holds

    from data.config.settings import Experiment
    from data.tables.manifest import Manifest, ShardRecord
    from data.tables.shards import shard_name
    from pipeline.stage import StageContext, Stored, WorkerCache
    from pipeline.stages import teacher_scores
    from retrieval.models.resolved import ResolvedModels
    from retrieval.teachers import cross_encoder

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = {
            "store": str(root / "store"), "ingest": {"path": str(root)}, "student": {"model": str(teacher)},
            "teacher": {"model": str(teacher), "precision": "fp32", "max_tokens": 128},
        }  # fmt: skip
        experiment = Experiment.model_validate(settings)
        subprocess.run([sys.executable, *sys.argv, f"--write={folder}"], check=True)
        records = [ShardRecord(shard_name(shard, shards), 0, 0, "") for shard in range(shards)]
        inputs = {"dark_examples": Stored(root, Manifest("dark_examples", "", "", {}, records, {}))}
        cross_encoder.load_cross_encoder = lambda *given, **more: StubTeacher()  # type: ignore[assignment]
        worker_cache = WorkerCache()  # a worker's, which keeps the teacher from shard to shard
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        started = time.perf_counter()
        for shard in range(shards):
            context = StageContext(
                ResolvedModels(experiment), teacher_scores.TABLE, root / "out", "f", [shard], shards, inputs, worker_cache,
                report=lambda unit, count: None, warn=print,
            )  # fmt: skip
            teacher_scores.TABLE.build(context)
        seconds = time.perf_counter() - started
        stored_pairs = sum(pq.read_metadata(path).num_rows for path in (root / "store" / "teacher_logits").glob("*/*.parquet"))
        assert stored_pairs == pairs // shards * shards, f"{stored_pairs} pairs were scored"
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, "before": before, "seconds": seconds}


def main() -> None:
    """Both sizes, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--few", type=int, default=20_000)
    parser.add_argument("--many", type=int, default=2_000_000)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write:
        write_candidates(given.write, given.one, given.shards)
        return
    if given.one:
        print(json.dumps(run_stage(given.teacher, given.one, given.shards)))
        return
    print_peaks("scoring_memory", "pairs", given.few, given.many)


if __name__ == "__main__":
    main()
