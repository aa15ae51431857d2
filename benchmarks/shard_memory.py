"""Peak memory of the stage `shards` on one shard: many queries against few. What may grow with them is the tokens of distinct passages.

    python benchmarks/shard_memory.py STUDENT TEACHER [--few 500] [--many 8000] [--candidates 26] [--tokens 112]

The real stage in this process on made-up lists of as many tokens, nearly all of them different, each size in a process of its own.
STUDENT gives the tokenizer, whose whole words the texts are made of; TEACHER only a name. `peer` is the peak with few queries, `ours` with
many.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml
from support.sides import compare_peaks


def whole_words(student: Path) -> Any:
    """Words that are one token each."""
    from transformers import AutoTokenizer

    vocabulary = AutoTokenizer.from_pretrained(student).get_vocab()
    return np.array(sorted(word for word in vocabulary if word.isascii() and word.isalpha() and word.islower()))


def lists(queries: int, candidates: int, tokens: int, words: Any) -> Iterator[tuple[pa.Table, ...]]:
    """(candidates, logits, confidences) of a few queries at a time: p+ and m negatives, m mixed, five masked as in ADAM, section 4.3."""
    from data.tables.schemas import CANDIDATES, CONFIDENCE, POOLS, TEACHER_SCORES, CandidateKind

    m = max(1, (candidates - 6) // 2)
    masked = candidates - 1 - 2 * m
    kinds = [CandidateKind.POSITIVE] + [CandidateKind.NEGATIVE] * m
    kinds += [CandidateKind.REINFORCED_NEGATIVE] * m + [CandidateKind.NOISY_POSITIVE] * masked
    chance = np.random.default_rng(0)
    for first in range(0, queries, 100):
        numbers = np.arange(first, min(first + 100, queries))
        rows = len(numbers) * candidates
        of_query, place = np.repeat(numbers, candidates), np.tile(np.arange(candidates), len(numbers))
        texts = [" ".join(drawn) for drawn in words[chance.integers(0, len(words), (rows, tokens - 2))]]
        query_ids, zeros = [f"query{number}" for number in of_query], np.zeros(rows, np.int8)
        ids = [f"passage{query}+passage{other}" for query, other in zip(of_query, place, strict=True)]
        asked = [f"{words[number % len(words)]} {number}" for number in of_query]
        kind_column = np.tile(np.array(kinds, np.int8), len(numbers))
        columns = [query_ids, zeros, place.astype(np.int32), kind_column, ids, asked, texts]
        logits, counts = chance.normal(size=rows).astype(np.float32), np.full(rows, tokens, np.int32)
        scores = pa.table([query_ids, zeros, columns[2], logits, counts, zeros.astype(bool)], schema=TEACHER_SCORES)
        one, real = np.ones(len(numbers), np.int16), -chance.random(len(numbers)).astype(np.float32)
        names = [f"query{number}" for number in numbers]
        confidences = pa.table([names, zeros[: len(numbers)], real, real, real, real, one, real], schema=CONFIDENCE)
        empty = pa.array([[]] * len(numbers))
        pools = pa.table({"query_id": names, **{name: empty for name in POOLS.names[1:]}}).cast(POOLS)
        yield pa.table(columns, schema=CANDIDATES), scores, confidences, pools


def inputs(root: Path, made: Iterator[tuple[pa.Table, ...]]) -> dict[str, Any]:
    """Complete tables of one shard each."""
    from contextlib import ExitStack

    from data.tables.manifest import Manifest, ShardRecord
    from data.tables.schemas import CANDIDATES, CONFIDENCE, POOLS, TEACHER_SCORES
    from data.tables.shards import describe, open_shard
    from pipeline.stage import Stored

    schemas = {"dark_examples": CANDIDATES, "teacher_scores": TEACHER_SCORES, "confidence": CONFIDENCE, "pools.ranked": POOLS}
    with ExitStack() as stack:
        writers = [stack.enter_context(open_shard(root / name / "part.parquet", schema, {})) for name, schema in schemas.items()]
        for tables in made:
            for writer, table in zip(writers, tables, strict=True):
                writer.write(table)
    records = {name: ShardRecord("part.parquet", *describe(root / name / "part.parquet")) for name in schemas}
    return {name: Stored(root / name, Manifest(name, "", "", {}, [record], {})) for name, record in records.items()}


def run_stage(arguments: argparse.Namespace) -> dict[str, float]:
    """Build the shard; peak memory in MB, that before the stage, and seconds."""
    from data.config.settings import load
    from pipeline.stage import StageContext, WorkerCache
    from pipeline.stages import training_shards as shards
    from retrieval.models.resolved import ResolvedModels
    from retrieval.models.tokenizer import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        longest = {"passage_tokens": arguments.tokens + 16}
        settings = {
            "store": folder, "ingest": {"path": folder}, "student": {"model": str(arguments.student), **longest},
            "teacher": {"model": str(arguments.teacher), "precision": "fp32", "max_tokens": 32},
        }  # fmt: skip
        (root / "experiment.yaml").write_text(yaml.safe_dump(settings))
        experiment = load({"config": str(root / "experiment.yaml")})
        words = whole_words(arguments.student)
        found = inputs(root, lists(arguments.one, arguments.candidates, arguments.tokens, words))
        Tokenizer(arguments.student).encode([str(words[0])], max_tokens=8)  # a worker has one
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        started = time.perf_counter()
        context = StageContext(
            ResolvedModels(experiment), shards.table(experiment), root / "out", "f", [0], 1, found, WorkerCache(),
            report=lambda unit, count: None, warn=print,
        )  # fmt: skip
        context.table.build(context)
        seconds = time.perf_counter() - started
    return {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3, "before": before, "seconds": seconds}


def main() -> None:
    """Both sizes, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("student", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("--few", type=int, default=500)
    parser.add_argument("--many", type=int, default=8000)
    parser.add_argument("--candidates", type=int, default=26)
    parser.add_argument("--tokens", type=int, default=112)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(run_stage(arguments)))
        return
    compare_peaks(
        "shard_memory", [(f"--one={queries}", f"{queries:>6,} queries") for queries in (arguments.few, arguments.many)],
        line="peak {peak:.0f} MB ({before:.0f} before), {seconds:.1f} s",
    )  # fmt: skip


if __name__ == "__main__":
    main()
