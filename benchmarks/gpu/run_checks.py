"""Checks that run whole stages and trainings, as the commands do."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from gpu.busy import watched
from gpu.made_up import Bench

from data.config.settings import load

_SERIAL = {"TOKENIZERS_PARALLELISM": "false"}
_BEFORE_SCORES = ("ingest", "embed", "pools", "hard_negatives", "dark_examples")
_STEPS = 4


def embedding(bench: Bench) -> dict[str, Any]:
    """Texts a second of the stage `embed`: of passages of about 100 tokens, and of queries."""
    _prep(bench, "embedding", "ingest")
    figures = _prep(bench, "embedding", "embed")
    return {**figures, "texts_per_second": round(_rows(bench, "embedding", "embed") / figures["seconds"], 1)}


def scoring_stage(bench: Bench) -> dict[str, Any]:
    """Pairs a second of the stage `teacher_scores`, by budget of a batch, and where the tokenizer may use one thread of its own."""
    found: dict[str, Any] = {}
    for stage in _BEFORE_SCORES:
        _prep(bench, "main", stage)
    for name, options, environment in (
        ("defaults", {}, {}),
        ("batch_tokens=16384", {"teacher.batch_tokens": 16_384}, {}),
        ("serial tokenizer", {}, _SERIAL),
    ):
        store = bench.folder / "store-main"
        for stage in ("teacher_scores", "teacher_logits"):
            if (store / stage).exists():  # so that every pair is scored again
                (store / stage).rename(bench.folder / f"{stage}-before-{name}".replace(" ", "-"))
        with mock.patch.dict(os.environ, environment):
            figures = _prep(bench, "main", "teacher_scores", **options)
        pairs = _rows(bench, "main", "teacher_scores")
        found[name] = {**figures, "pairs": pairs, "pairs_per_second": round(pairs / figures["seconds"], 1)}
    return {"ok": all(one["pairs"] for one in found.values()), **found}


def training(bench: Bench) -> dict[str, Any]:
    """Tokens a second, share of the device's arithmetic, busy share and memory, by budget, with in-batch negatives and compiled."""
    cases: dict[str, dict[str, Any]] = {f"{tokens} tokens": {"train.micro_batch_tokens": tokens} for tokens in (4096, 16_384, 65_536)}
    cases["in-batch"] = {"train.objective.in_batch": "both", "train.objective.without": "reinforced,noisy"}
    cases["compiled"] = {"train.compile": "true"}
    if bench.small:  # compiling takes a processor minutes
        cases = {name: cases[name] for name in ("4096 tokens", "in-batch")}
    return {name: _measured(_train(bench, f"train-{place}", **options)) for place, (name, options) in enumerate(cases.items())}


def gradients_twice(bench: Bench) -> dict[str, Any]:
    """Two trainings from one seed: do they end in the same bytes? On a GPU they need not; how far apart the losses are is reported."""
    ends, losses = [], []
    for turn in ("once", "twice"):
        output = _train(bench, f"repeat-{turn}")["output"]
        ends.append((output / "student" / "model.safetensors").read_bytes())
        losses.append([line["loss"] for line in _lines(output)])
    apart = max(abs(one - other) for one, other in zip(*losses, strict=True))
    return {"ok": ends[0] == ends[1] or bench.is_gpu, "same_bytes": ends[0] == ends[1], "losses_apart": apart}


def checkpoint(bench: Bench) -> dict[str, Any]:
    """Seconds that a checkpoint with the optimizer's moments takes: a training with one each step beside one with the last alone."""
    often = _train(bench, "often", **{"train.checkpoint_every": 1})
    seldom = _train(bench, "seldom", **{"train.checkpoint_every": 1000})
    sizes = [path.stat().st_size for path in (often["output"] / "checkpoints").rglob("*") if path.is_file()]
    each = (often["seconds"] - seldom["seconds"]) / (_STEPS - 1)
    return {"seconds": round(each, 2), "gb_of_those_kept": round(sum(sizes) / 1e9, 3)}


def _prep(bench: Bench, name: str, stage: str, **options: Any) -> dict[str, Any]:
    """`prep run stage=...`; seconds, busy share, memory."""
    from pipeline.run import run

    figures: dict[str, Any] = {}
    experiment = load(bench.settings(name, **options))
    started = time.perf_counter()
    with watched(figures, is_gpu=bench.is_gpu):
        run(experiment, stage=stage, say=lambda line: None)
    return {"seconds": round(time.perf_counter() - started, 2), **figures}


def _rows(bench: Bench, name: str, stage: str) -> int:
    manifests = (bench.folder / f"store-{name}" / stage).glob("*/manifest.json")
    return sum(shard["rows"] for path in manifests for shard in json.loads(path.read_text())["shards"])


def _train(bench: Bench, name: str, **options: Any) -> dict[str, Any]:
    """`train run` for some steps on the shards of the collection; where it wrote, seconds, busy share, memory."""
    from trainer import recipes
    from trainer.loop import train

    for stage in (*_BEFORE_SCORES, "teacher_scores", "confidence", "shards"):  # those that are there cost nothing
        _prep(bench, "main", stage)
    (shards,) = (path.parent for path in (bench.folder / "store-main" / "shards").glob("*/manifest.json"))
    output = bench.folder / name
    given = {
        **bench.settings("main"), "train.output": str(output), "train.device": bench.device, "train.steps": str(_STEPS),
        "train.batch_queries": str(bench.size(128, 4)), "train.warmup_steps": "1", "train.tracker": "none",
        **{key: str(value) for key, value in options.items()},
    }  # fmt: skip
    figures: dict[str, Any] = {"output": output}
    started = time.perf_counter()
    with watched(figures, is_gpu=bench.is_gpu):
        if code := train(recipes.load(given), shards_folder=shards):
            raise RuntimeError(f"the training ended with {code}")
    return {**figures, "seconds": time.perf_counter() - started}


def _measured(figures: dict[str, Any]) -> dict[str, Any]:
    """Medians over the steps but the first, in which kernels are loaded."""
    lines = _lines(figures["output"])[1:]
    names = ("seconds", "waited", "tokens", "tokens_per_second", "mfu")
    return {name: round(median(line[name] for line in lines), 4) for name in names} | {
        name: figures[name] for name in ("busy", "gb") if name in figures
    }


def _lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
