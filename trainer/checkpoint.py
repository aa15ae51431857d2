"""Where a run stands, on disk: enough that a killed and resumed run ends in the same parameters as an unbroken one.

    OUTPUT/run.json                               the settings that matter and the digests of shards and student
    OUTPUT/checkpoints/step-00000200/             appears whole or not at all (temporary folder, fsync, rename)
        model.safetensors  optimizer.safetensors  parameters; AdamW's moments, by parameter name
        state.json                                step, seconds, fingerprint of run.json's content

The order of the rows and the dropout masks are functions of (seed, step), so the step is all of the stream's and the generators' state.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.command import is_full_disk
from data.digests import json_digest
from data.errors import RunFailed, UserError
from data.shards import atomic_write
from data.what_lies import stored_table, what_lies

_FOLDER = "checkpoints"
_MODEL, _OPTIMIZER, _STATE = "model.safetensors", "optimizer.safetensors", "state.json"
_RUN = "run.json"


class Saveable(Protocol):
    """A model that writes its own folder."""

    def save(self, folder: Path) -> None:
        """Write it."""


@dataclass(frozen=True)
class TrainingState:
    """How far a run is: steps done, seconds spent on them in all sittings, the run it belongs to, and what the dev set said."""

    step: int
    seconds: float
    fingerprint: str
    best: float | None = None  # of the dev metric
    best_step: int = 0
    stale: int = 0  # evaluations since the best one


def claim_output(output: Path, *, key: dict[str, Any]) -> str:
    """Note in the folder which run it holds. Returns the run's fingerprint.

    Raises UserError where it holds another run, naming what differs.
    """
    path = output / _RUN
    if path.is_file():
        there = json.loads(path.read_text())
        if differences := _differences(there, key):
            raise UserError(
                "\n".join([f"train.output={output} holds a run with other settings:", *differences, "choose another train.output=FOLDER"])
            )
    else:
        if stored_table(output) is not None:
            raise UserError(f"train.output={output} is {what_lies(output)}: choose a folder of its own")
        output.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(key, indent=1, sort_keys=True).encode())
    return json_digest(key)


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for name in sorted({*there, *here}):
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{prefix}{name}.")
        elif json.dumps(old) != json.dumps(new):  # as JSON: a tuple and a list are the same
            lines.append(f"  {prefix}{name}: {json.dumps(old)} there, {json.dumps(new)} now")
    return lines


def save_checkpoint(output: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState, keep: int) -> None:
    """Write a checkpoint, whole or not at all, then remove all but the newest `keep`."""
    with whole_folder(output / _FOLDER / f"step-{state.step:08d}") as folder:
        save_file({name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}, folder / _MODEL)
        save_file(_optimizer_tensors(model, optimizer), folder / _OPTIMIZER)
        (folder / _STATE).write_text(json.dumps(asdict(state)))
    for old in _complete(output)[:-keep]:
        _remove(old)


def save_model(folder: Path, *, model: Saveable) -> None:
    """Save a student as a sentence-transformers folder, a cross-encoder as a transformers folder, whole or not at all."""
    with whole_folder(folder) as temporary:
        model.save(temporary)


def remove_leftovers(output: Path) -> None:
    """Remove what killed sittings have left half written."""
    for leftover in (*output.glob(".*.tmp"), *(output / _FOLDER).glob(".*.tmp")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def resume(output: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str) -> TrainingState:
    """Load the newest complete checkpoint into model and optimizer; step 0 where there is none."""
    found = _complete(output)
    if not found:
        return TrainingState(step=0, seconds=0.0, fingerprint=fingerprint)
    newest = found[-1]
    try:
        state = TrainingState(**json.loads((newest / _STATE).read_text()))
        tensors, moments = load_file(newest / _MODEL), load_file(newest / _OPTIMIZER)
    except Exception as error:  # safetensors and json raise many kinds, all of which mean: damaged
        raise RunFailed(f"checkpoint {newest} cannot be read ({error}); delete it to resume from the one before") from error
    if state.fingerprint != fingerprint:
        raise UserError(f"checkpoint {newest} belongs to a run with other settings; choose another train.output=FOLDER")
    model.load_state_dict(tensors)
    _restore_optimizer(model, optimizer, moments)
    return state


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}|{moment}"] = value.detach().contiguous()
    return tensors


def _restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, moment = key.rpartition("|")
        optimizer.state[parameters[name]][moment] = value.to(parameters[name].device)


def _complete(output: Path) -> list[Path]:
    """Checkpoints in order of their step; a name that is final is complete."""
    return sorted((output / _FOLDER).glob("step-*"))


def _remove(folder: Path) -> None:
    # Renamed first: a kill in the middle of the removal must not leave half a checkpoint under a final name.
    doomed = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that gets its final name when the block ends well, replacing one of that name, else nothing."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as opened:
                    os.fsync(opened.fileno())
        if path.exists():
            _remove(path)
        temporary.rename(path)
    except (OSError, SafetensorError) as error:
        remedy = "free some space" if is_full_disk(error) else "see to it that it can be written"
        raise RunFailed(f"cannot write {path}: {error}; {remedy} and start the same command again, it resumes") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
