"""Dual encoders that stay as they are during a run and say what they think of each batch's lists: a teacher, and the student's start.

Each reads every sequence of a step once, without a graph and without dropout, wherever the student reads it: a group's own sequences by
the process that has the group, shared ones by one process for all (`trainer.steps.gradients`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from data.config.settings import Experiment, Student
from data.digests import DigestCache
from data.errors import UserError
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.padding import check_padding, results_of
from retrieval.models.student import StudentSpec, resolve_student

_TEACHER = "train.objective.teacher_model"


class Frozen(nn.Module):
    """An encoder whose vectors never change: no gradient goes in, no dropout is drawn."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Frozen:
        """Always in evaluation mode."""
        return super().train(False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """[n, L] token ids and mask to [n, D] vectors without a graph."""
        with torch.no_grad():
            return self.encoder(input_ids, attention_mask)


@dataclass(frozen=True)
class FrozenEncoders:
    """Those of a run; None where the objective has no use for one."""

    teacher: nn.Module | None = None  # in place of the shards' logits
    start: nn.Module | None = None  # the student as the run began, also after it was resumed

    @property
    def all(self) -> dict[str, nn.Module]:
        """By name."""
        return {name: encoder for name, encoder in (("teacher", self.teacher), ("start", self.start)) if encoder is not None}


def teacher_spec(experiment: Experiment, student: StudentSpec) -> StudentSpec | None:
    """The dual encoder that teaches; None where the shards' logits do. Loads no model.

    It reads the shards' tokens. Pooling and normalisation are those of its own files.

    Raises:
        UserError: no such model, or one that reads a text as other tokens than the student.
    """
    name = experiment.train.objective.teacher_model
    if name is None:
        return None
    own = resolve_student(Student(model=name, query_tokens=student.query_tokens, passage_tokens=student.passage_tokens), option=_TEACHER)
    if own.tokenizer_digest != student.tokenizer_digest:
        raise UserError(f"{_TEACHER}={name} has another tokenizer than the student: give one that reads the same tokens")
    prompts = (own.query_prefix, own.passage_prefix)
    if prompts != (student.query_prefix, student.passage_prefix):
        raise UserError(
            f"{_TEACHER}={name} wants the prompts {prompts}, the shards have the student's: set student.query_prefix and passage_prefix"
        )
    return own


def teacher_key(experiment: Experiment, student: StudentSpec, digests: DigestCache) -> dict[str, Any]:
    """What decides its logits, for the run's key; empty where there is none."""
    spec = teacher_spec(experiment, student)
    return {"teacher_model": spec.key(digests)} if spec else {}


def open_frozen(experiment: Experiment, student: StudentSpec) -> FrozenEncoders:
    """Load them; the student's start from where the student comes from, so that a checkpoint makes no difference."""
    settings, spec = experiment.train, teacher_spec(experiment, student)

    def opened(spec: StudentSpec) -> Frozen:
        encoder = DualEncoder(spec).to(settings.device)
        check_padding(encoder.backbone, check=results_of(encoder), option=encoder.option)
        return Frozen(encoder)

    return FrozenEncoders(opened(spec) if spec else None, opened(student) if settings.objective.reference_kl_weight else None)
