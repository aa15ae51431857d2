"""What the models' files can tell is told before the first stage works, whichever stage would have found it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.model_files import change_json, without_marks

from data.config.settings import load
from data.errors import UserError
from pipeline.plan import Planner, selected_tables
from retrieval.teachers.backends import resolve_teacher
from trainer.run import check_machine

Experiments = Callable[..., Path]


def changed(source: Path, target: Path, **values: Any) -> Path:
    """A copy of a model whose config.json has other values."""
    shutil.copytree(source, target)
    change_json(target / "config.json", **values)
    return target


def unheard_of(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    (target / "tokenizer.json").write_text((target / "tokenizer.json").read_text().replace('"WordPiece"', '"Unheard"'))
    return target


def without_tensor(source: Path, target: Path, ending: str) -> Path:
    from safetensors.numpy import load_file, save_file

    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(ending)}
    assert len(kept) == len(tensors) - 1
    save_file(kept, target / "model.safetensors", metadata={"format": "pt"})
    return target


def settings_of(case: str, models: Any, folder: Path) -> dict[str, Any]:
    if case == "labels":
        return {"teacher.model": changed(models.teacher, folder / "model", id2label={"0": "no", "1": "yes"})}
    if case == "student's marks":
        return {"student.model": without_marks(models.student, folder / "model"), "dark_examples.separator": "  "}
    if case == "teacher's marks":
        return {"teacher.model": without_marks(models.teacher, folder / "model"), "dark_examples.mask_text": " "}
    if case == "tokenizer":
        return {"student.model": unheard_of(models.student, folder / "model")}
    if case == "teacher's weights":
        return {"teacher.model": without_tensor(models.teacher, folder / "model", "layer.1.output.dense.weight")}
    if case == "student's weights":
        return {
            "student.model": without_tensor(models.student, folder / "model", "layer.1.output.dense.weight"),
            "embed.model": models.student,
        }
    if case == "miner":
        return {"embed.model": changed(models.student, folder / "model", quantization_config={"quant_method": "gptq"})}
    (folder / "run.txt").write_text("query_id,doc_id,score\n")
    return {"hard_negatives.source": "run", "hard_negatives.run_file": folder / "run.txt"}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("labels", "has 2 outputs"),
        ("student's marks", r"model: the tokenizer in .* makes no token of dark_examples\.separator='  '"),
        ("teacher's marks", r"teacher\.model: the tokenizer in .* makes no token of dark_examples\.mask_text=' '"),
        ("tokenizer", "no tokenizer can be loaded"),
        ("miner", r"embed\.model: .* is quantised .*gptq"),
        ("teacher's weights", r"teacher\.model: .*lacks 1 of its weights .*layer\.1\.output\.dense\.weight"),
        ("student's weights", r"student\.model: .*lacks 1 of its weights"),
        ("run", r"run\.txt:1"),
    ],
)
def test_nothing_is_built_where_the_files_tell(
    models: Any, tmp_path: Path, tiny_experiment: Experiments, prep_run: Callable[..., list[str]], case: str, words: str
) -> None:
    """Prevents: a fault of the last stage's model told once all that stands before it has been paid for."""
    config = tiny_experiment(tmp_path / "run", **settings_of(case, models, tmp_path))
    with pytest.raises(UserError, match=words):
        prep_run(config)
    assert not list((tmp_path / "run" / "store").rglob("*.parquet"))


def test_a_plan_of_checked_models_opens_none(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: `prep plan` that takes seconds, because a check loads what it looks at."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    experiment = load({"config": str(finished.config)})
    assert all(plan.complete for plan in Planner(experiment).plan_all(selected_tables(experiment, "all")))


def test_a_decoder_without_a_template_is_warned_of(models: Any, tmp_path: Path, tiny_experiment: Experiments) -> None:
    """Prevents: a reranker whose template stands in its model card alone, scored without it and without a word."""
    from safetensors.numpy import load_file, save_file

    folder = shutil.copytree(models.teacher, tmp_path / "model")
    experiment = load({"config": str(tiny_experiment(tmp_path / "run", **{"teacher.model": folder}))})
    assert not resolve_teacher(experiment.teacher, device="cpu").notes()
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "score.weight": tensors["classifier.weight"]}, folder / "model.safetensors")
    assert "is a decoder with a scoring head and names no template" in "".join(resolve_teacher(experiment.teacher, device="cpu").notes())


def test_a_precision_that_is_emulated_is_told_before_training_opens_anything(
    tmp_path: Path, tiny_experiment: Experiments, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: all shards verified before the settings are."""
    monkeypatch.setattr("retrieval.compute.precision.cpu_computes_bf16", lambda: False)
    with pytest.raises(UserError, match="precision=bf16: this processor"):
        check_machine(load({"config": str(tiny_experiment(tmp_path, **{"train.precision": "bf16"}))}))
