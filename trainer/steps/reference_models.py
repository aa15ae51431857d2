"""Dual encoders that stay as they are during a run and score each batch's lists: a teacher, and the initial student.

They have no parameters to train and are in evaluation mode, so that no graph is kept and no dropout is drawn. Each reads every sequence of
a step once, wherever the student reads it: a group's own sequences by the process that has the group, shared ones by one process for all
(`trainer.steps.gradients`).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from data.config.settings import Experiment, Student, Train
from data.errors import UserError
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.padding import check_padding, results_of
from retrieval.models.student import StudentSpec, resolve_student
from trainer.steps.attention_mask import whole_masks

_TEACHER = "train.objective.teacher_model"

# `teacher`, in place of the shards' logits, and `initial`, the student as the run began, where the objective has a use for them.
References = Mapping[str, nn.Module]


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
    if own.pools_prompt != student.pools_prompt:
        does, other = ("leaves", "pools") if student.pools_prompt else ("pools", "leaves")
        raise UserError(
            f"{_TEACHER}={name} {does} the tokens of its prompts (include_prompt), the student {other} them: give one that agrees"
        )
    return own


def open_references(student: StudentSpec, teacher: StudentSpec | None, *, settings: Train) -> References:
    """Load them; the initial student from its own folder, so that a checkpoint makes no difference."""

    def opened(spec: StudentSpec) -> nn.Module:
        model = DualEncoder(spec).to(settings.device).requires_grad_(False).eval()
        check_padding(model.backbone, check=results_of(model), option=model.option)
        if settings.device == "cuda":
            whole_masks(model)
        return model

    initial = student if settings.objective.reference_kl_weight else None
    return {name: opened(spec) for name, spec in (("teacher", teacher), ("initial", initial)) if spec is not None}
