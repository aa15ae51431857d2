"""A compiled training, which takes half a minute to compile."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from trainer import recipes
from trainer.loop import train


def start(file: Path, shards: Path, **overrides: Any) -> dict[str, torch.Tensor]:
    experiment = recipes.load({"config": str(file), **{key.replace("__", "."): str(value) for key, value in overrides.items()}})
    assert train(experiment, shards_folder=shards) == 0
    return load_file(Path(experiment.train.output) / "student" / "model.safetensors")


def test_compiled_without_dropout_is_the_same_run(tmp_path: Path, shards: Path, experiment_file: Path, make_student: Any) -> None:
    """Prevents: an option that is taken and does nothing, or trains something else."""
    still = make_student(tmp_path / "still", dropout=0.0)
    words = {"student__model": still, "train__steps": 3, "train__learning_rate": 1e-3, "train__warmup_steps": 0}
    plain = start(experiment_file, shards, train__output=tmp_path / "plain", **words)
    found = start(experiment_file, shards, train__output=tmp_path / "compiled", train__compile=True, **words)
    begun = load_file(still / "model.safetensors")
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=2e-5, msg=name)
    assert any(not torch.equal(begun[name], value) for name, value in plain.items() if name in begun)
