"""Several dev sets in trainings by one and by two processes, and after a kill."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.dev_sets import write_dev_set


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def dev_of(output: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["dev"] for line in lines if "dev" in line]


def best_of(output: Path) -> dict[str, float]:
    return dict(json.loads((output / "result.json").read_text())["best"])


@pytest.fixture(scope="module")
def zygote(start_zygote: Callable[[str], Any]) -> Any:
    return start_zygote("training")


@pytest.fixture
def words(tmp_path: Path, experiment_file: Path, student: Path, row_maker: Callable[..., Any]) -> list[str]:
    sets = [
        write_dev_set(tmp_path / name, row_maker, student=student, queries=queries, name=name)
        for name, queries in (("A", range(13)), ("B", range(13, 22)))
    ]
    return [f"config={experiment_file}", f"dev={sets[0]},{sets[1]}", "train.evaluate_every=2", "train.steps=6", "train.checkpoint_every=2"]


def test_figures_do_not_depend_on_the_number_of_processes(tmp_path: Path, shards: Path, zygote: Any, words: list[str]) -> None:
    """Prevents: a process that evaluates a set which the others are done with, vectors of one set summed into another's, and other best
    checkpoints on more GPUs."""
    seen = {}
    for size in (1, 2):
        output = tmp_path / f"of{size}"
        zygote.begin(tmp_path / "log", "by_processes", size, free_port(), shards, *words, f"train.output={output}")
        assert zygote.end() == 0
        seen[size] = dev_of(output), best_of(output)
    assert len(seen[1][0]) == 3 and set(seen[1][1]) == {"step", "MRR@10", "A/MRR@10", "B/MRR@10"}
    for one, other in zip([*seen[1][0], seen[1][1]], [*seen[2][0], seen[2][1]], strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_a_killed_run_ends_with_the_same_figures(tmp_path: Path, shards: Path, zygote: Any, words: list[str]) -> None:
    """Prevents: a result that lacks the sets' figures of a step before the kill, or a best checkpoint that the kill has made another."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    zygote.begin(tmp_path / "moments", "killed", 0, shards, *words, f"train.output={whole}")
    assert zygote.end() == 0
    moments = int((tmp_path / "moments").read_text())
    codes = list[int]()
    for part in (0.5, 0.6, 0.4):
        zygote.begin(tmp_path / "log", "killed", int(part * moments), shards, *words, f"train.output={broken}")
        codes.append(zygote.end())
    assert codes[0] == -signal.SIGKILL and set(codes) <= {0, -signal.SIGKILL}
    zygote.begin(tmp_path / "log", "killed", 0, shards, *words, f"train.output={broken}")
    assert zygote.end() == 0
    assert dev_of(broken) == dev_of(whole) and len(dev_of(whole)) == 3
    assert best_of(broken) == best_of(whole)
