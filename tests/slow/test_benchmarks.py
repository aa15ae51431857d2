"""Benchmarks run, small, and end in the one JSON line that others read."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"
KEYS = {"name", "ours", "peer", "ratio", "unit"}
CEILINGS = {"ceiling_bf16_gflops", "ceiling_fp32_gflops"}  # without which a ratio of another day says little


def last_line(name: str, *words: object) -> dict[str, Any]:
    done = subprocess.run([sys.executable, FOLDER / f"{name}.py", *map(str, words)], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_the_head_says_how_to_run_it(path: Path) -> None:
    """Prevents: a figure that nobody can measure again."""
    assert f"python benchmarks/{path.name}" in (ast.get_docstring(ast.parse(path.read_text())) or "")


def test_logit_store() -> None:
    """Prevents: a benchmark that breaks unseen."""
    figures = last_line("logit_store", "--keys", 20_000, "--segment", 3000, "--rounds", 1)
    assert set(figures) >= KEYS and figures["ratio"] > 0


def test_scoring_memory(models: Any) -> None:
    """Prevents: a benchmark that breaks unseen, and memory that doubles with the pairs."""
    figures = last_line("scoring_memory", models.teacher, "--few", 400, "--many", 4000, "--shards", 2)
    assert set(figures) >= KEYS and figures["ratio"] < 1.5


@pytest.mark.parametrize("source", ["student", "bm25:2,random"])
def test_pool_memory(source: str) -> None:
    """Prevents: a benchmark that breaks unseen."""
    figures = last_line("pool_memory", "--passages", 5000, "--queries", 30, "--depth", 300, "--source", source)
    assert set(figures) >= KEYS and figures["ratio"] > 0


def test_shard_memory(models: Any) -> None:
    """Prevents: a benchmark that breaks unseen, and training rows held as Python lists."""
    figures = last_line("shard_memory", models.student, models.teacher, "--few", 50, "--many", 2000, "--tokens", 100)
    assert set(figures) >= KEYS and figures["ratio"] < 1.4


def test_scale() -> None:
    """Prevents: a benchmark that breaks unseen."""
    sizes = ("--passages", 3000, "--queries", 60, "--corpus-shards", 2, "--query-shards", 6)
    figures = last_line("scale", *sizes, "--runner", "local")
    assert set(figures) >= KEYS and figures["stages"]["after"]["pools"]["cpu_seconds"] > 0


def test_search_scale() -> None:
    """Prevents: a benchmark that breaks unseen, or whose sides find other passages."""
    figures = last_line("search_scale", "--sizes", 900, 1500, "--queries", 300, "--depth", 20, "--threads", 1)
    assert set(figures) >= KEYS and figures["ratio"] > 0
    assert [line["rows"] for line in figures["sizes"]] == [900, 1500] and all(line["same"] > 0.999 for line in figures["sizes"])


def test_mining(models: Any, collection: Path) -> None:
    """Prevents: a benchmark that breaks unseen, or whose sides mine from other passages."""
    pytest.importorskip("sentence_transformers")
    figures = last_line("mining", models.student, collection, "--top", 10, "--threads", 1, "--precision", "fp32")
    assert set(figures) >= KEYS | CEILINGS and figures["ratio"] > 0 and figures["memory_ratio"] > 0
    assert figures["overlap"] > 0.99


def test_teacher_scoring(models: Any, collection: Path) -> None:
    """Prevents: a benchmark that breaks unseen, or whose sides do not score the same."""
    from retrieval.compute.precision import cpu_computes_bf16

    pytest.importorskip("sentence_transformers")
    if not cpu_computes_bf16():
        pytest.skip("this processor would emulate bf16")
    figures = last_line("teacher_scoring", models.teacher, collection, "--pairs", 24, "--rounds", 1, "--threads", 1)
    assert set(figures) >= KEYS | CEILINGS and figures["ratio"] > 0 and figures["ceiling_share"] > 0
    assert 0 < figures["largest_difference"] < 0.03, "bf16 differs from fp32, but less than the logits of two pairs, which spread over 0.5"


def test_host_rates(models: Any, collection: Path) -> None:
    """Prevents: a benchmark that breaks unseen, or that scores and embeds nothing."""
    figures = last_line("host_rates", models.teacher, models.student, collection, "--pairs", 52, "--texts", 40, "--rounds", 1)
    assert set(figures) >= KEYS | CEILINGS and figures["ratio"] == 1
    (side,) = figures["sides"].values()
    assert all(side[name] > 0 for name in ("known_rate", "known_us", "cold_rate", "cold_serial_rate", "embed_rate", "embed_feeder_us"))


def test_training(models: Any, collection: Path) -> None:
    """Prevents: a benchmark that breaks unseen, or whose sides do not train on the same lists towards the same loss."""
    pytest.importorskip("sentence_transformers")
    pytest.importorskip("accelerate")
    options = ["--steps", 2, "--batch", 2, "--layers", 1, "--threads", 1, "--precision", "fp32"]
    figures = last_line("training", models.student, collection, *options, "--only", "ours", "peer", "everything", "KL shares")
    assert set(figures) >= KEYS | CEILINGS and figures["ratio"] > 0 and figures["memory_ratio"] > 0 and figures["shares_ratio"] > 0
    assert all(figures[name] > 0 for name in (*CEILINGS, "ours_ceiling_share", "peer_ceiling_share"))
    # The same four lists, but each side has an order and dropout masks of its own, and the second step sees what the first one taught.
    assert figures["ours_loss"] == pytest.approx(figures["peer_loss"], rel=0.3)


def test_interchange() -> None:
    """Prevents: a benchmark that breaks unseen."""
    pytest.importorskip("datasets")
    figures = last_line("interchange", "--few", 2000, "--many", 4000, "--rounds", 1)
    assert set(figures) >= KEYS and figures["ratio"] > 0 and 0.5 < figures["memory_ratio"] < 1.5


def test_streaming() -> None:
    """Prevents: a benchmark that breaks unseen."""
    figures = last_line("streaming", "--queries", 4, "--times", 3, "--steps", 2, "--batch", 2, "--layers", 1)
    assert set(figures) >= KEYS and 0.5 < figures["ratio"] < 1.5


def test_training_host() -> None:
    """Prevents: a benchmark that breaks unseen, and passes that are no longer those of a GPU's defaults."""
    figures = last_line("training_host", "--queries", 16, "--candidates", 8, "--steps", 1, "--rounds", 1)
    assert set(figures) >= KEYS and figures["ours"] > 0 and figures["ratio"] == figures["planning_ratio"] == 1
    assert figures["sides"]["after"]["passes"] == 1, "15,000 tokens are one group, in one pass"


def test_plain_training(copied: Any, prep_run: Any) -> None:
    """Prevents: a fast trainer that trains towards something else than a plain one, and a benchmark that breaks unseen."""
    words = {"dev.queries": 4, "dev.depth": 5}
    prep_run(copied.config, stage="dev", **words)
    (shards,), (dev,) = ([path.parent for path in (copied.store / stage).glob("*/manifest.json")] for stage in ("shards", "dev"))
    options = ["steps=3", "dropout=0", "train.precision=fp32", "train.warmup_steps=1", "train.threads=1", "train.workers=2"]
    figures = last_line("plain_training", f"config={copied.config}", f"shards={shards}", f"dev={dev}", *options)
    assert set(figures) >= KEYS and 0 < figures["ours"] <= 1
    assert figures["moved"] > 0.01 and figures["parameters_apart"] < 1e-3
    assert figures["difference"] == 0


def test_checkpoint() -> None:
    """Prevents: a benchmark that breaks unseen, and a step that waits for the files of its checkpoint."""
    figures = last_line("checkpoint", "--layers", 2, "--width", 384, "--rounds", 2)
    assert set(figures) >= KEYS and 0 < figures["ratio"] < 1
