"""Trainings of adapters alone: resumed, on every path, and what is refused before they begin."""

from __future__ import annotations

import copy
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.adapters import merged_by_peft
from support.checkpoints import save
from support.lora_runs import assert_resumed_equals_unbroken, experiment, losses, start

from data.config.settings import Lora, Objective, Student, Train
from data.errors import UserError
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.lora import add_lora, is_lora
from retrieval.models.student import resolve_student
from trainer.cpu.fast_path import CpuBackend
from trainer.input.stream import open_training_shards, rows_of_epoch
from trainer.objective.plan import plan_batch
from trainer.processes.distributed import Distributed
from trainer.reporting import dry_run
from trainer.steps.backend import PlainBackend
from trainer.steps.gradients import StepSettings, accumulate_gradients
from trainer.steps.micro_batches import cut
from trainer.steps.optim import make_optimizer
from trainer.steps.prepare_model import prepared


@pytest.mark.medium
def test_killed_and_resumed_equals_unbroken(tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: adapters drawn anew, moments lost, or dropout masks of other draws in a run that goes on."""
    words = {"train__steps": 7, "train__activation_checkpointing": True}
    assert_resumed_equals_unbroken(tmp_path, experiment_file, shards, monkeypatch, killed=5, **words)


@pytest.mark.medium
def test_what_a_training_leaves(tmp_path: Path, experiment_file: Path, shards: Path, student: Path) -> None:
    """Prevents: a loss that does not fall, a frozen weight that moved, a checkpoint with the whole base in it, a merged student that is
    another one than base and adapter."""
    output = tmp_path / "run"
    assert start(experiment_file, shards) == 0
    seen = losses(output)
    assert sum(seen[-4:]) < 0.9 * sum(seen[:4])
    before, after = (load_file(folder / "model.safetensors") for folder in (student, output / "student"))
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"encoder.layer.{layer}.attention.self.{name}.weight" for layer in (0, 1) for name in ("query", "value")}
    newest = max((output / "checkpoints").iterdir())
    parameters = load_file(newest / "model.safetensors")
    assert len(parameters) == 8 and all(is_lora(name) for name in parameters)
    assert {name.partition("|")[0] for name in load_file(newest / "optimizer.safetensors")} == parameters.keys()
    ids = torch.arange(5, 25).view(2, 10)
    with torch.no_grad():
        states = merged_by_peft(output / "student" / "adapter", student, "AutoModel")(ids, torch.ones_like(ids)).last_hidden_state
        own = DualEncoder(resolve_student(Student(model=str(output / "student"))))(ids, torch.ones_like(ids))
    torch.testing.assert_close(own, states.mean(1), atol=1e-5, rtol=0)


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """A causal decoder whose ids are those of the shards."""
    return save(tmp_path / "decoder", "Qwen3")


@pytest.mark.medium
@pytest.mark.parametrize("layers", ["null", 1])
def test_a_decoder(
    tmp_path: Path, experiment_file: Path, row_maker: Callable[..., Any], shard_writer: Callable[..., Path], decoder: Path, layers: Any
) -> None:
    """Prevents: LoRA for BERT alone; layers that were cut off and come back with the adapter."""
    import numpy as np

    generator = np.random.default_rng(1)
    shards = shard_writer(tmp_path / "shards", [[row_maker(generator, f"q{number:02d}") for number in range(12)]], student=decoder)
    words = {"student__model": decoder, "student__pooling": "mean", "student__layers": layers, "student__lora__targets": "all-linear"}
    assert start(experiment_file, shards, **words, train__steps=6) == 0
    output = tmp_path / "run"
    seen = losses(output)
    assert min(seen[-2:]) < seen[0]
    adapter = load_file(output / "student" / "adapter" / "adapter_model.safetensors")
    assert len(adapter) == (2 if layers == "null" else 1) * 14
    assert (output / "student" / "config.json").is_file()


def model_of(folder: Path, *, dropout: float, **train: Any) -> DualEncoder:
    own = Student(model=str(folder), lora=Lora(rank=4, dropout=dropout))
    model = prepared(lambda: add_lora(DualEncoder(resolve_student(own)), own, seed=0), Train(device="cpu", **train))
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if is_lora(name):
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return model


@pytest.mark.medium
@pytest.mark.parametrize("in_batch", ["none", "both"])
def test_the_fast_path_of_cpus_gives_the_same_gradients(
    make_student: Callable[..., Path], tmp_path: Path, shards: Path, student: Path, in_batch: Any
) -> None:
    """Prevents: packed layers, workers or word embeddings' own gradient that do not know of adapters."""
    from retrieval.model_files.files import tokenizer_digest

    found = open_training_shards(shards, tokenizer=tokenizer_digest(student))
    rows = list(rows_of_epoch(found, seed=0, epoch=0))[:7]
    work = plan_batch(rows, objective=Objective(in_batch=in_batch), share=Fraction(1))
    model = model_of(make_student(tmp_path / "without", dropout=0.0), dropout=0.0)
    settings = StepSettings(1, 3.0, 1.0, 96, 0, "cpu", "fp32")
    gradients = []
    for make in (PlainBackend, lambda own: CpuBackend(own, workers=1), lambda own: CpuBackend(own, workers=2)):
        own = copy.deepcopy(model)
        backend = make(own)
        accumulate_gradients(backend, work, cut(work, budget=96), step=2, settings=settings, processes=Distributed(), references={})
        gradients.append({name: parameter.grad for name, parameter in own.named_parameters() if parameter.grad is not None})
    assert all(is_lora(name) for name in gradients[0]) and len(gradients[0]) == 8
    for other in gradients[1:]:
        assert other.keys() == gradients[0].keys()
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(other[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))


@pytest.mark.parametrize("fast", [True, False])
def test_activations_computed_again_change_nothing(shards: Path, student: Path, fast: bool) -> None:
    """Prevents: a gradient for the frozen word embeddings, which counts in the norm, grows with each step and is in no checkpoint."""
    from retrieval.model_files.files import tokenizer_digest

    found = open_training_shards(shards, tokenizer=tokenizer_digest(student))
    work = plan_batch(list(rows_of_epoch(found, seed=0, epoch=0))[:4], objective=Objective(), share=Fraction(1))
    gradients = []
    for again in (False, True):
        own = model_of(student, dropout=0.1, activation_checkpointing=again)
        backend = CpuBackend(own, workers=1) if fast else PlainBackend(own)
        settings = StepSettings(1, 3.0, 1.0, 96, 0, "cpu", "fp32")
        accumulate_gradients(backend, work, cut(work, budget=96), step=2, settings=settings, processes=Distributed(), references={})
        gradients.append({name: parameter.grad for name, parameter in own.named_parameters() if parameter.grad is not None})
    assert gradients[0].keys() == gradients[1].keys() and all(torch.equal(gradients[1][name], gradients[0][name]) for name in gradients[0])


def test_the_layers_are_packed_and_their_dropout_is_the_thread_s(student: Path) -> None:
    """Prevents: adapters for which a run silently leaves the fast path, at half its speed."""
    from trainer.cpu import packing

    backend = CpuBackend(model_of(student, dropout=0.1), workers=2)
    assert packing.packs(backend.model) and backend.at_once == 2


def test_the_optimizer_knows_of_adapters_alone(student: Path) -> None:
    """Prevents: two moments for each weight of the base."""
    model = model_of(student, dropout=0.0)
    groups = make_optimizer(model, weight_decay=0.01).param_groups
    known = {id(parameter) for group in groups for parameter in group["params"]}
    assert known == {id(parameter) for name, parameter in model.named_parameters() if is_lora(name)}


@pytest.mark.medium
def test_dry_run_counts_what_is_trained(
    experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: a memory estimate with moments for a base that has none."""
    monkeypatch.setattr(dry_run, "_MEASURED_SECONDS", 0.1)
    assert dry_run.describe(experiment(experiment_file), shards_folder=shards) == 0
    assert "1,024 trained parameters of 24," in capsys.readouterr().out


def test_other_adapters_are_another_run(tmp_path: Path, experiment_file: Path, shards: Path) -> None:
    """Prevents: a run that goes on with adapters of another rank."""
    words = {"train__steps": 1, "train__checkpoint_every": 1}
    assert start(experiment_file, shards, **words) == 0
    with pytest.raises(UserError, match=r"lora\.rank: 4 there, 8 now"):
        start(experiment_file, shards, student__lora__rank=8, **words)
    with pytest.raises(UserError, match=r'lora: \{"alpha": 8\.0.* there, null now'):
        start(experiment_file, shards, student__lora__rank="null", student__lora__dropout=0, **words)


def test_refused_before_anything_is_written(tmp_path: Path, experiment_file: Path, shards: Path, cross_encoder: Path) -> None:
    """Prevents: a misspelt target that leaves a folder in which the right command is then another run; adapters of a cross-encoder that
    are asked for and not made."""
    with pytest.raises(UserError, match=r"no linear layer qeury; it has dense, key, query, value"):
        start(experiment_file, shards, student__lora__targets="qeury,value")
    assert not [path for path in (tmp_path / "run").rglob("*") if path.is_file() and path.name != "running.json"]
    with pytest.raises(UserError, match=r"task=cross_encoder trains all of teacher\.model; .*student\.lora\.rank=null"):
        start(experiment_file, shards, train__task="cross_encoder", teacher__model=cross_encoder)
