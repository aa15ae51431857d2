"""What lies in a run's folder, damaged in every way."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from data.errors import RunFailed, UserError
from trainer.saving.checkpoint import TrainingState, claim_output, resume, snapshot, start_digest, whole_folder, write_checkpoint
from trainer.steps.optim import make_optimizer

DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00\x80"),
    "list": lambda path: path.write_text("[1, 2]"),
    "null": lambda path: path.write_text("null"),
    "gone": lambda path: path.unlink(),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


def trained(width: int = 4) -> tuple[nn.Linear, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(3, width)
    optimizer = make_optimizer(model, weight_decay=0.01)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return model, optimizer


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A run's folder with checkpoints of steps 1 and 2; the path of the second."""
    model, optimizer = trained()
    for step in (1, 2):
        write_checkpoint(tmp_path, snapshot(model, optimizer, TrainingState(step, 1.5, "key")), keep=2)
    return tmp_path / "checkpoints" / "step-00000002"


def resumed(checkpoint: Path, *, width: int = 4) -> TrainingState:
    model = nn.Linear(3, width)
    return resume(checkpoint.parents[1], model=model, optimizer=make_optimizer(model, weight_decay=0.01), fingerprint="key")


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["state.json", "model.safetensors", "optimizer.safetensors"])
def test_a_damaged_checkpoint_is_told(checkpoint: Path, name: str, damage: str) -> None:
    """Prevents: a traceback that names no file, and a run that resumes with half of its state."""
    DAMAGES[damage](checkpoint / name)
    with pytest.raises(RunFailed, match=f"{checkpoint} cannot be read .*delete it"):
        resumed(checkpoint)
    shutil.rmtree(checkpoint)
    assert resumed(checkpoint).step == 1


@pytest.mark.parametrize("change", [{"step": "2"}, {"step": -1}, {"step": True}, {"seconds": "long"}, {"best": "high"}, {"more": 1}])
def test_a_state_of_other_types_is_told(checkpoint: Path, change: dict[str, Any]) -> None:
    """Prevents: a step that is a text, which fails in the middle of the run, or a best figure that no other one is above."""
    path = checkpoint / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(RunFailed, match="cannot be read"):
        resumed(checkpoint)


def test_tensors_of_another_model_are_told(checkpoint: Path) -> None:
    """Prevents: a traceback of names and shapes, and moments that are added to a parameter of another shape."""
    with pytest.raises(RunFailed, match="cannot be read"):
        resumed(checkpoint, width=5)
    moments = load_file(checkpoint / "optimizer.safetensors")
    for changed in ({"other|exp_avg": torch.zeros(2)}, {"weight|exp_avg": torch.zeros(2, 2)}):
        save_file({**moments, **changed}, checkpoint / "optimizer.safetensors")
        with pytest.raises(RunFailed, match="cannot be read"):
            resumed(checkpoint)
    save_file({}, checkpoint / "optimizer.safetensors")
    with pytest.raises(RunFailed, match=r"cannot be read .*lacks"):
        resumed(checkpoint)


def test_a_parameter_without_gradient_goes_on_as_before(tmp_path: Path) -> None:
    """Prevents: a resumed run that ends elsewhere, because a parameter that the next steps do not use was left out until it is used."""

    def step(model: nn.ModuleList, optimizer: torch.optim.Optimizer, *layers: int) -> None:
        optimizer.zero_grad(set_to_none=False)
        sum(model[layer](torch.ones(1, 3)).sum() for layer in layers).backward()
        optimizer.step()

    models = []
    for broken in (False, True):
        torch.manual_seed(0)
        model = nn.ModuleList(nn.Linear(3, 2) for _ in range(3))  # the last one is never used
        optimizer = make_optimizer(model, weight_decay=0.5)
        step(model, optimizer, 0, 1)
        if broken:
            write_checkpoint(tmp_path, snapshot(model, optimizer, TrainingState(1, 0.0, "key")), keep=1)
            model = nn.ModuleList(nn.Linear(3, 2) for _ in range(3))
            optimizer = make_optimizer(model, weight_decay=0.5)
            resume(tmp_path, model=model, optimizer=optimizer, fingerprint="key")
        step(model, optimizer, 0)
        models.append(model.state_dict())
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])


@pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"gone"}))
def test_a_damaged_key_is_told(tmp_path: Path, damage: str) -> None:
    """Prevents: a traceback, or a run that takes another one's folder for its own."""
    claim_output(tmp_path, key={"seed": 1})
    claim_output(tmp_path, key={"seed": 1})
    DAMAGES[damage](tmp_path / "run.json")
    with pytest.raises(UserError, match=r"run.json (cannot be read|holds)"):
        claim_output(tmp_path, key={"seed": 1})


def test_processes_start_from_the_same(tmp_path: Path) -> None:
    """Prevents: processes that train different models, because one machine has another copy of the files."""
    model, optimizer = trained()
    state = TrainingState(1, 0.0, "key")
    digest = start_digest(model, optimizer, state)
    assert digest == start_digest(*trained(), state) and digest != start_digest(*trained(), TrainingState(2, 0.0, "key"))
    with torch.no_grad():
        model.bias[0] += 1e-6
    assert digest != start_digest(model, optimizer, state)
    model, optimizer = trained()
    optimizer.state[model.weight]["exp_avg"][0, 0] += 1e-6
    assert digest != start_digest(model, optimizer, state)


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """Prevents: a traceback where a file is in the folder's way."""
    (tmp_path / "checkpoints").write_text("mine")
    with pytest.raises(RunFailed, match=r"cannot write .*see to it"), whole_folder(tmp_path / "checkpoints" / "step-1"):
        pass
    assert os.listdir(tmp_path) == ["checkpoints"]
