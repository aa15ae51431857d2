"""Training on few shards against many times more: the step must not wait for its data, and memory must not grow.

    python benchmarks/streaming.py [--queries 512] [--times 50] [--steps 160] [--batch 16] [--layers 3]

The real trainer on made-up training rows of 26 candidates of 112 tokens (ADAM, section 4.3) and a randomly initialised student of
MiniLM's width, each size in a process of its own; the many shards repeat the few. 128 steps of 16 queries are a window of the stream.
`peer` is the peak memory with few shards, `ours` with many; the shares of time that went into waiting for data, which the trainer
reports itself, are printed above.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from support.sides import compare_peaks
from training import write_shards  # the benchmark beside this one

CANDIDATES, TOKENS, VOCABULARY = 26, 112, 30_522


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


def lists(queries: int) -> list[dict[str, Any]]:
    """Random tokens, about 112 a candidate and at most 128."""
    chance = np.random.default_rng(0)

    def tokens(count: int) -> list[int]:
        return chance.integers(5, VOCABULARY, count).tolist()

    return [
        {
            "query_id": f"q{number}", "query_tokens": tokens(12), "ids": [f"d{number}-{place}" for place in range(CANDIDATES)],
            "tokens": [tokens(int(length)) for length in chance.normal(TOKENS, 12, CANDIDATES).clip(16, 128)],
            "kinds": [0] + [1] * 10 + [2] * 10 + [3] * 5, "logits": chance.normal(size=CANDIDATES).tolist(), "confidence": -chance.random(),
        }
        for number in range(queries)
    ]  # fmt: skip


def run(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Make shards and train; peak memory in MB, and the share of time spent waiting."""
    from retrieval.model_files.files import tokenizer_digest
    from trainer import recipes
    from trainer.loop import train

    save_student(folder / "student", arguments.layers)
    digest = tokenizer_digest(folder / "student")
    write_shards(folder / "shards", lists(arguments.queries), tokenizer=digest, copies=arguments.copies)
    settings = {
        "store": str(folder), "ingest": {"path": str(folder)}, "teacher": {"model": "none"}, "student": {"model": str(folder / "student")},
        "train": {"output": str(folder / "run"), "batch_queries": arguments.batch, "epochs": 10, "steps": arguments.steps,
                  "warmup_steps": 5, "objective": {"without": ["adaptive"]}},
    }  # fmt: skip
    (folder / "experiment.yaml").write_text(yaml.safe_dump(settings))
    made = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    assert train(recipes.load({"config": str(folder / "experiment.yaml")}), shards_folder=folder / "shards") == 0
    lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    waited, worked = sum(line["waited"] for line in lines), sum(line["seconds"] for line in lines)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    return {"peak": peak, "made": made, "waited": waited / (waited + worked), "queries_per_second": arguments.batch * len(lines) / worked}


def main() -> None:
    """Both sizes, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"queries": 512, "times": 50, "steps": 160, "batch": 16, "layers": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--copies", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.copies:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run(Path(folder), arguments)))
        return
    compare_peaks(
        "streaming_memory", [(f"--copies={copies}", f"{copies * arguments.queries:>7,} queries") for copies in (1, arguments.times)],
        line="peak {peak:.0f} MB ({made:.0f} before the run), {waited:.3%} of the time waited for data, {queries_per_second:.2f} queries/s",
    )  # fmt: skip


if __name__ == "__main__":
    main()
