"""Runs of a cross-encoder, of a dual-encoder teacher and of PROD's students: what comes out, resumed or not, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.checkpoints import save
from torch import Tensor, nn

from data.config.settings import Objective, Student, Train
from data.digests import DigestCache
from data.errors import UserError
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.student import resolve_student
from retrieval.teachers.cross_encoder import TorchCrossEncoder
from retrieval.teachers.pair_scorer import PairScorer
from retrieval.teachers.pair_tokens import StoredPairs
from retrieval.teachers.scoring import score_pairs
from trainer import recipes
from trainer.input.stream import TrainingRow, open_training_shards, rows_of_epoch
from trainer.loop import train
from trainer.objective.plan import plan_batch
from trainer.processes.distributed import Distributed
from trainer.reporting import dry_run, metrics
from trainer.steps.backend import PlainBackend
from trainer.steps.gradients import StepSettings, accumulate_gradients
from trainer.steps.micro_batches import cut
from trainer.steps.prepare_model import prepared
from trainer.task import as_pairs, task_of

SEPARATOR = 3


class Killed(Exception):
    """Stands for a process that ends at once."""


def start(file: Path, shards: Path, **overrides: Any) -> int:
    words = {"config": str(file), **{key.replace("__", "."): str(value) for key, value in overrides.items()}}
    return train(recipes.load(words), shards_folder=shards)


def lines_of(output: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in metrics.SPEEDS} for line in lines]


@pytest.fixture
def rows(shards: Path, student: Path) -> list[TrainingRow]:
    found = open_training_shards(shards, tokenizer=_digest(student))
    return list(rows_of_epoch(found, seed=0, epoch=0))[:7]


def _digest(folder: Path) -> str:
    from retrieval.model_files.files import tokenizer_digest

    return tokenizer_digest(folder)


class Float64Scorer(nn.Module):
    """The cross-encoder without the rounding of logits to fp32."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.scorer = PairScorer(folder, seed=0).double()

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.scorer.backbone(input_ids=input_ids & 0xFFFFFF, attention_mask=attention_mask, token_type_ids=input_ids >> 24).logits


def plain_pair(row: TrainingRow, place: int, *, longest: int) -> tuple[list[int], list[int]]:
    """[CLS] query [SEP] passage [SEP] by hand: the longer part loses its last token until all fits."""
    query, passage = row.query_tokens[1:-1].tolist(), row.candidate_tokens[place][1:-1].tolist()
    while len(query) + len(passage) + 3 > longest:
        (query if len(query) > len(passage) else passage).pop()
    return [2, *query, SEPARATOR, *passage, SEPARATOR], [0] * (len(query) + 2) + [1] * (len(passage) + 1)


@pytest.mark.parametrize("budget", [40, 150, 10_000])
def test_a_cross_encoder_s_gradient(cross_encoder: Path, rows: list[TrainingRow], budget: int) -> None:
    """Prevents: segment ids lost in a micro-batch, dark examples among the negatives, pairs scaled as inner products are."""
    model = Float64Scorer(cross_encoder).eval()
    objective = Objective(supervised_weight=1, without=("reinforced", "noisy", "adaptive", "distillation"))
    pairs = StoredPairs(cross_encoder, max_tokens=14)
    work = plan_batch([as_pairs(row, pairs) for row in rows], objective=objective, share=Fraction(1))
    settings = StepSettings(seed=1, score_scale=20.0, temperature=1.0, micro_batch_tokens=budget, pad_id=0, device="cpu", precision="fp32")
    losses = accumulate_gradients(
        PlainBackend(model), work, cut(work, budget=budget), step=0, settings=settings, processes=Distributed(), references={}
    )
    found = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}

    reference = copy.deepcopy(model)
    reference.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        logits = []
        for place, kind in enumerate(row.kinds):
            if kind <= 1:
                ids, segments = plain_pair(row, place, longest=14)
                logits.append(
                    reference.scorer.backbone(input_ids=torch.tensor([ids]), token_type_ids=torch.tensor([segments])).logits[0, 0]
                )
        total = total - torch.stack(logits).log_softmax(0)[0] / len(rows)
    total.backward()
    assert sum(losses.supervised.values()) / len(rows) == pytest.approx(float(total.detach()), rel=1e-9)
    wanted = {name: parameter.grad for name, parameter in reference.named_parameters() if parameter.grad is not None}
    scale = max(float(value.abs().max()) for value in wanted.values())
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert float((found[name] - value).abs().max()) <= 1e-9 * scale, name


RUNS: dict[str, dict[str, Any]] = {
    "cross_encoder": {"task": "cross_encoder"},
    "cross_encoder by logits": {"task": "cross_encoder", "train__objective__distillation": "listwise"},
    "dual_encoder": {"task": "dual_encoder"},
    "prod": {"recipe": "prod"},
    "prod_dual": {"recipe": "prod_dual"},
}


def words_of(name: str, *, cross_encoder: Path, student: Path) -> dict[str, Any]:
    words = {**RUNS[name], "teacher__model": cross_encoder, "teacher__max_tokens": 60}
    if name == "prod_dual":
        words["train__objective__teacher_model"] = student
    return words


@pytest.mark.medium
@pytest.mark.parametrize("name", RUNS)
def test_resumed_equals_unbroken(
    tmp_path: Path, experiment_file: Path, shards: Path, student: Path, cross_encoder: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Prevents: a frozen start taken from the checkpoint after a kill, a new head drawn anew, a task whose steps are not repeated."""
    words = words_of(name, cross_encoder=cross_encoder, student=student)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(experiment_file, shards, train__output=whole, train__steps=10, **words) == 0
    original = metrics.Metrics.write

    def write(self: Any, figures: dict[str, Any]) -> None:
        original(self, figures)
        if figures["step"] == 7:
            raise Killed

    with monkeypatch.context() as context, pytest.raises(Killed):
        context.setattr(metrics.Metrics, "write", write)
        start(experiment_file, shards, train__output=broken, train__steps=10, **words)
    torch.rand(3)
    assert start(experiment_file, shards, train__output=broken, train__steps=10, **words) == 0
    lines = lines_of(whole)
    assert lines == lines_of(broken) and [line["step"] for line in lines] == list(range(1, 11))
    task = words.get("task", "student")
    assert ("logits" in name) == (lines[-1]["distillation"] > 0 and task == "cross_encoder")
    expected, found = (load_file(folder / task / "model.safetensors") for folder in (whole, broken))
    assert expected.keys() == found.keys() and all(torch.equal(expected[key], found[key]) for key in expected)
    if name == "prod":
        assert lines[-1]["kept"] > 0
        weights = {"supervised": 0.1, "distillation": 0.9 * 16, "kept": 16.0}
        assert lines[-1]["loss"] == pytest.approx(sum(weight * lines[-1][part] for part, weight in weights.items()), rel=1e-9)
    else:
        assert "kept" not in lines[-1]


@pytest.mark.medium
def test_a_trained_cross_encoder_is_a_teacher(
    tmp_path: Path,
    experiment_file: Path,
    student: Path,
    cross_encoder: Path,
    shard_writer: Callable[..., Path],
    row_maker: Callable[..., dict[str, Any]],
) -> None:
    """Prevents: a folder that the scorer refuses, or reads as another model than the one that was trained."""
    generator = np.random.default_rng(4)
    made = [row_maker(generator, f"q{number:02d}") for number in range(40)]
    for row in made:  # a word that says which passage is right
        row["candidate_tokens"] = [
            [2, *(9 if token == 8 else token for token in tokens[1:-1]), *([8, 8] if place == 0 else []), 3]
            for place, tokens in enumerate(row["candidate_tokens"])
        ]
    shards = shard_writer(tmp_path / "shards", [made], student=student)
    words = words_of("cross_encoder", cross_encoder=cross_encoder, student=student)
    assert start(experiment_file, shards, train__epochs=8, train__learning_rate=2e-3, **words) == 0
    folder = tmp_path / "run" / "cross_encoder"
    lines = lines_of(tmp_path / "run")
    assert np.mean([line["loss"] for line in lines[-5:]]) < 0.3 * lines[0]["loss"]
    assert _digest(folder) == _digest(cross_encoder)

    pairs, model = StoredPairs(cross_encoder, max_tokens=60), TorchCrossEncoder(folder, precision="fp32", device="cpu")
    rows = list(rows_of_epoch(open_training_shards(shards, tokenizer=_digest(student)), seed=0, epoch=0))
    scored = [
        [pairs.join(row.query_tokens, tokens) for tokens, kind in zip(row.candidate_tokens, row.kinds, strict=True) if kind <= 1]
        for row in rows
    ]
    logits = [score_pairs(model, listed, pad_id=0) for listed in scored]
    assert np.mean([np.argmax(one) == 0 for one in logits]) > 0.9
    assert np.allclose(logits[0], open_one(PairScorer(folder, seed=5).eval(), rows[0], pairs), atol=1e-4)


@pytest.mark.medium
@pytest.mark.parametrize("loss", ["kl", "margin_mse"])
def test_a_cross_encoder_moves_towards_the_stored_logits(
    tmp_path: Path,
    experiment_file: Path,
    student: Path,
    cross_encoder: Path,
    shard_writer: Callable[..., Path],
    row_maker: Callable[..., dict[str, Any]],
    loss: str,
) -> None:
    """Prevents: logits of another candidate than the pair's, since dark examples are left out of the list, or labels in their place."""
    generator = np.random.default_rng(6)
    made = [row_maker(generator, f"q{number:02d}", negatives=5) for number in range(40)]
    for row in made:  # the stronger teacher counts a word, and thinks little of p+
        row["candidate_tokens"] = [
            [2, *(9 if token == 8 else token for token in tokens[1:-1]), *[8] * int(generator.integers(0, 5)), 3]
            for tokens in row["candidate_tokens"]
        ]
        row["teacher_logits"] = [float(tokens.count(8)) for tokens in row["candidate_tokens"]]
    shards = shard_writer(tmp_path / "shards", [made], student=student)
    words = {**words_of("cross_encoder", cross_encoder=cross_encoder, student=student), "train__objective__distillation": loss}
    assert start(experiment_file, shards, train__epochs=10, train__learning_rate=2e-3, **words) == 0
    folder = tmp_path / "run" / "cross_encoder"
    pairs, rows = (
        StoredPairs(cross_encoder, max_tokens=60),
        rows_of_epoch(open_training_shards(shards, tokenizer=_digest(student)), seed=0, epoch=0),
    )
    distances: dict[Path, list[float]] = {cross_encoder: [], folder: []}
    models = {path: TorchCrossEncoder(path, precision="fp32", device="cpu") for path in distances}
    for row in rows:
        plain = [place for place, kind in enumerate(row.kinds) if kind <= 1]
        target = row.teacher_logits[plain].astype(np.float64)
        for path, model in models.items():
            logits = score_pairs(model, [pairs.join(row.query_tokens, row.candidate_tokens[place]) for place in plain], pad_id=0)
            distances[path].append(float(np.square((logits - logits.mean()) - (target - target.mean())).mean()))
    assert np.mean(distances[folder]) < 0.25 * np.mean(distances[cross_encoder])
    assert len(distances[folder]) == 40


def open_one(model: PairScorer, row: TrainingRow, pairs: StoredPairs) -> list[float]:
    with torch.no_grad():
        sequences = [torch.from_numpy(tokens.copy())[None].long() for tokens in as_pairs(row, pairs).candidate_tokens]
        return [float(model(ids, torch.ones_like(ids))[0, 0]) for ids in sequences]


def test_an_encoder_gets_a_head_of_the_seed(student: Path) -> None:
    """Prevents: a second cross-encoder of the same start that is the first one again, or a run that cannot be repeated."""
    heads = [PairScorer(student, seed=seed).backbone.classifier.weight for seed in (0, 0, 1)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2]) and heads[0].shape == (1, 32)


@pytest.mark.medium
def test_what_a_cross_encoder_cannot_be_trained_from(
    tmp_path: Path,
    experiment_file: Path,
    shards: Path,
    student: Path,
    cross_encoder: Path,
    make_cross_encoder: Callable[..., Path],
    shard_writer: Callable[..., Path],
    row_maker: Callable[..., dict[str, Any]],
) -> None:
    """Prevents: hours of training on tokens that mean other words to this model, or on logits that are not there."""

    def refused(match: str, folder: Path = shards, **words: Any) -> None:
        with pytest.raises(UserError, match=match):
            start(experiment_file, folder, **{"task": "cross_encoder", "teacher__model": cross_encoder, "teacher__max_tokens": 60, **words})

    two = make_cross_encoder(tmp_path / "two", student=student, outputs=2)
    refused("2 outputs", teacher__model=two)
    refused("ONNX", teacher__backend="onnx")
    refused(r"trains a single output; leave out teacher\.answers and teacher\.label", teacher__label=1)
    refused("trains on plain pairs", teacher__template="qwen3-reranker")
    refused("trains on plain pairs", teacher__instruction="Find")
    refused("prompts", student__query_prefix="query: ")
    refused(r"train\.dev=null", train__dev="somewhere")
    refused("its own negatives", train__objective__in_batch="both")
    refused(r"set teacher\.max_tokens=128", teacher__max_tokens=200)
    other = shard_writer(tmp_path / "other", [[row_maker(np.random.default_rng(0), "q")]])
    refused(r"(?s)another tokenizer.*student\.model=.*cross-encoder", other)
    unscored = shard_writer(tmp_path / "unscored", [[row_maker(np.random.default_rng(0), "q")]], student=student, teachers=[])
    refused("no teacher logits", unscored, task="student")
    refused("teacher_model=FOLDER", task="student", recipe="prod_dual")


def test_a_dual_encoder_teacher_must_read_the_same_tokens(tmp_path: Path, experiment_file: Path, student: Path, make_student: Any) -> None:
    """Prevents: a teacher that sees other words than the student."""
    other = make_student(tmp_path / "other")
    (other / "tokenizer_config.json").write_text(
        (other / "tokenizer_config.json").read_text().replace('"do_lower_case": true', '"do_lower_case": false')
    )
    content = json.loads((other / "tokenizer_config.json").read_text())
    (other / "tokenizer_config.json").write_text(json.dumps({**content, "cls_token": "[MASK]"}))
    words = {"config": str(experiment_file), "recipe": "prod_dual", "train.objective.teacher_model": str(other)}
    with pytest.raises(UserError, match="another tokenizer than the student"):
        task_of(recipes.load(words), DigestCache(tmp_path / "digests"))


def test_settings_that_make_no_objective(experiment_file: Path) -> None:
    """Prevents: a run without a loss, or with a term whose list is left out."""
    for words in (
        {"train.objective.without": "distillation,supervised"},
        {"train.objective.without": "distillation", "train.objective.reference_kl_weight": "1"},
        {"recipe": "margin_mse", "train.objective.temperature_squared": "true"},
    ):
        with pytest.raises(UserError):
            recipes.load({"config": str(experiment_file), **words})
    objective = recipes.load({"config": str(experiment_file), "recipe": "prod"}).train.objective
    assert (objective.supervised_weight, objective.distillation_weight, objective.reference_kl_weight) == (0.1, 0.9, 1.0)
    assert (objective.temperature, objective.temperature_squared, objective.in_batch) == (4.0, True, "none")
    labels = recipes.load({"config": str(experiment_file), "task": "dual_encoder"}).train.objective
    assert (labels.supervised_weight, labels.in_batch) == (1.0, "supervised") and "distillation" in labels.without


@pytest.mark.parametrize("task", ["student", "cross_encoder"])
def test_a_model_that_reads_its_padding_is_not_trained(tmp_path: Path, task: str) -> None:
    """Prevents: gradients that depend on how texts are put together, and a result that reads each text otherwise alone."""
    folder = save(tmp_path, "MobileBert")  # whose first layer reads the next token too: at a text's end, padding
    student, settings = Student(model=str(folder), query_tokens=16, passage_tokens=16), Train(device="cpu", precision="fp32")
    with pytest.raises(UserError, match=r"MobileBert\w+ gives a text another result beside longer ones"):
        if task == "student":
            prepared(lambda: DualEncoder(resolve_student(student)), settings)
        else:
            prepared(lambda: PairScorer(folder, seed=0), settings)


def test_exported_lists_bring_no_cross_encoder(tmp_path: Path) -> None:
    """Prevents: "teacher.model=the lists' own: no such folder", of a setting that nobody made."""
    file = tmp_path / "lists.yaml"
    file.write_text(f"{{store: {tmp_path}, student: {{model: a/student}}, lists: {{path: {tmp_path}}}, train: {{task: cross_encoder}}}}")
    with pytest.raises(UserError, match=r"lists\.path has none: give teacher\.model=FOLDER"):
        task_of(recipes.load({"config": str(file)}), DigestCache(tmp_path / "digests"))


@pytest.mark.medium
@pytest.mark.parametrize("in_batch", ["none", "supervised"])
def test_a_batch_of_which_no_loss_is_asked_is_a_step(
    tmp_path: Path, experiment_file: Path, student: Path, shard_writer: Callable[..., Path], row_maker: Callable[..., Any], in_batch: str,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Prevents: a run that ends in the middle, or is refused beforehand, where all of a batch's p+ are of a grade that has no weight."""
    generator = np.random.default_rng(0)
    rows = [{**row_maker(generator, f"q{number}"), "positive_grade": int(number == 7)} for number in range(8)]
    shards = shard_writer(tmp_path / "graded", [rows], student=student, schema_version=5)
    words = {
        "config": str(experiment_file), "train.task": "dual_encoder", "train.epochs": "1", "train.batch_queries": "2",
        "train.objective.in_batch": in_batch, "train.objective.positive_weights": "0:0,1:1",
    }  # fmt: skip
    monkeypatch.setattr(dry_run, "_MEASURED_SECONDS", 0.0)
    assert dry_run.describe(recipes.load(words), shards_folder=shards) == 0
    assert "first batch  2 queries" in capsys.readouterr().out
    assert train(recipes.load(words), shards_folder=shards) == 0
    lines = lines_of(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and sum(line["loss"] > 0 for line in lines) == 1
    assert all((line["loss"] > 0) == (line["gradient_norm"] > 0) for line in lines)
