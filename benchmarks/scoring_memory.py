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
import yaml

PER_QUERY = 26  # candidates: p+, m = 10 negatives, 10 mixed, 5 masked (ADAM, section 4.3)


class StubTeacher:
    """The shape of a cross-encoder without its arithmetic."""

    batch_tokens, length_multiple, one_thread_each, packs = 16_384, 8, False, False

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
    zeros, positions = [0] * count, [number % PER_QUERY for number in numbers]
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
    """Build all shards of the stage; peak memory in MB, and seconds."""
    import torch  # noqa: F401  what a real worker holds

    from data.config.settings import load
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
        (root / "experiment.yaml").write_text(yaml.safe_dump(settings))
        experiment = load({"config": str(root / "experiment.yaml")})
        words = [sys.executable, __file__, str(teacher), "--shards", str(shards), "--one", str(pairs), "--write", folder]
        subprocess.run(words, check=True)
        records = [ShardRecord(shard_name(shard, shards), 0, 0, "") for shard in range(shards)]
        inputs = {"dark_examples": Stored(root, Manifest("dark_examples", "", "", {}, records, {}))}
        cross_encoder.load_cross_encoder = lambda *given, **more: StubTeacher()  # type: ignore[assignment]
        worker_cache = WorkerCache()  # a worker's, which keeps the teacher from shard to shard
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
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, "seconds": seconds}


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
    peaks = []
    for pairs in (given.few, given.many):
        words = [sys.executable, __file__, str(given.teacher), "--shards", str(given.shards), "--one", str(pairs)]
        figures = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
        peaks.append(figures["peak"])
        print(f"{pairs:>9,} pairs: peak {figures['peak']:.0f} MB, {pairs / figures['seconds']:,.0f} pairs/s without the forward pass")
    few, many = peaks
    print(json.dumps({"name": "scoring_memory", "ours": round(many), "peer": round(few), "ratio": round(many / few, 3), "unit": "MB"}))


if __name__ == "__main__":
    main()
