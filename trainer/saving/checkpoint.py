"""Where a run stands, on disk: enough that a killed and resumed run ends in the same parameters as an unbroken one.

    OUTPUT/run.json                               the settings that matter and the digests of shards and student
    OUTPUT/checkpoints/step-00000200/             appears whole or not at all (temporary folder, fsync, rename)
        model.safetensors  optimizer.safetensors  parameters, of LoRA the adapters alone; AdamW's moments, by parameter name
        state.json                                step, seconds, fingerprint of run.json's content

The steps wait for a copy of the state alone (`snapshot`); `trainer.loop` has it written behind them (`write_checkpoint`).

The order of the rows and the dropout masks are functions of (seed, step), so the step is all of the stream's and the generators' state.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, NonNegativeInt
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.command import is_full_disk
from data.digests import json_digest
from data.errors import RunFailed, UserError, first_line
from data.files.leftovers import remove_leftovers, temporary_name
from data.tables.shards import atomic_write
from retrieval.models.lora import has_lora, is_lora
from trainer.saving.output_folder import RUN_NAME

CHECKPOINTS, STATE_NAME = "checkpoints", "state.json"  # the folder of all of them; the file of each that is put last
_MODEL, _OPTIMIZER = "model.safetensors", "optimizer.safetensors"


@dataclass(frozen=True, config=ConfigDict(extra="forbid", strict=True))
class TrainingState:
    """How far a run is: steps done, seconds spent on them in all, the run it belongs to, and what the dev set said."""

    step: NonNegativeInt
    seconds: float
    fingerprint: str
    best: float | None = None  # of the dev metric
    best_step: NonNegativeInt = 0
    stale: NonNegativeInt = 0  # evaluations since the best one


def claim_output(output: Path, *, key: dict[str, Any]) -> None:
    """Note in the folder which run it holds, and remove what killed processes have left half written there.

    Raises UserError where it holds another run, naming what differs.
    """
    path = output / RUN_NAME
    if (there := begun_run(output)) is not None:
        if differences := _differences(there, key):
            raise UserError(
                "\n".join([f"train.output={output} holds a run with other settings:", *differences, "choose another train.output=FOLDER"])
            )
    else:
        output.mkdir(parents=True, exist_ok=True)
        atomic_write(path, json.dumps(key, indent=1, sort_keys=True).encode())
    for folder in (output, output / CHECKPOINTS):
        remove_leftovers(folder, held=True)


def begun_run(output: Path) -> dict[str, Any] | None:
    """The key of the run that the folder holds, None where it holds none. Raises UserError where it cannot be read."""
    path = output / RUN_NAME
    if not os.path.lexists(path):
        return None
    return read_record(path, remedy="choose another train.output=FOLDER, or delete it if the run in it is this one")


def read_record(path: Path, *, remedy: str) -> dict[str, Any]:
    """A JSON file of the run's folder. Raises UserError where it cannot be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} holds {type(content).__name__} where a mapping is expected; {remedy}")
    return content


def _differences(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> list[str]:
    lines: list[str] = []
    for name in sorted({*there, *here}):
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{prefix}{name}.")
        elif json.dumps(old) != json.dumps(new):  # as JSON: a tuple and a list are the same
            lines.append(f"  {prefix}{name}: {json.dumps(old)} there, {json.dumps(new)} now")
    return lines


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """A run's state in host memory, which the steps that follow do not change."""

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: TrainingState


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState) -> Snapshot:
    """Copy what a checkpoint holds to host memory: from a GPU into pinned memory, all at once, and waited for once."""
    trained, moments = _trained(model), _optimizer_tensors(model, optimizer)
    copied = Snapshot(
        {name: _host_copy(tensor) for name, tensor in trained.items()},
        {name: _host_copy(tensor) for name, tensor in moments.items()},
        state,
    )
    if any(tensor.is_cuda for tensor in trained.values()):
        torch.cuda.synchronize()
    return copied


def _host_copy(tensor: Tensor) -> Tensor:
    """[...] on the host, contiguous. From a GPU it is there only once that was waited for."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
    return copy.copy_(tensor.detach(), non_blocking=True)


def write_checkpoint(output: Path, copied: Snapshot, keep: int) -> None:
    """Write a checkpoint, whole or not at all, then remove all but the newest `keep`. Raises RunFailed where it cannot be written."""
    with whole_folder(output / CHECKPOINTS / f"step-{copied.state.step:08d}") as folder:
        save_file(copied.model, folder / _MODEL)
        save_file(copied.optimizer, folder / _OPTIMIZER)
        (folder / STATE_NAME).write_text(json.dumps(dataclasses.asdict(copied.state)))
    for old in _complete(output)[:-keep]:
        _remove(old)


def resume(output: Path, *, model: nn.Module, optimizer: torch.optim.Optimizer, fingerprint: str) -> TrainingState:
    """Load the newest complete checkpoint into model and optimizer; step 0 where there is none."""
    found = _complete(output)
    if not found:
        return TrainingState(step=0, seconds=0.0, fingerprint=fingerprint)
    newest = found[-1]
    try:
        state = TrainingState(**json.loads((newest / STATE_NAME).read_text(encoding="utf-8")))
        if state.fingerprint == fingerprint:
            frozen = {name: tensor for name, tensor in model.state_dict().items() if name not in _trained(model)}
            model.load_state_dict({**frozen, **load_file(newest / _MODEL)})
            moments = load_file(newest / _OPTIMIZER)
            if state.step and not moments:
                raise ValueError(f"{_OPTIMIZER} lacks the optimizer's moments")
            _restore_optimizer(model, optimizer, moments)
    except Exception as error:  # safetensors, json and torch raise many kinds, all of which mean: damaged
        raise RunFailed(f"checkpoint {newest} cannot be read ({first_line(error)}); delete it to resume from the one before") from error
    if state.fingerprint != fingerprint:
        raise UserError(f"checkpoint {newest} belongs to a run with other settings; choose another train.output=FOLDER")
    return state


def start_digest(model: nn.Module, optimizer: torch.optim.Optimizer, state: TrainingState) -> str:
    """Hex digest of all that the next step depends on: every process of a run must have the same."""
    digest = hashlib.blake2b(json_digest(dataclasses.asdict(state)).encode(), digest_size=16)
    for name, tensor in {**model.state_dict(), **_optimizer_tensors(model, optimizer)}.items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """What a training changes, by name: all of a model, or its adapters, whose base stays as it is in the run's key.

    A tensor that has several names (T5's token table) stands under each.
    """
    state = model.state_dict()
    return {name: tensor for name, tensor in state.items() if is_lora(name)} if has_lora(model) else state


def _optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        for moment, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}|{moment}"] = value.detach()
    return tensors


def _restore_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Raises KeyError or ValueError for moments that are not of this model."""
    parameters = dict(model.named_parameters())
    for key, value in tensors.items():
        name, _, moment = key.rpartition("|")
        parameter = parameters[name]
        if value.shape not in (parameter.shape, torch.Size([])):
            raise ValueError(f"{key} has the shape {list(value.shape)}, the parameter {list(parameter.shape)}")
        optimizer.state[parameter][moment] = value.to(parameter.device)
        # As before the interruption: from its first gradient on a parameter is updated in each step, also by moments and decay alone.
        parameter.grad = torch.zeros_like(parameter)


def _complete(output: Path) -> list[Path]:
    """Checkpoints in order of their step; a name that is final is complete."""
    return sorted((output / CHECKPOINTS).glob("step-*"))


def _remove(folder: Path) -> None:
    # Renamed first: a kill in the middle of the removal must not leave half a checkpoint under a final name.
    doomed = temporary_name(folder)
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that gets its final name when the block ends well, replacing one of that name, else nothing."""
    temporary = temporary_name(path)
    try:
        temporary.mkdir(parents=True)
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
