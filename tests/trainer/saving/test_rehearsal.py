"""A model is saved, and opened again, before its first step."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import save, save_own_code

from data.config.settings import Student
from data.errors import RunFailed, UserError
from retrieval.models import dual_encoder
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.student import resolve_student
from retrieval.teachers.pair_scorer import PairScorer
from trainer import recipes
from trainer.loop import train
from trainer.processes.distributed import Distributed
from trainer.run import open_run
from trainer.saving.rehearsal import rehearse_saving

NOBODY_SAVES = "num_hidden_layers (4) must be equal to the number of layer_types (6)"


def words_of(file: Path, **words: Any) -> dict[str, str]:
    return {"config": str(file), **{key.replace("__", "."): str(value) for key, value in words.items()}}


def student_of(folder: Path, **words: Any) -> DualEncoder:
    return DualEncoder(resolve_student(Student(model=str(folder), query_tokens=40, passage_tokens=90, **words)))


@pytest.mark.parametrize("task", ["student", "dual_encoder", "cross_encoder"])
def test_what_cannot_be_saved_is_not_trained(
    tmp_path: Path, experiment_file: Path, shards: Path, cross_encoder: Path, monkeypatch: pytest.MonkeyPatch, task: str
) -> None:
    """Prevents: a whole training whose result transformers refuses to save, and so at every start of the same command."""
    from transformers import PreTrainedModel

    def save_pretrained(self: Any, *unused: Any, **words: Any) -> None:
        raise ValueError(NOBODY_SAVES)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save_pretrained)
    words = {"task": task, "teacher__model": cross_encoder, "teacher__max_tokens": 60, "train__output": tmp_path / "out"}
    with pytest.raises(UserError, match=r"Bert\w+ cannot be saved .* not trained: num_hidden_layers \(4\)"):
        train(recipes.load(words_of(experiment_file, **words)), shards_folder=shards)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["run.json"]


@pytest.mark.parametrize("architecture", ["ModernBert", "DistilBert", "Gemma3Text", "Qwen3"])
@pytest.mark.parametrize("words", [{}, {"layers": 1}, {"layers": 1, "normalize": True, "query_prefix": "ba "}])
def test_all_kinds_of_students_can_be_saved(tmp_path: Path, architecture: str, words: dict[str, Any]) -> None:
    """Prevents: a rehearsal that refuses what works."""
    model = student_of(save(tmp_path / "m", architecture), pooling="mean", **words).train()
    rehearse_saving(model, tmp_path)
    assert model.training and sorted(path.name for path in tmp_path.iterdir()) == ["m"]


def test_a_cross_encoder_with_a_new_head_can_be_saved(tmp_path: Path) -> None:
    """Prevents: a head that is drawn again on opening taken for another model, or for one that cannot be saved."""
    import torch

    model = PairScorer(save(tmp_path / "m", "Bert"), seed=3).train()
    state = torch.get_rng_state()
    rehearse_saving(model, tmp_path)
    assert torch.equal(state, torch.get_rng_state())  # whatever is drawn afterwards is what it was


def test_cross_encoders_of_every_kind_can_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: trusted code refused once it is saved; texts longer than the model reads."""
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    for folder in (save_own_code(tmp_path / "own", head=True), save(tmp_path / "gpt2", "GPT2", head=True)):
        rehearse_saving(PairScorer(folder, seed=0, trusted=True), tmp_path)


def untold_cut(backbone: Any, layers: int) -> None:
    """The stack cut, and `num_hidden_layers`, but no list of the configuration."""
    backbone.layers = backbone.layers[:layers]
    backbone.config.num_hidden_layers = layers


def test_a_list_of_all_layers_stops_the_run_before_its_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: the very crash at the end of a training, should another list of a configuration come up."""
    monkeypatch.setattr(dual_encoder, "keep_first_layers", untold_cut)
    model = student_of(save(tmp_path / "m", "ModernBert", num_hidden_layers=4), layers=2)
    with pytest.raises(UserError, match="ModernBertModel cannot be saved"):
        rehearse_saving(model, tmp_path)


@pytest.mark.parametrize(("name", "value"), [("norm_eps", 1.0), ("hidden_activation", "relu")])
def test_what_is_another_model_once_saved_is_not_trained(tmp_path: Path, name: str, value: object) -> None:
    """Prevents: a student that is trained with one activation and served with another."""
    model = student_of(save(tmp_path / "m", "ModernBert"))
    setattr(model.backbone.config, name, value)  # the layers were made before
    with pytest.raises(UserError, match="gives other vectors once it is saved"):
        rehearse_saving(model, tmp_path)


def test_a_full_disk_is_no_fault_of_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a model blamed for a disk without space."""

    def full(self: DualEncoder, folder: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    model = student_of(save(tmp_path / "m", "Bert"))
    monkeypatch.setattr(DualEncoder, "save", full)
    with pytest.raises(RunFailed, match="free some space"):
        rehearse_saving(model, tmp_path)


def test_a_resumed_run_rehearses_nothing(
    tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, make_student: Callable[..., Path]
) -> None:
    """Prevents: the time of a saved model spent at every sitting."""
    from trainer import run as runs

    called: list[Path] = []
    monkeypatch.setattr(runs, "rehearse_saving", lambda model, output: called.append(output))
    words = words_of(experiment_file, train__output=tmp_path / "out", train__steps=2, train__checkpoint_every=1)
    assert train(recipes.load(words), shards_folder=shards) == 0
    (tmp_path / "out" / "result.json").unlink()
    assert open_run(recipes.load(words), shards_folder=shards, processes=Distributed()) is not None
    assert called == [tmp_path / "out"]
