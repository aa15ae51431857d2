"""Matryoshka: the settings, what is refused, and the loss against sentence-transformers' own."""

from __future__ import annotations

import json
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.config.settings import Objective, Student
from data.errors import UserError
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.student import resolve_student
from retrieval.models.tokenizer import tokenizer_of
from trainer import recipes
from trainer.input.stream import TrainingRow
from trainer.loop import train
from trainer.objective.dimensions import Dimensions
from trainer.objective.plan import plan_batch
from trainer.processes.distributed import Distributed
from trainer.steps.backend import PlainBackend
from trainer.steps.gradients import StepSettings, accumulate_gradients
from trainer.steps.micro_batches import cut

QUERIES = ["w1 w2 w3", "w4 w9", "w11 w5 w17 w20"]
PASSAGES = [["w1 w2 w30 w31", "w40 w41", "w50"], ["w4 w44 w9", "w12", "w13 w14 w15 w16"], ["w20 w5", "w21 w22 w23", "w1"]]
LOGITS = np.random.default_rng(0).normal(scale=3, size=(3, 3)).astype(np.float32)


@pytest.mark.medium
@pytest.mark.parametrize("objective", ["kl", "margin_mse"])
@pytest.mark.parametrize("weights", [(), (1.0, 0.5, 0.25)])
def test_loss_and_gradient_are_those_of_sentence_transformers(
    make_student: Callable[..., Path], tmp_path: Path, objective: str, weights: tuple[float, ...]
) -> None:
    """Prevents: a Matryoshka of another definition than the one that everybody else trains: means for sums, or scores of long vectors."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss, MarginMSELoss, MatryoshkaLoss

    folder = make_student(tmp_path / "model", normalize=True, dropout=0.0)
    dimensions = (32, 16, 4)
    theirs = SentenceTransformer(str(folder), device="cpu")
    inner = {"kl": DistillKLDivLoss, "margin_mse": MarginMSELoss}[objective](theirs)
    loss = MatryoshkaLoss(theirs, inner, list(dimensions), list(weights) or None)
    columns = [QUERIES, *map(list, zip(*PASSAGES, strict=True))]
    expected = loss([theirs.tokenize(column) for column in columns], torch.from_numpy(LOGITS))
    expected.backward()

    spec = resolve_student(Student(model=str(folder)))
    model, tokenizer = DualEncoder(spec).train(), tokenizer_of(spec)

    def tokens(text: str) -> Any:
        return np.array(tokenizer.encode([text], max_tokens=64)[0], np.int32)

    rows = [
        TrainingRow(f"q{n}", tokens(query), tuple(map(tokens, PASSAGES[n])), (0, 1, 1), tuple(f"{n}-{m}" for m in range(3)), LOGITS[n], 0.0)
        for n, query in enumerate(QUERIES)
    ]
    own = Objective(
        distillation=objective, include_positive=True, without=("supervised", "adaptive", "reinforced", "noisy"),
        dimensions=dimensions, dimension_weights=weights,
    )  # fmt: skip
    work = plan_batch(rows, objective=own, share=Fraction(1))
    settings = StepSettings(
        seed=0, score_scale=1.0, temperature=1.0, micro_batch_tokens=4096, pad_id=0, device="cpu", precision="fp32",
        distillation=objective, dimensions=Dimensions(own.weighted_dimensions, normalize=True),
    )  # fmt: skip
    losses = accumulate_gradients(
        PlainBackend(model), work, cut(work, budget=4096), step=0, settings=settings, processes=Distributed(), references={}
    )
    assert work.distillation_weight * sum(losses.distillation.values()) == pytest.approx(expected.item(), rel=1e-5)
    wanted = {name.removeprefix("0.model."): p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    found = {name: p.grad for name, p in model.backbone.named_parameters() if p.grad is not None}
    assert wanted.keys() <= found.keys() and len(wanted) > 30
    scale = max(float(value.abs().max()) for value in wanted.values())
    assert max(float((found[name] - value).abs().max()) for name, value in wanted.items()) < 1e-5 * scale


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"dimensions": (64, 64)}, "different numbers from 1 on"),
        ({"dimensions": (64, 0)}, "different numbers from 1 on"),
        ({"dimensions": (64,), "dimension_weights": (1.0, 2.0)}, "a number for each of dimensions"),
        ({"dimension_weights": (1.0,)}, "a number for each of dimensions"),
        ({"dimensions": (64,), "dimension_weights": (0.0,)}, "above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], words: str) -> None:
    """Prevents: a dimension counted twice, or a weight that belongs to none."""
    with pytest.raises(ValueError, match=words):
        Objective(**given)


def load(file: Path, **words: Any) -> Any:
    return recipes.load({"config": str(file), **{key.replace("__", "."): str(value) for key, value in words.items()}})


def test_more_dimensions_than_a_vector_has_are_refused_before_anything_is_written(
    tmp_path: Path, experiment_file: Path, shards: Path, cross_encoder: Path
) -> None:
    """Prevents: a run of whole vectors under the name of long ones, and an output folder that is taken by a run that never began."""
    with pytest.raises(UserError, match="asks for the first 64, and the student's vectors have 32"):
        train(load(experiment_file, train__objective__dimensions="[64,32]"), shards_folder=shards)
    assert not list((tmp_path / "run").glob("run.json"))
    with pytest.raises(UserError, match="task=cross_encoder gives one number"):
        load(experiment_file, train__objective__dimensions=16, train__task="cross_encoder", teacher__model=cross_encoder)


def test_a_setting_that_is_not_given_is_in_no_key(tmp_path: Path, experiment_file: Path, shards: Path) -> None:
    """Prevents: runs that were begun before it had a name, refused as others."""
    for name, words in (("without", {}), ("with", {"train__objective__dimensions": "[32,8]"})):
        assert train(load(experiment_file, train__steps=1, train__output=tmp_path / name, **words), shards_folder=shards) == 0
    keys = [json.loads((tmp_path / name / "run.json").read_text())["train"]["objective"] for name in ("without", "with")]
    assert keys[1].pop("dimensions") == [32, 8] and keys[0] == keys[1]


@pytest.mark.medium
@pytest.mark.parametrize("in_batch", ["none", "both"])
def test_fast_path_budgets_and_workers_give_the_plain_run(
    tmp_path: Path, experiment_file: Path, shards: Path, make_student: Callable[..., Path], in_batch: str
) -> None:
    """Prevents: short vectors that only one of the ways to compute a step knows."""
    still = make_student(tmp_path / "still", dropout=0.0, normalize=True)
    words = {
        "student__model": still, "train__steps": 4, "train__learning_rate": 1e-3, "train__score_scale": 10,
        "train__objective__in_batch": in_batch, "train__objective__supervised_weight": 1, "train__warmup_steps": 0,
        "train__objective__dimensions": "[32,8,3]",
    }  # fmt: skip
    ways: dict[str, dict[str, Any]] = {
        "plain": {"train__cpu_fast_path": False, "train__micro_batch_tokens": 4096},
        "fast": {"train__micro_batch_tokens": 4096},
        "small": {"train__micro_batch_tokens": 64},
        "workers": {"train__micro_batch_tokens": 64, "train__workers": 2, "train__threads": 2},
        "whole": {"train__objective__dimensions": "[]"},
    }
    found = {}
    for name, way in ways.items():
        assert train(load(experiment_file, **{**words, **way, "train__output": tmp_path / name}), shards_folder=shards) == 0
        found[name] = load_file(tmp_path / name / "student" / "model.safetensors")
    torch.set_num_threads(1)
    for name in ("fast", "small", "workers"):
        for tensor, value in found["plain"].items():
            torch.testing.assert_close(found[name][tensor], value, rtol=1e-3, atol=2e-5, msg=f"{name} {tensor}")
    assert any(not torch.allclose(found["whole"][tensor], value, rtol=1e-2, atol=1e-4) for tensor, value in found["plain"].items())
    kept = json.loads((tmp_path / "plain" / "student" / "config_sentence_transformers.json").read_text())
    assert "truncate_dim" not in kept
