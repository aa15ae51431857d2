"""The check of a GPU runs where there is none, small: on the day that there is one it shall not break on itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu_check.py"
CHECKS = [
    "environment", "tf32_bound", "search", "unpadded", "batch_invariance", "scoring_stage", "embedding", "training", "gradients_twice",
    "checkpoint", "peers",
]  # fmt: skip


def run(*words: str) -> tuple[int, list[dict]]:
    done = subprocess.run([sys.executable, SCRIPT, *words], capture_output=True, text=True, timeout=900)
    assert done.stdout, done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_every_check_runs_small_on_a_processor() -> None:
    """Prevents: ten minutes of a rented GPU that end in a misspelt import."""
    pytest.importorskip("sentence_transformers")
    code, lines = run("--device", "cpu", "--small")
    found = {line["check"]: line for line in lines[:-1]}
    assert list(found) == CHECKS and code == 0, [line for line in found.values() if not line["ok"]]
    assert lines[-1]["name"] == "gpu_check" and lines[-1]["failed"] == [] and set(lines[-1]["checks"]) == set(CHECKS)
    assert found["search"]["one"]["same_bits"] and found["search"]["all"]["devices"] == 2 and found["search"]["all"]["same_bits"]
    assert 0 < max(found["tf32_bound"]["shares_of_the_bound"].values()) < 1
    assert found["gradients_twice"]["same_bytes"] and found["training"]["4096 tokens"]["tokens_per_second"] > 0
    assert found["scoring_stage"]["defaults"]["pairs_per_second"] > 0 and found["peers"]["scoring_ratio"] > 0


def test_a_check_that_fails_is_a_line_and_a_code() -> None:
    """Prevents: one error that ends all checks, and an exit code of 0 after it."""
    code, lines = run("--device", "cuda", "--small", "--only", "environment", "tf32_bound")
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU: nothing fails")
    assert code == 1 and [line.get("check") for line in lines] == ["environment", "tf32_bound", None]
    assert not lines[0]["ok"] and not lines[1]["ok"] and "error" in lines[1] and lines[2]["failed"] == ["environment", "tf32_bound"]


def test_a_gpu_that_a_check_broke_ends_no_other_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an error of CUDA, after which nothing can be freed either, that takes the lines of all checks with it."""
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    from gpu_check import checked

    class Broken:
        def empty_cache(self) -> None:
            raise RuntimeError("CUDA error: device-side assert triggered")

    def fails(bench: Any) -> dict[str, Any]:
        raise RuntimeError("a kernel")

    found = checked(fails, cast(Any, Broken()))
    assert found["error"] == "RuntimeError: a kernel" and not found["ok"]
