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

from support.ceiling import ceilings, print_ceilings

from pipeline.executors.resources import usable_cpus

MAX_TOKENS = 128  # of a pair; ADAM's passages have as many (section 4.3)
Pairs = list[tuple[str, str]]


def real_pairs(collection: Path, count: int) -> Pairs:
    """Training queries with their positives and three other passages each."""
    texts: dict[str, dict[str, str]] = {}
    for name in ("corpus", "queries"):
        with open(collection / f"{name}.jsonl", encoding="utf-8") as file:
            texts[name] = {record["_id"]: record["text"] for record in map(json.loads, file)}
    chance = random.Random(0)
    doc_ids = sorted(texts["corpus"])
    pairs: Pairs = []
    with open(collection / "qrels" / "train.tsv", encoding="utf-8") as file:
        for line in itertools.islice(file, 1, None):
            query_id, doc_id, _ = line.split("\t")
            for candidate in (doc_id, *chance.sample(doc_ids, 3)):
                pairs.append((texts["queries"][query_id], texts["corpus"][candidate]))
    return pairs[:count]


class Side:
    """One competitor in a process of its own."""

    def __init__(self, name: str) -> None:
        command = [sys.executable, *sys.argv, f"--side={name}"]
        self.name = name
        self.rounds: list[float] = []
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.start_up = self._ask()["start_up"]
        self.result: Any = None

    def _ask(self) -> Any:
        assert self._process.stdin and self._process.stdout
        print(file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"{self.name} ended; run it alone to see why: --side {self.name}")
        return json.loads(answer)

    def run_round(self) -> None:
        """Score all pairs once."""
        answer = self._ask()
        self.rounds.append(answer["seconds"])
        self.result = answer["result"]

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def ours(folder: Path, *, precision: str, compiled: bool = False) -> Callable[[Pairs], list[float]]:
    """This project: tokenise, batch, score."""
    from retrieval.teachers.cross_encoder import TorchCrossEncoder
    from retrieval.teachers.pair_tokens import PairTokenizer
    from retrieval.teachers.scoring import score_pairs

    teacher = TorchCrossEncoder(folder, precision=precision, device="cpu", compiled=compiled)
    tokenizer = PairTokenizer(folder, max_tokens=MAX_TOKENS, kept_tokens=0)  # each round tokenises all texts again
    return lambda pairs: score_pairs(teacher, tokenizer.encode(pairs), pad_id=tokenizer.pad_id).tolist()


def peer(folder: Path, *, precision: str) -> Callable[[Pairs], list[float]]:
    """sentence-transformers' CrossEncoder.predict with its defaults, or with bf16 weights."""
    import torch
    from sentence_transformers import CrossEncoder

    options = {} if precision == "fp32" else {"model_kwargs": {"dtype": torch.bfloat16}}
    encoder = CrossEncoder(str(folder), max_length=MAX_TOKENS, device="cpu", activation_fn=torch.nn.Identity(), **options)
    return lambda pairs: [float(logit) for logit in encoder.predict(pairs, show_progress_bar=False)]


SIDES: dict[str, Callable[[Path], Callable[[Pairs], Any]]] = {
    "ours": lambda folder: ours(folder, precision="bf16"),
    "ours compiled": lambda folder: ours(folder, precision="bf16", compiled=True),
    "ours fp32": lambda folder: ours(folder, precision="fp32"),
    "peer": lambda folder: peer(folder, precision="fp32"),
    "peer bf16": lambda folder: peer(folder, precision="bf16"),
    "ceiling": lambda folder: lambda pairs: ceilings(folder),
}


def be_a_side(given: argparse.Namespace) -> None:
    """Answer every line of standard input with one round."""
    import torch

    torch.set_num_threads(given.threads)
    pairs = real_pairs(given.collection, given.pairs)
    started = time.perf_counter()
    score = SIDES[given.side](given.teacher)
    score(pairs[:64])
    start_up = time.perf_counter() - started
    input()
    print(json.dumps({"start_up": start_up}), flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        result = score(pairs)
        print(json.dumps({"seconds": time.perf_counter() - started, "result": result}), flush=True)


def flops(folder: Path, pairs: Pairs) -> float:
    """Multiply-adds of all pairs, times 2: linear layers and attention, padding not counted."""
    from retrieval.teachers.pair_tokens import PairTokenizer

    config = json.loads((folder / "config.json").read_text())
    size, inner, layers = (config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    lengths = [len(pair.ids) for pair in PairTokenizer(folder, max_tokens=MAX_TOKENS).encode(pairs)]
    return float(sum(layers * (2 * n * (4 * size * size + 2 * size * inner) + 4 * n * n * size) for n in lengths))


def warm_seconds(pairs: Pairs, logits: list[float]) -> float:
    """Median time of the same pairs from the logit store: hash the texts, look the keys up. No model, no tokenizer."""
    import numpy as np

    from data.digests import pair_key
    from data.logits.segment import Scores, as_keys
    from data.logits.store import LogitStore

    with tempfile.TemporaryDirectory() as root:
        store = LogitStore(Path(root), "benchmark")
        keys = as_keys([pair_key(*pair) for pair in pairs])
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
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="of each side; default all")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.side:
        be_a_side(given)
        return

    import numpy as np
    from scipy.stats import spearmanr

    pairs = real_pairs(given.collection, given.pairs)
    sides = {name: Side(name) for name in SIDES}
    for number in range(given.rounds):
        for name, side in sides.items():
            side.run_round()
            print(f"round {number + 1}: {name}, {side.rounds[-1]:.1f} s", file=sys.stderr, flush=True)
    for side in sides.values():
        side.close()

    ceiling = sides.pop("ceiling").result
    work = flops(given.teacher, pairs)
    rate = {name: len(pairs) / median(side.rounds) for name, side in sides.items()}
    share = {name: work / median(side.rounds) / ceiling["bf16"] for name, side in sides.items()}
    logits = {name: np.array(side.result) for name, side in sides.items()}
    off = {name: np.abs(found - logits["peer"]) for name, found in logits.items()}
    for name, side in sides.items():
        rank = spearmanr(logits[name], logits["peer"]).statistic
        print(
            f"{name:14} {rate[name]:7.1f} pairs/s, start-up {side.start_up:5.1f} s, {share[name]:.2f} of the bf16 ceiling, logits off fp32 "
            f"by {off[name].max():.4f} (mean {off[name].mean():.4f}, Spearman {rank:.5f})"
        )
    ceiling_figures = print_ceilings(ceiling)
    cold = median(sides["ours"].rounds)
    warm = warm_seconds(pairs, sides["ours"].result)
    print(f"warm           {len(pairs) / warm:7.0f} pairs/s, {cold / warm:,.0f} times cold")
    figures = {
        "name": "teacher_scoring", "ours": round(rate["ours"], 2), "peer": round(rate["peer"], 2),
        "ratio": round(rate["ours"] / rate["peer"], 3), "unit": "pairs/s",
        "compiled_ratio": round(rate["ours compiled"] / rate["peer"], 3),
        "equal_precision_ratio": round(rate["ours"] / rate["peer bf16"], 3),
        "fp32_ratio": round(rate["ours fp32"] / rate["peer"], 3), "ceiling_share": round(share["ours"], 3), **ceiling_figures,
        "warm_ratio": round(cold / warm), "largest_difference": round(float(off["ours"].max()), 4),  # of a logit, bf16 from the peer's fp32
    }  # fmt: skip
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
