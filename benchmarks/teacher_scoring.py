"""Pairs/s of teacher scoring, side by side with sentence-transformers, and the share of the processor's GEMM ceiling.

    python benchmarks/teacher_scoring.py TEACHER COLLECTION [--pairs 2000] [--rounds 3] [--threads N]

TEACHER is a folder of torch weights of a cross-encoder, COLLECTION a folder in BEIR form, of which every training query is paired with
its positive and three passages at random. `pip install -e '.[dev]'` brings the peer. All sides score the same pairs with the same
truncation and number of threads; each lives in a process of its own, and they take turns, round by round. Ratios are of medians.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

MAX_TOKENS = 128  # of a pair; ADAM's passages have as many (section 4.3)
CEILING_TOKENS = 2048  # rows of the ceiling's matrices: a batch of the project's default size
Pairs = list[tuple[str, str]]


def real_pairs(collection: Path, count: int) -> Pairs:
    """Training queries with their positives and three other passages each."""
    texts: dict[str, dict[str, str]] = {}
    for name in ("corpus", "queries"):
        with open(collection / f"{name}.jsonl", encoding="utf-8") as file:
            texts[name] = {record["_id"]: record["text"] for record in map(json.loads, file)}
    chance, doc_ids, pairs = random.Random(0), sorted(texts["corpus"]), []
    with open(collection / "qrels" / "train.tsv", encoding="utf-8") as file:
        for line in itertools.islice(file, 1, None):
            query_id, doc_id, _ = line.split("\t")
            for candidate in (doc_id, *chance.sample(doc_ids, 3)):
                pairs.append((texts["queries"][query_id], texts["corpus"][candidate]))
    return pairs[:count]


class Side:
    """One competitor in a process of its own: `seconds()` asks it for one more round."""

    def __init__(self, name: str, arguments: argparse.Namespace) -> None:
        words = [sys.executable, __file__, str(arguments.teacher), str(arguments.collection), "--side", name]
        words += ["--pairs", str(arguments.pairs), "--threads", str(arguments.threads)]
        self.name, self.rounds, self.start_up = name, list[float](), 0.0
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.start_up = json.loads(self._ask())["start_up"]

    def _ask(self) -> str:
        assert self._process.stdin and self._process.stdout
        print(file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"{self.name} ended; run it alone to see why: --side {self.name}")
        return answer

    def run_round(self) -> Any:
        """Score all pairs once; returns what the side says of it."""
        answer = json.loads(self._ask())
        self.rounds.append(answer["seconds"])
        return answer

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def ours(folder: Path, pairs: Pairs, *, precision: str, compiled: bool) -> Callable[[], list[float]]:
    """This project: tokenise, batch, score."""
    from retrieval.teachers.cross_encoder import TorchCrossEncoder, score_pairs
    from retrieval.teachers.pair_tokens import PairTokenizer

    teacher = TorchCrossEncoder(folder, precision=precision, device="cpu", compiled=compiled)
    tokenizer = PairTokenizer(folder, max_tokens=MAX_TOKENS, kept_tokens=0)  # each round tokenises all texts again

    def score() -> list[float]:
        return score_pairs(teacher, tokenizer.encode(pairs), pad_id=tokenizer.pad_id).tolist()

    score_pairs(teacher, tokenizer.encode(pairs[:64]), pad_id=tokenizer.pad_id)
    return score


def peer(folder: Path, pairs: Pairs, *, precision: str) -> Callable[[], list[float]]:
    """sentence-transformers' CrossEncoder.predict with its defaults, or with bf16 weights."""
    import torch
    from sentence_transformers import CrossEncoder

    options = {} if precision == "fp32" else {"model_kwargs": {"dtype": torch.bfloat16}}
    encoder = CrossEncoder(str(folder), max_length=MAX_TOKENS, device="cpu", activation_fn=torch.nn.Identity(), **options)

    def score() -> list[float]:
        return [float(logit) for logit in encoder.predict(pairs, show_progress_bar=False)]

    encoder.predict(pairs[:64], show_progress_bar=False)
    return score


def ceiling(folder: Path) -> Callable[[], float]:
    """FLOP/s of torch.nn.functional.linear at the shapes of the model's layers, bf16: measured for a second and a half."""
    import torch

    size, inner = (json.loads((folder / "config.json").read_text())[name] for name in ("hidden_size", "intermediate_size"))
    shapes = [(size, size)] * 4 + [(size, inner), (inner, size)]
    layers = [(torch.randn(CEILING_TOKENS, i), torch.randn(o, i), torch.randn(o)) for i, o in shapes]
    low = [[tensor.to(torch.bfloat16) for tensor in layer] for layer in layers]
    work = sum(2 * CEILING_TOKENS * i * o for i, o in shapes)

    def measure() -> float:
        times, started = [], time.perf_counter()
        with torch.inference_mode():
            while time.perf_counter() - started < 1.5:
                before = time.perf_counter()
                for values, weight, bias in low:
                    torch.nn.functional.linear(values, weight, bias)
                times.append(time.perf_counter() - before)
        return work / median(times)

    return measure


SIDES: dict[str, Callable[[Path, Pairs], Callable[[], Any]]] = {
    "ours": lambda folder, pairs: ours(folder, pairs, precision="bf16", compiled=False),
    "ours compiled": lambda folder, pairs: ours(folder, pairs, precision="bf16", compiled=True),
    "ours fp32": lambda folder, pairs: ours(folder, pairs, precision="fp32", compiled=False),
    "peer": lambda folder, pairs: peer(folder, pairs, precision="fp32"),
    "peer bf16": lambda folder, pairs: peer(folder, pairs, precision="bf16"),
    "ceiling": lambda folder, pairs: ceiling(folder),
}


def be_a_side(arguments: argparse.Namespace) -> None:
    """Answer every line of standard input with one round."""
    import torch

    torch.set_num_threads(arguments.threads)
    pairs = real_pairs(arguments.collection, arguments.pairs)
    started = time.perf_counter()
    score = SIDES[arguments.side](arguments.teacher, pairs)
    start_up = time.perf_counter() - started
    input()
    print(json.dumps({"start_up": start_up}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        result = score()
        print(json.dumps({"seconds": time.perf_counter() - started, "result": result}), flush=True)


def flops(folder: Path, pairs: Pairs) -> float:
    """Multiply-adds of all pairs, times 2: linear layers and attention, padding not counted."""
    from retrieval.teachers.pair_tokens import PairTokenizer

    config = json.loads((folder / "config.json").read_text())
    size, inner, layers = (config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    lengths = [len(pair.ids) for pair in PairTokenizer(folder, max_tokens=MAX_TOKENS).encode(pairs)]
    return float(sum(layers * (2 * n * (4 * size * size + 2 * size * inner) + 4 * n * n * size) for n in lengths))


def warm_seconds(folder: Path, pairs: Pairs, logits: list[float]) -> float:
    """Median time of the same pairs from the logit store: hash the texts, look the keys up. No model, no tokenizer."""
    import numpy as np

    from data.digests import pair_key
    from data.logits.segment import Scores, as_keys
    from data.logits.store import LogitStore

    with tempfile.TemporaryDirectory() as root:
        store, keys = LogitStore(Path(root), "benchmark"), as_keys([pair_key(*pair) for pair in pairs])
        _, first = np.unique(keys, axis=0, return_index=True)
        scores = Scores(np.array(logits, np.float32), np.zeros(len(pairs), np.int32), np.zeros(len(pairs), bool))
        store.append(keys[first], scores.take(first))
        times = []
        for _ in range(15):
            started = time.perf_counter()
            found = LogitStore(Path(root), "benchmark").lookup(as_keys([pair_key(*pair) for pair in pairs]))
            times.append(time.perf_counter() - started)
        assert np.isfinite(found.logits).all()
    return median(times)


def main() -> None:
    """Take turns, then print a table and one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("collection", type=Path)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="of each side; default all")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not arguments.threads:
        from pipeline.executors.resources import usable_cpus

        arguments.threads = usable_cpus()
    if arguments.side:
        be_a_side(arguments)
        return

    import numpy as np
    from scipy.stats import spearmanr

    pairs = real_pairs(arguments.collection, arguments.pairs)
    sides = {name: Side(name, arguments) for name in SIDES}
    answers: dict[str, list[Any]] = {name: [] for name in sides}
    for number in range(arguments.rounds):
        for name, side in sides.items():
            answers[name].append(side.run_round()["result"])
            print(f"round {number + 1}: {name}, {side.rounds[-1]:.1f} s", file=sys.stderr, flush=True)
    for side in sides.values():
        side.close()

    rate = {name: len(pairs) / median(side.rounds) for name, side in sides.items() if name != "ceiling"}
    best = median(answers["ceiling"])
    share = {name: flops(arguments.teacher, pairs) / median(sides[name].rounds) / best for name in ("ours", "ours compiled", "peer bf16")}
    reference, largest = np.array(answers["peer"][-1]), dict[str, float]()
    for name in rate:
        off = np.abs(np.array(answers[name][-1]) - reference)
        largest[name] = float(off.max())
        rank = spearmanr(answers[name][-1], reference).statistic
        of_ceiling = f", {share[name]:.2f} of the ceiling" if name in share else ""
        print(
            f"{name:14} {rate[name]:7.1f} pairs/s, start-up {sides[name].start_up:5.1f} s, logits off fp32 by {largest[name]:.4f} "
            f"(mean {off.mean():.4f}, Spearman {rank:.5f}){of_ceiling}"
        )
    print(f"ceiling        {best / 1e9:7.0f} GFLOP/s in bf16")
    cold, warm = median(sides["ours"].rounds), warm_seconds(arguments.teacher, pairs, answers["ours"][-1])
    print(f"warm           {len(pairs) / warm:7.0f} pairs/s, {cold / warm:,.0f} times cold")
    figures = {
        "name": "teacher_scoring", "ours": round(rate["ours compiled"], 2), "peer": round(rate["peer"], 2),
        "ratio": round(rate["ours compiled"] / rate["peer"], 3), "unit": "pairs/s",
        "eager_ratio": round(rate["ours"] / rate["peer"], 3), "equal_precision_eager_ratio": round(rate["ours"] / rate["peer bf16"], 3),
        "equal_precision_compiled_ratio": round(rate["ours compiled"] / rate["peer bf16"], 3),
        "fp32_ratio": round(rate["ours fp32"] / rate["peer"], 3), "ceiling_share_eager": round(share["ours"], 3),
        "ceiling_share_compiled": round(share["ours compiled"], 3), "warm_ratio": round(cold / warm),
        "largest_difference": round(largest["ours"], 4),  # of a logit, eager bf16 from the peer's fp32
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
