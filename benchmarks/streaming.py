"""Training on few shards against a hundred times more: the step must not wait for its data, and memory must not grow.

    python benchmarks/streaming.py [--queries 256] [--times 100] [--steps 160] [--batch 16] [--layers 3]

The real trainer on made-up training rows of 26 candidates of 112 tokens (ADAM, section 4.3) and a randomly initialised student of
MiniLM's width, each size in a process of its own; 128 steps of 16 queries are a window of the stream. `peer` is the peak memory with
few shards, `ours` with many; the shares of time that went into waiting for data, which the trainer reports itself, are printed above.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

CANDIDATES, TOKENS, VOCABULARY = 26, 112, 30_522
SHARD_ROWS = 1024


def save_student(folder: Path, layers: int) -> None:
    """A BERT of MiniLM's width with random weights, and the tokenizer that its digest is taken of."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    config = BertConfig(vocab_size=VOCABULARY, hidden_size=384, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=1536)
    BertModel(config, add_pooling_layer=False).save_pretrained(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *(f"w{number}" for number in range(VOCABULARY - len(special)))]) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)


def write_shards(folder: Path, queries: int, tokenizer: str) -> None:
    """Training shards of random tokens, about 112 a candidate and at most 128."""
    from data.tables.manifest import Manifest, ShardRecord
    from data.tables.schemas import TRAINING, TRAINING_VERSION
    from data.tables.shards import TRAINING_GROUP_ROWS, describe, open_shard, shard_name

    content = {
        "schema_version": TRAINING_VERSION, "tokenizer": tokenizer, "teachers": ["teacher"], "draws": 1, "negatives_source": "student",
        "mask_ratios": [0.15, 0.25, 0.35, 0.45, 0.55], "negatives": 10,
    }  # fmt: skip
    schema = TRAINING.with_metadata({b"training": json.dumps(content).encode()})
    chance, records, count = np.random.default_rng(0), [], -(-queries // SHARD_ROWS)
    kinds = np.array([0] + [1] * 10 + [2] * 10 + [3] * 5, dtype=np.int8)
    for index in range(count):
        path = folder / shard_name(index, count)
        with open_shard(path, schema, {}) as writer:
            for start in range(index * SHARD_ROWS, min(queries, (index + 1) * SHARD_ROWS), TRAINING_GROUP_ROWS):
                rows = min(TRAINING_GROUP_ROWS, min(queries, (index + 1) * SHARD_ROWS) - start)
                writer.write_row_group(group(chance, start, rows, kinds, schema))
        records.append(ShardRecord(path.name, *describe(path)))
    Manifest("shards", "", "fingerprint", {}, records, {}).write(folder)


def group(chance: np.random.Generator, start: int, rows: int, kinds: Any, schema: pa.Schema) -> pa.Table:
    """A row group."""
    every = rows * CANDIDATES
    lengths = np.minimum(chance.normal(TOKENS, 12, every).astype(np.int64).clip(16), 128)
    tokens = _lists(chance.integers(5, VOCABULARY, int(lengths.sum()), dtype=np.int32), lengths)
    per_row = np.full(rows, CANDIDATES)
    columns = [
        pa.array([f"q{number}" for number in range(start, start + rows)]),
        pa.array(np.zeros(rows, dtype=np.int32)).cast(schema.field("draw").type),
        _lists(chance.integers(5, VOCABULARY, rows * 12, dtype=np.int32), np.full(rows, 12)),
        _lists(tokens, per_row),
        _lists(np.tile(kinds, rows), per_row),
        _lists(pa.array([f"d{number}" for number in range(start * CANDIDATES, (start + rows) * CANDIDATES)]), per_row),
        _lists(chance.normal(size=every).astype(np.float32), per_row),
        pa.array(-chance.random(rows).astype(np.float32)),
        _lists(pa.array([f"d{number * CANDIDATES}" for number in range(start, start + rows)]), np.ones(rows, np.int64)),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _lists(values: Any, lengths: Any) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, values if isinstance(values, pa.Array) else pa.array(values))


def run(folder: Path, queries: int, steps: int, batch: int, layers: int) -> dict[str, float]:
    """Make shards and train; peak memory in MB, and the share of time spent waiting."""
    import resource

    from retrieval.checkpoints.files import tokenizer_digest
    from trainer import recipes
    from trainer.loop import train

    save_student(folder / "student", layers)
    write_shards(folder / "shards", queries, tokenizer_digest(folder / "student"))
    settings = {
        "store": str(folder), "ingest": {"path": str(folder)}, "teacher": {"model": "none"}, "student": {"model": str(folder / "student")},
        "train": {"output": str(folder / "run"), "batch_queries": batch, "epochs": 10, "steps": steps, "warmup_steps": 5,
                  "objective": {"without": ["adaptive"]}},
    }  # fmt: skip
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    assert train(recipes.load({"config": str(folder / "experiment.yaml")}), shards_folder=folder / "shards") == 0
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    waited, worked = sum(line["waited"] for line in lines), sum(line["seconds"] for line in lines)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"peak": peak, "made": made, "waited": waited / (waited + worked), "queries_per_second": batch * len(lines) / worked}


def main() -> None:
    """Both sizes, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=256)
    parser.add_argument("--times", type=int, default=100)
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(Path(folder), arguments.one, arguments.steps, arguments.batch, arguments.layers)))
        return
    peaks = []
    for queries in (arguments.queries, arguments.queries * arguments.times):
        words = [*(f"--{name}={getattr(arguments, name)}" for name in ("steps", "batch", "layers")), f"--one={queries}"]
        done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        peaks.append(figures["peak"])
        print(
            f"{queries:>7,} queries: peak {figures['peak']:.0f} MB ({figures['made']:.0f} before the run), "
            f"{figures['waited']:.3%} of the time waited for data, {figures['queries_per_second']:.2f} queries/s"
        )
    few, many = peaks
    print(json.dumps({"name": "streaming_memory", "ours": round(many), "peer": round(few), "ratio": round(many / few, 3), "unit": "MB"}))


if __name__ == "__main__":
    main()
