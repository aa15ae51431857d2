"""A loss of one's own in a whole training: it gets what built-ins get, and a run knows it from another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from data.errors import UserError
from trainer import recipes
from trainer.loop import train

OWN = """
from trainer.objective.losses import distillation_loss

def divergence(scores_BK, logits_BK, mask_BK, *, temperature):
    assert (logits_BK[~mask_BK] == 0).all() and logits_BK.isfinite().all(), "an infinity on padding"
    return distillation_loss(scores_BK, logits_BK, mask_BK, temperature)
divergence.version = 1

def mean(scores_BK, logits_BK, mask_BK, *, temperature):
    return scores_BK.mean()

def detached(scores_BK, logits_BK, mask_BK, *, temperature):
    return scores_BK.detach().sum(1)

def of_labels(*tensors, temperature): ...
of_labels.learns_from = "labels"
"""


@pytest.fixture
def run(plugin_folder: Callable[..., Path], experiment_file: Path, shards: Path, tmp_path: Path) -> Callable[..., Path]:
    def start(loss: str, **overrides: str) -> Path:
        words = {"config": str(experiment_file), "train.steps": "3", "train.output": str(tmp_path / loss), "recipe": "hard_kd"}
        words |= {"train.objective.distillation": loss, **overrides}
        assert train(recipes.load(words), shards_folder=shards) == 0
        return tmp_path / loss

    plugin_folder({"mylab/losses.py": OWN})
    return start


def test_the_same_formula_trains_the_same_parameters(run: Callable[..., Path]) -> None:
    """Prevents: a plug-in that is passed over, or given other numbers, weights or temperature than a built-in."""
    overrides = {"train.objective.temperature": "2", "train.objective.temperature_squared": "true"}
    built_in, own = run("kl", **overrides), run("mylab.losses:divergence", **overrides)
    one, other = (load_file(folder / "student" / "model.safetensors") for folder in (built_in, own))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert "plugin" not in (built_in / "run.json").read_text()
    assert '"plugin": "mylab.losses:divergence"' in json.dumps(json.loads((own / "run.json").read_text()))


def test_another_version_is_another_run(run: Callable[..., Path]) -> None:
    """Prevents: a training that goes on under a changed loss, half of each."""
    import mylab.losses

    run("mylab.losses:divergence")
    mylab.losses.divergence.version = 2
    with pytest.raises(UserError, match="version"):
        run("mylab.losses:divergence")


def test_what_a_loss_cannot_be_is_told_by_the_first_step(run: Callable[..., Path]) -> None:
    """Prevents: a scalar that is added to the total once a group, and trains by the size of the groups; lists without labels."""
    with pytest.raises(UserError, match=r"mylab.losses:mean: it returned \(\); expected \(\d+,\), a loss for each query"):
        run("mylab.losses:mean")
    with pytest.raises(UserError, match=r"prep run config=FILE curriculum.enabled=true"):
        run("mylab.losses:of_labels")
    with pytest.raises(UserError, match=r"has no module mylab\.nothing"):
        run("mylab.nothing:of_labels")
    with pytest.raises(UserError, match="needs teacher logits, which in-batch passages have not"):
        run("mylab.losses:divergence", **{"train.objective.in_batch": "distillation"})


def test_a_loss_without_a_gradient_is_refused(run: Callable[..., Path]) -> None:
    """Prevents: hours of a training that teaches nothing, and ends well."""
    with pytest.raises(UserError, match="detached: it does not depend on the scores"):
        run("mylab.losses:detached")
