"""Checkpoints of one architecture averaged into one folder, which opens as the first one does (Wortsman et al., 2022: model soups)."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError
from data.files.paths import expanded
from retrieval.merging.same_kind import Checkpoint, check_same, checkpoint
from retrieval.model_files.files import module_list, resolve_folder
from retrieval.model_files.weight_files import tensor_files, tensor_shapes

RECORD = "merge.json"  # in the folder that comes out: of what it is the mean
_COPIED = (
    ".json",
    ".txt",
    ".model",
    ".jinja",
    ".py",
    ".codes",
)  # settings, tokenizer, code; weights are written, all else is the first's own
_NOT_COPIED = ("adapter_config.json", "trainer_state.json", "result.json", "run.json", RECORD)
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Merge:
    """What is averaged, checked."""

    models: list[Checkpoint]
    weights: list[float]  # they sum to 1


def plan_merge(models: str, weights: str, *, note: Callable[[str], None] = lambda line: None) -> Merge:
    """Find and check the models of `models=A,B` and the weights of `weights=0.5,0.5`; none given: equal ones.

    Raises UserError: fewer than two models, one that is not there or cannot be averaged, two of different kinds, weights that are none.
    """
    names = [name.strip() for name in models.split(",") if name.strip()]
    if len(names) < 2:
        raise UserError(f"models={models}: expected two models or more, as models=A,B")
    shares = _weights(weights, len(names), note=note)
    found = [checkpoint(name, resolve_folder(expanded(name, key="models"), option="models")) for name in names]
    for other in found[1:]:
        check_same(found[0], other, note=note)
    return Merge(found, shares)


def _weights(given: str, count: int, *, note: Callable[[str], None]) -> list[float]:
    if not given.strip():
        return [1 / count] * count
    try:
        weights = [float(part) for part in given.split(",")]
    except ValueError:
        weights = []
    if len(weights) != count or not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not sum(weights):
        raise UserError(f"weights={given}: expected {count} numbers of at least 0, one for each model, not all of them 0")
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    if abs(total - 1) > 1e-6:
        note(f"the weights sum to {total:g}; they are taken as {', '.join(f'{share:.4g}' for share in shares)}")
    return shares


def merge(plan: Merge, out: Path) -> int:
    """Write the mean into the folder `out`, which is there and empty. Returns how many tensors it has.

    Raises UserError: what `write_average` refuses, or the first model's files changed meanwhile.
    """
    from retrieval.merging.averaging import Source, write_average

    first = plan.models[0]
    _copy_settings(first, out)
    tensors = 0
    for place in first.weights:
        files = [tensor_files(model.folder / place, option=f"models: {model.name}") for model in plan.models]
        named = zip(plan.models, files, plan.weights, strict=True)
        sources = [Source(model.name, of_model, weight) for model, of_model, weight in named]
        (out / place).mkdir(parents=True, exist_ok=True)
        for path in dict.fromkeys(files[0].values()):
            write_average(out / place / path.name, path, sources)
        tensors += len(tensor_shapes(out / place, option="out"))
    record = {"models": [model.name for model in plan.models], "weights": plan.weights}
    (out / RECORD).write_text(json.dumps(record, indent=1))
    return tensors


def _copy_settings(first: Checkpoint, out: Path) -> None:
    """The first model's settings, tokenizer and code. Folders of modules are made where they are empty, too."""
    for place in dict.fromkeys(["", *(module["path"] for module in module_list(first.folder))]):
        (out / place).mkdir(parents=True, exist_ok=True)
        here = first.folder / place
        is_sharded = place in first.weights and not (here / "model.safetensors").is_file()
        for name in sorted(os.listdir(here)) if here.is_dir() else ():
            wanted = name == _INDEX if is_sharded and name.endswith(".index.json") else not name.endswith(".index.json")
            if wanted and name.endswith(_COPIED) and name not in _NOT_COPIED and (here / name).is_file():
                shutil.copyfile(here / name, out / place / name)
