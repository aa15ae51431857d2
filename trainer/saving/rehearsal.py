"""Saving, tried out before the first step: a model that cannot be saved, or is another one once saved, is not trained."""

from __future__ import annotations

import shutil
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from data.command import is_full_disk
from data.config.settings import Student
from data.errors import RunFailed, UserError, first_line
from data.files.leftovers import temporary_name
from retrieval.compute.probe import text_config
from retrieval.model_files.model_lengths import most_positions
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.student import resolve_student
from retrieval.teachers.pair_scorer import PairScorer
from trainer.steps.modes import in_mode
from trainer.steps.prepare_model import Model

_TOKENS = 256  # of the texts compared: longer than most windows of attention
_NOT_SAVED = ("folder", "layers", "option", "notes")  # what differs once the first layers are all that there is


def rehearse_saving(model: Model, output: Path) -> None:
    """Save the model as at the end of the run, in a temporary folder of `output`, open it again and compare.

    Raises UserError where it cannot be saved or opened, or gives other vectors then; RunFailed where the disk is full.
    """
    kind = type(model.backbone).__name__
    folder = temporary_name(output / "saving")
    try:
        model.save(folder)
        change = _change(model, folder)
    except Exception as error:  # transformers, safetensors and the model's own code raise many kinds
        if is_full_disk(error):
            raise RunFailed(f"cannot save the model in {output}: {error}; free some space and start the same command again") from error
        raise UserError(f"{kind} cannot be saved as a folder that opens again, so it is not trained: {first_line(error)}") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    if change:
        raise UserError(f"{kind} {change}, so it is not trained")


@torch.no_grad()
def _change(model: Model, folder: Path) -> str | None:
    """What is another thing in the saved model, and the remedy, as the end of a sentence; None where it is the same."""
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        again = _opened(model, folder).to(device).eval()
    if isinstance(again, DualEncoder) and isinstance(model, DualEncoder):
        before, after = _settings(model), _settings(again)
        for name, value in before.items():
            if after[name] != value:
                return f"has {name}={after[name]} once it is saved and opened again, not {value}: set student.{name}={after[name]}"
    ids = _two_texts(model, folder).to(device)
    with in_mode(model, training=False), torch.compiler.set_stance("force_eager"):
        same = torch.allclose(again(ids, torch.ones_like(ids)), model(ids, torch.ones_like(ids)), rtol=1e-4, atol=1e-5)
    return None if same else "gives other vectors once it is saved and opened again: leave student.layers out"


def _opened(model: Model, folder: Path) -> Model:
    if isinstance(model, PairScorer):
        return PairScorer(folder, seed=0, trusted=model.trusted)
    trusted = model.spec.trust_remote_code
    return DualEncoder(resolve_student(Student(model=str(folder), query_tokens=None, passage_tokens=None, trust_remote_code=trusted)))


def _settings(model: DualEncoder) -> dict[str, object]:
    return {field.name: getattr(model.spec, field.name) for field in fields(model.spec) if field.name not in _NOT_SAVED}


def _two_texts(model: Model, folder: Path) -> Tensor:
    """[2, L] token ids that differ from place to place."""
    length = min(_TOKENS, most_positions(folder) or _TOKENS)
    vocabulary = int(text_config(model.backbone).vocab_size)
    return torch.arange(2 * length).view(2, length) * 7919 % (vocabulary - 1) + 1
