"""What is trained, and what it reads of a training row: all in which the three tasks differ. One loop serves them.

    student        a dual encoder, by the objective of a recipe
    dual_encoder   a dual encoder, by the labels alone: p+, its mined negatives, and the batch's other passages
    cross_encoder  a cross-encoder, over p+ and its mined negatives: by the labels, as a softmax, or by the logits of a stronger teacher

A cross-encoder's candidates are pairs put together from the stored tokens of query and passage; a pair is a sequence as any other, and its
logit a vector of one dimension. So micro-batches, dropout, processes and checkpoints need not know which task it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from data.config.settings import TEACHER_OF_LISTS, Experiment
from data.digests import DigestCache
from data.errors import UserError
from data.tables.schemas import CandidateKind
from retrieval.model_files.checks import check_training_start
from retrieval.model_files.custom_code import check_custom_code, code_key
from retrieval.model_files.files import tokenizer_digest, transformer_folder, weights_digest
from retrieval.model_files.model_lengths import check_length
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.lora import add_lora, lora_key
from retrieval.models.prompt_tokens import NO_PROMPTS, PromptLengths, marked, prompt_lengths
from retrieval.models.student import resolve_student
from retrieval.models.tokenizer import tokenizer_of
from retrieval.teachers.cross_encoder import teacher_source
from retrieval.teachers.pair_scorer import PairScorer, packed
from retrieval.teachers.pair_tokens import StoredPairs
from trainer.input.stream import REMEDY, TrainingRow
from trainer.steps.prepare_model import Model, prepared
from trainer.steps.reference_models import References, open_references, teacher_spec


@dataclass(frozen=True)
class Task:
    """What a run needs to know of the model before it is loaded, and how to load it."""

    tokenizer: str  # digest, which the shards must carry
    remedy: str  # for shards of another tokenizer, for people
    key: dict[str, Any]  # of all models that decide the result, by content
    open: Callable[[], Model]  # the starting point, in train mode on its device
    open_references: Callable[[], References]
    row: Callable[[TrainingRow], TrainingRow]  # a row as this model reads it
    prompts: PromptLengths = NO_PROMPTS  # tokens of stored texts that the model does not pool


def task_of(experiment: Experiment, digests: DigestCache) -> Task:
    """The task of an experiment. Loads no model.

    Raises UserError for models that are not there or do not fit: see `resolve_student`, `teacher_spec` and `_cross_encoder`.
    """
    if experiment.train.task == "cross_encoder":
        return _cross_encoder(experiment, digests)
    spec = resolve_student(experiment.student)
    teacher = teacher_spec(experiment, spec)
    prompts = NO_PROMPTS if spec.pools_prompt else prompt_lengths(spec, tokenizer_of(spec))
    return Task(
        tokenizer=spec.tokenizer_digest,
        remedy=REMEDY,
        key={
            "student": spec.key(digests),
            **lora_key(spec, experiment.student.lora),
            **({"teacher_model": teacher.key(digests)} if teacher else {}),
        },
        open=lambda: prepared(lambda: add_lora(DualEncoder(spec), experiment.student, seed=experiment.seed), experiment.train),
        open_references=lambda: open_references(spec, teacher, settings=experiment.train),
        row=lambda row: with_prompts(row, prompts),
        prompts=prompts,
    )


def _cross_encoder(experiment: Experiment, digests: DigestCache) -> Task:
    """Raises UserError: an ONNX teacher, a template, what `check_training_start` finds in its files, `max_tokens` above what the model
    reads, prompts in the shards' tokens, a tokenizer whose pairs cannot be put together from stored tokens."""
    teacher = experiment.teacher
    if teacher.model == TEACHER_OF_LISTS:
        raise UserError("task=cross_encoder trains teacher.model, and lists.path has none: give teacher.model=FOLDER teacher.backend=torch")
    if teacher.backend not in ("torch", "none"):
        what = {"onnx": "an ONNX graph", "imported": "logits that were imported"}.get(teacher.backend, teacher.backend)
        raise UserError(f"task=cross_encoder: {what} cannot be trained; give a transformers folder with teacher.backend=torch")
    if teacher.template is not None or teacher.instruction is not None:
        raise UserError("task=cross_encoder trains on plain pairs; leave out teacher.template and teacher.instruction")
    if teacher.answers or teacher.label is not None:
        raise UserError("task=cross_encoder trains a single output; leave out teacher.answers and teacher.label")
    source, trusted = teacher_source(teacher), teacher.trust_remote_code
    folder = transformer_folder(source)
    check_custom_code(folder, option="teacher.model", trusted=trusted)
    check_training_start(source, option="teacher.model")
    check_length(teacher.max_tokens, folder, option="teacher.max_tokens")
    spec = resolve_student(experiment.student)
    if spec.query_prefix or spec.passage_prefix:
        raise UserError(
            "task=cross_encoder: the shards' tokens begin with the student's prompts, which a cross-encoder does not read; "
            "make shards with student.query_prefix= student.passage_prefix= and train with the same"
        )
    pairs = StoredPairs(folder, max_tokens=teacher.max_tokens, trusted=trusted)
    tokenizer = tokenizer_digest(folder)
    key = {
        "weights": weights_digest(folder, digests, option="teacher.model"),
        "tokenizer": tokenizer,
        "max_tokens": teacher.max_tokens,
        **code_key(folder, trusted=trusted),
    }
    return Task(
        tokenizer=tokenizer,
        remedy=f"a cross-encoder reads its own tokens: run `prep run stage=shards` with student.model={folder}",
        key={"cross_encoder": key},
        open=lambda: prepared(lambda: PairScorer(folder, seed=experiment.seed, trusted=trusted), experiment.train),
        open_references=dict,
        row=lambda row: as_pairs(row, pairs),
    )


def with_prompts(row: TrainingRow, prompts: PromptLengths) -> TrainingRow:
    """The row with those tokens marked that are not pooled."""
    if not any(prompts):
        return row
    return replace(
        row,
        query_tokens=marked(row.query_tokens, prompts.query),
        candidate_tokens=tuple(marked(tokens, prompts.passage) for tokens in row.candidate_tokens),
    )


def as_pairs(row: TrainingRow, pairs: StoredPairs) -> TrainingRow:
    """p+ and P- of a row, each as the pair with the query, whose own tokens are empty then. Dark examples are left out."""
    places = [place for place, kind in enumerate(row.kinds) if kind in (CandidateKind.POSITIVE, CandidateKind.NEGATIVE)]
    return replace(
        row,
        query_tokens=np.empty(0, np.int32),
        candidate_tokens=tuple(packed(pairs.join(row.query_tokens, row.candidate_tokens[place])) for place in places),
        kinds=tuple(row.kinds[place] for place in places),
        candidate_ids=tuple(row.candidate_ids[place] for place in places),
        teacher_logits=row.teacher_logits[places],
    )
