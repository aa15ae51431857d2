"""`train.profile`: a trace of the steps asked for, and nothing else."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import UserError
from trainer import recipes
from trainer.loop import train
from trainer.reporting.dry_run import describe


def start(file: Path, shards: Path, run: Callable[..., int] = train, **words: object) -> int:
    given = {name.replace("__", "."): str(value) for name, value in words.items()}
    return run(recipes.load({"config": str(file), **given}), shards_folder=shards)


def names_in(path: Path) -> set[str]:
    events: list[dict[str, Any]] = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return {str(event.get("name")) for event in events}


@pytest.mark.medium
def test_the_steps_asked_for_are_in_the_trace_and_the_run_is_the_same(tmp_path: Path, experiment_file: Path, shards: Path) -> None:
    """Prevents: a trace without the micro-batches, which a CPU computes in threads; one of all steps, which fills the memory; and a look
    at a run that changes it."""
    for name, more in (("plain", {}), ("profiled", {"train__profile": "2-3", "train__workers": 2, "train__threads": 2})):
        words = {"train__threads": 2, "train__workers": 2, **more}
        assert start(experiment_file, shards, train__output=tmp_path / name, train__steps=4, **words) == 0
    folder = tmp_path / "profiled" / "profile"
    assert [path.name for path in folder.iterdir()] == ["steps-2-3.json.gz"]
    found = names_in(folder / "steps-2-3.json.gz")
    assert {name for name in found if name.startswith("step ")} == {"step 2", "step 3"}
    assert "aten::embedding" in found and any("Backward" in name for name in found)
    students = [(tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("plain", "profiled")]
    assert students[0] == students[1] and not (tmp_path / "plain" / "profile").exists()
    assert (tmp_path / "plain" / "run.json").read_bytes() == (tmp_path / "profiled" / "run.json").read_bytes()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("3-2", "no range of steps"), ("0-2", "count from 1"), ("1-101", "more than 100 steps"), ("7", "match pattern"),
        ("19-20", "the run has 18 steps"), ("-3", "match pattern"),
    ],
)  # fmt: skip
def test_a_bad_range_is_refused_before_the_first_step(tmp_path: Path, experiment_file: Path, shards: Path, given: str, said: str) -> None:
    """Prevents: hours of training at whose end there is no trace, and a tracker's run, or a folder, of a run that never began."""
    for run in (train, describe):
        with pytest.raises(UserError, match=said):
            start(experiment_file, shards, run, train__profile=given)
    assert not (tmp_path / "run").exists() or not [*(tmp_path / "run").iterdir()]
