"""Students in the layouts of public embedding models, trained: gradients as sentence-transformers', the folder that comes out."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import WORDS, save
from support.student_folders import TEXTS, assert_equal, encoder_of, lay_out, padded, peer
from support.student_layouts import LAYOUTS, LENGTHS, make
from support.training import write_shards
from torch import Tensor, nn

from data.config.settings import Student
from data.digests import DigestCache
from data.errors import UserError
from data.tables.ragged import Ragged
from data.tables.schemas import CandidateKind
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.prompt_tokens import PromptLengths, marked_lists, prompt_lengths
from retrieval.models.student import StudentSpec, resolve_student
from retrieval.models.tokenizer import tokenizer_of
from trainer import recipes
from trainer.cpu.fast_path import CpuBackend
from trainer.evaluation.dev_set import DevSet, encoded
from trainer.input.stream import TrainingRow
from trainer.loop import train
from trainer.saving.checkpoint import TrainingState, resume, snapshot, write_checkpoint
from trainer.steps.optim import make_optimizer
from trainer.task import task_of

KINDS = [CandidateKind.POSITIVE, *[CandidateKind.NEGATIVE] * 3]


def spec_of(folder: Path) -> StudentSpec:
    return resolve_student(Student(model=str(folder), **LENGTHS))


def texts(seed: int, count: int) -> list[str]:
    chance = random.Random(seed)
    return [" ".join(chance.choices(WORDS, k=chance.randint(1, 9))) for _ in range(count)]


def shards_of(folder: Path, spec: StudentSpec) -> Path:
    """Rows in the student's tokens, prompts included, as the stage `shards` writes them."""
    tokenizer = tokenizer_of(spec)

    def tokens(prefix: str, seed: int, count: int) -> list[list[int]]:
        return tokenizer.encode([prefix + text for text in texts(seed, count)], max_tokens=60)

    rows: list[dict[str, Any]] = []
    for number, query in enumerate(tokens(spec.query_prefix, 0, 12)):
        ids = [f"d{number}-{place}" for place in range(len(KINDS))]
        rows.append(
            {
                "query_id": f"q{number:02d}", "draw": 0, "query_tokens": query, "candidate_tokens": tokens(spec.passage_prefix, number, 4),
                "candidate_kind": [int(kind) for kind in KINDS], "candidate_id": ids, "teacher_logits": [3.0, 1.0, -1.0, 0.5],
                "confidence": -0.5, "never_ids": ids[:1],
            }
        )  # fmt: skip
    return write_shards(folder, [rows], student=spec.weights_folder)


def start(file: Path, shards: Path, **overrides: Any) -> int:
    words = {"config": str(file), **{key.replace("__", "."): str(value) for key, value in overrides.items()}}
    return train(recipes.load(words), shards_folder=shards)


@pytest.mark.medium
@pytest.mark.parametrize("layers", [None, 1])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_trained_student_is_served_as_it_was_trained(tmp_path: Path, experiment_file: Path, name: str, layers: int | None) -> None:
    """Prevents: a Dense that is not trained, or not saved; a run that cannot go on or end."""
    folder = make(name, tmp_path)
    spec = spec_of(folder)
    output = tmp_path / "run"
    own = {"student__model": folder, "student__query_tokens": 60, "student__passage_tokens": 90, "train__output": output}
    words = {**own, "train__recipe": "hard_kd", "train__steps": 3, "train__checkpoint_every": 2, "train__micro_batch_tokens": 512}
    if layers:
        words["student__layers"] = layers
    assert start(experiment_file, shards_of(tmp_path / "shards", spec), **words) == 0
    trained = encoder_of(output / "student")
    assert_equal(trained, peer(output / "student"))
    fresh = encoder_of(folder, layers=layers, **LENGTHS)
    assert np.abs(trained.passages(TEXTS) - fresh.passages(TEXTS)).max() > 1e-3
    for place, module in enumerate(spec.modules, 2):
        if module.shapes:
            saved = output / "student" / f"{place}_{module.kind}"
            before, after = (load_file(path / "model.safetensors") for path in (module.folder, saved))
            assert all(not torch.equal(before[weight], after[weight]) for weight in before)


def batch_of(spec: StudentSpec) -> tuple[Tensor, Tensor, int]:
    """Queries as the trainer reads them, and how long their prompt is."""
    tokenizer = tokenizer_of(spec)
    left_out = prompt_lengths(spec, tokenizer).query
    ids = tokenizer.encode([spec.query_prefix + text for text in texts(1, 7)], max_tokens=60)
    return *padded(marked_lists(ids, left_out)), left_out


def gradients(vectors: Tensor, parameters: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    for parameter in parameters.values():
        parameter.grad = None
    (vectors[1:] @ vectors[0]).softmax(0)[0].log().backward()
    return {name: parameter.grad for name, parameter in parameters.items() if parameter.grad is not None}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    largest = max(float(gradient.norm()) for gradient in wanted.values())
    for name, gradient in wanted.items():
        assert float((found[name] - gradient).norm()) <= 1e-4 * float(gradient.norm()) + 1e-5 * largest, name


@pytest.mark.medium
@pytest.mark.parametrize("name", LAYOUTS)
def test_gradients_are_sentence_transformers_on_the_plain_and_the_fast_path(tmp_path: Path, name: str) -> None:
    """Prevents: weights that learn from other vectors than are served, by a path for CPUs alone, or by both."""
    folder = make(name, tmp_path)
    ours, theirs = DualEncoder(spec_of(folder)).eval(), peer(folder).eval()
    ids, mask, left_out = batch_of(ours.spec)
    parameters = {f"0.{weight}": parameter for weight, parameter in ours.backbone.named_parameters()}
    parameters |= {f"{2 + int(weight[0])}{weight[1:]}": parameter for weight, parameter in ours.projection.named_parameters()}
    plain = gradients(ours(ids, mask), parameters)

    named = {f"0.{weight}": parameter for weight, parameter in theirs[0].model.named_parameters()}
    named |= {weight: parameter for weight, parameter in theirs.named_parameters() if not weight.startswith("0.")}
    features = {"input_ids": torch.where(ids < 0, -1 - ids, ids), "attention_mask": mask, "prompt_length": left_out}
    assert_same(plain, gradients(theirs(features)["sentence_embedding"], named))

    backend = CpuBackend(ours, workers=1)
    with backend.context():
        vectors = ours(ids, mask)
    assert_same(gradients(vectors, parameters), plain)


def test_relative_positions_of_t5_are_trained_with_dropout(tmp_path: Path) -> None:
    """Prevents: attention by hand that gives no gradient to a bias that is added to its scores."""
    model = DualEncoder(spec_of(make("GTR", tmp_path))).train()
    backend = CpuBackend(model, workers=1)
    with backend.context():
        vectors = model(*batch_of(model.spec)[:2])
    found = gradients(vectors, dict(model.named_parameters()))
    (bias,) = (gradient for name, gradient in found.items() if "relative_attention_bias" in name)
    assert float(bias.norm()) > 0


def test_a_tied_table_is_checkpointed(tmp_path: Path) -> None:
    """Prevents: a run of T5 that fails at its first checkpoint, since safetensors writes no tensor twice; a tie that is lost."""
    model = DualEncoder(spec_of(make("GTR", tmp_path)))
    optimizer = make_optimizer(model, weight_decay=0.0)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    write_checkpoint(tmp_path, snapshot(model, optimizer, TrainingState(step=1, seconds=0.0, fingerprint="f")), keep=1)
    again = DualEncoder(model.spec)
    assert resume(tmp_path, model=again, optimizer=make_optimizer(again, weight_decay=0.0), fingerprint="f").step == 1
    assert all(torch.equal(one, other) for one, other in zip(model.parameters(), again.parameters(), strict=True))
    assert again.backbone.shared.weight is again.backbone.encoder.embed_tokens.weight


# Prompts that are not pooled


def test_rows_and_dev_set_say_what_is_not_pooled(tmp_path: Path, experiment_file: Path) -> None:
    """Prevents: prompts that are pooled in training, or in the figures that choose the best checkpoint, and left out when served."""
    folder = make("instructor", tmp_path)
    spec = spec_of(folder)
    words = {"config": str(experiment_file), "student.model": str(folder), "student.query_tokens": "60", "student.passage_tokens": "90"}
    task = task_of(recipes.load(words), DigestCache(tmp_path / "digests.json"))
    tokenizer = tokenizer_of(spec)
    assert task.prompts == PromptLengths(3, 1) and spec.query_prefix == "ba be zu: "
    tokens = [np.array(ids, np.int32) for ids in tokenizer.encode(["ba be zu: zo", "zo: bi bo"], max_tokens=60)]
    row = task.row(TrainingRow("q", tokens[0], (tokens[1],), (0,), ("d",), np.zeros(1, np.float32), 0.0))
    assert ((row.query_tokens < 0).sum(), (row.candidate_tokens[0] < 0).sum()) == (3, 1)
    read: list[list[int]] = []

    def encode(sequences: Any) -> Any:
        read.extend(sequence.tolist() for sequence in sequences)
        return np.ones((len(sequences), 2), np.float32)

    ragged = [Ragged(ids, np.array([0, len(ids)])) for ids in tokens]
    encoded(encode, DevSet("", ("q",), ragged[0], ("d",), ragged[1], {"q": {"d": 1}}, task.prompts))
    assert read == [row.query_tokens.tolist(), row.candidate_tokens[0].tolist()]


def test_a_teaching_encoder_treats_prompts_as_the_student_does(
    tmp_path: Path, experiment_file: Path, make_student: Callable[..., Path]
) -> None:
    """Prevents: a teacher whose vectors are of its prompts and the texts, since the rows say that prompts are not pooled."""
    inner = save(tmp_path / "weights", "Bert")
    prompts = {"prompts": {"query": "ba be ", "document": "zu "}}
    student, teacher = (lay_out(tmp_path / str(own), inner, prompts=prompts, include_prompt=own) for own in (False, True))
    words = {"config": str(experiment_file), "student.model": str(student), "train.objective.teacher_model": str(teacher)}
    with pytest.raises(UserError, match=r"pools the tokens of its prompts .* the student leaves them"):
        task_of(recipes.load(words), DigestCache(tmp_path / "digests.json"))
