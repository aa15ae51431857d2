"""Options that change what a step costs, and not what it computes; and what is said of a run before it begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from trainer import recipes
from trainer.loop import train
from trainer.reporting import dry_run, mfu
from trainer.reporting.mfu import measured_flop_rate, training_flop


def start(file: Path, shards: Path, **overrides: Any) -> dict[str, torch.Tensor]:
    words = {"config": str(file), **{key.replace("__", "."): str(value) for key, value in overrides.items()}}
    experiment = recipes.load(words)
    assert train(experiment, shards_folder=shards) == 0
    return load_file(Path(experiment.train.output) / "student" / "model.safetensors")


@pytest.mark.medium
@pytest.mark.parametrize("in_batch", ["none", "both"])
def test_activation_checkpointing_repeats_the_masks(tmp_path: Path, experiment_file: Path, shards: Path, in_batch: str) -> None:
    """Prevents: a layer computed again with other dropout masks: the gradient of a pass that never was."""
    plain = start(experiment_file, shards, train__output=tmp_path / "plain", train__objective__in_batch=in_batch)
    words = {"train__activation_checkpointing": True, "train__objective__in_batch": in_batch}
    found = start(experiment_file, shards, train__output=tmp_path / "again", **words)
    assert all(torch.equal(plain[name], found[name]) for name in plain)


def test_steps_cut_a_run_short(tmp_path: Path, experiment_file: Path, shards: Path) -> None:
    """Prevents: a learning rate that falls towards the end of epochs that are never reached."""
    start(experiment_file, shards, train__steps=8)
    import json

    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 9)) and lines[-1]["epoch"] == 2
    assert lines[-1]["learning_rate"] == pytest.approx(0.01 / 6) and lines[1]["learning_rate"] == 0.01


@pytest.mark.medium
def test_key_biases_stay(tmp_path: Path, experiment_file: Path, shards: Path, student: Path) -> None:
    """Prevents: steps made of rounding noise, by which two runs of the same numbers differ."""
    trained, begun = start(experiment_file, shards), load_file(student / "model.safetensors")
    still = {name for name in begun if torch.equal(begun[name], trained[name])}
    assert still == {name for name in begun if name.endswith("key.bias")} != set()


def test_flop_are_those_of_the_layers() -> None:
    """Prevents: a utilisation that counts embeddings or forgets attention."""
    from transformers import BertConfig, BertModel

    config = BertConfig(vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    model = BertModel(config, add_pooling_layer=False)
    weights = 2 * (4 * 8 * 8 + 2 * 8 * 16)
    # A matrix product is 2 FLOP a weight and token, and three of them train: forward, input gradient, weight gradient.
    scores = 2 * 2 * 2 * 8 * 5 * 5  # 2 layers, Q K^T and P V, 2 FLOP, 8 dimensions, 5 x 5 tokens
    assert training_flop(model, [5]) == 3 * (2 * weights * 5 + scores)
    assert training_flop(model, [5, 5]) == 2 * training_flop(model, [5])


def test_the_device_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a made-up peak."""
    monkeypatch.setattr(mfu, "_SIZE", {"cpu": 64})
    monkeypatch.setattr(mfu, "_SECONDS", 0.0)
    assert 1e6 < measured_flop_rate(device="cpu", precision="fp32") < 1e15


def test_dry_run_says_what_the_run_does(
    tmp_path: Path, experiment_file: Path, shards: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a price for another run than the one that will be started, and a look that leaves traces."""
    monkeypatch.setattr(dry_run, "_MEASURED_SECONDS", 0.1)
    experiment = recipes.load({"config": str(experiment_file)})
    assert dry_run.describe(experiment, shards_folder=shards) == 0
    said = capsys.readouterr().out
    assert "22 queries" in said and "3 epochs, 18 steps of 4 queries" in said and "8 candidates a list" in said
    assert "100% of queries selected" in said and "epoch 3" in said and "GB at its peak" in said and "tokens/s" in said
    assert not (tmp_path / "run").exists()


def test_model_is_a_module() -> None:
    """`nn.Module.compile` keeps the names of the parameters, `torch.compile` does not: checkpoints depend on it."""
    model = nn.Linear(2, 2)
    model.compile()
    assert list(model.state_dict()) == ["weight", "bias"]
