"""Trainings that are really killed, at any moment, and end in the same bytes all the same."""

from __future__ import annotations

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.reporting.metrics import SPEEDS


@pytest.fixture(scope="module")
def zygote(start_zygote: Callable[[str], Any]) -> Any:
    return start_zygote("training")


def lines_of(output: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in SPEEDS} for line in lines]


@pytest.mark.parametrize("in_batch", ["none", "both"])
def test_killed_at_twenty_moments(tmp_path: Path, experiment_file: Path, shards: Path, zygote: Any, in_batch: str) -> None:
    """Prevents: a kill after which a run repeats or loses a step, ends in other parameters, or does not start again."""

    def begin(output: Path, last: int, log: str) -> int:
        words = [f"config={experiment_file}", f"train.output={output}", "train.checkpoint_every=3", f"train.objective.in_batch={in_batch}"]
        zygote.begin(tmp_path / log, "killed", last, shards, *words)
        return int(zygote.end())

    whole = tmp_path / "whole"
    assert begin(whole, 0, "whole-log") == 0
    moments = int((tmp_path / "whole-log").read_text())
    assert moments > 60
    expected, student = lines_of(whole), (whole / "student" / "model.safetensors").read_bytes()
    assert [line["step"] for line in expected] == list(range(1, 19))

    chance, kills, rounds = random.Random(20), 0, 0
    while kills < 20:
        rounds += 1
        output = tmp_path / f"round{rounds}"
        while True:
            code = begin(output, chance.randint(1, moments) if kills < 20 else 0, "log")
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills += 1
        assert lines_of(output) == expected
        assert (output / "student" / "model.safetensors").read_bytes() == student
        assert not list(output.rglob("*.tmp"))
    assert rounds > 1
