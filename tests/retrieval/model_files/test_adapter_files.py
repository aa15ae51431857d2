"""What an adapter's folder says of the model that comes out of it and its base: keys, checks, refusals. No model is opened."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.adapters import change_adapter, save_adapter
from support.checkpoints import change_json, change_weights, save, save_own_code

from data.config.settings import Student, Teacher
from data.digests import DigestCache
from data.errors import UserError
from retrieval.model_files import files
from retrieval.model_files.adapter_files import base_folder
from retrieval.model_files.files import read_json
from retrieval.model_files.weight_files import tensor_shapes
from retrieval.models.student import resolve_student
from retrieval.teachers.backends import resolve_teacher

OWN = {"query_tokens": 40, "passage_tokens": 90}


def student_key(folder: Path, **words: Any) -> dict[str, Any]:
    return resolve_student(Student(model=str(folder), **{**OWN, **words})).key(DigestCache(Path("/dev/null")))


def teacher_key(folder: Path) -> dict[str, Any]:
    return resolve_teacher(Teacher(model=str(folder), max_tokens=90), device="cpu").key(DigestCache(Path("/dev/null")))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return save(tmp_path / "base", "Bert")


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return save_adapter(tmp_path / "adapter", base)


def changed_weights(folder: Path) -> None:
    change_weights(folder, lambda tensors: {name: tensor + 1 for name, tensor in tensors.items()})


def changed_adapter_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "adapter_model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path)


CHANGES: dict[str, Callable[[Path, Path], Any]] = {
    "weights of the base": lambda base, adapter: changed_weights(base),
    "settings of the base": lambda base, adapter: change_json(base / "config.json", layer_norm_eps=1e-3),
    "tokenizer of the base": lambda base, adapter: change_json(base / "tokenizer_config.json", do_lower_case=True),
    "weights of the adapter": lambda base, adapter: changed_adapter_weights(adapter),
    "scale of the adapter": lambda base, adapter: change_adapter(adapter, lora_alpha=99),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changes_a_number_changes_the_key(base: Path, adapter: Path, change: str) -> None:
    """Prevents: a base that is trained on under its path, and vectors of the one before under the same key."""
    before = student_key(adapter)
    CHANGES[change](base, adapter)
    assert student_key(adapter) != before


def test_what_changes_no_number_changes_no_key(base: Path, adapter: Path, tmp_path: Path) -> None:
    """Prevents: a store that is computed again since a model was moved, or saved again by another version of peft."""
    before = student_key(adapter)
    base.rename(tmp_path / "elsewhere")
    config = json.loads((adapter / "adapter_config.json").read_text())
    change_adapter(
        adapter, base_model_name_or_path=str(tmp_path / "elsewhere"), peft_version="0.1", lora_dropout=0.4, inference_mode=False,
        target_modules=config["target_modules"][::-1], a_later_setting=False,
    )  # fmt: skip
    assert student_key(adapter) == before
    shutil.copy(tmp_path / "elsewhere" / "tokenizer.json", adapter)
    shutil.copy(tmp_path / "elsewhere" / "tokenizer_config.json", adapter)
    assert student_key(adapter) == before


def test_the_base_is_found_from_the_adapter_s_folder(tmp_path: Path, adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a pair of folders that cannot be moved together; a revision of the base that is not asked for."""
    assert base_folder(change_adapter(adapter, base_model_name_or_path="../base")) == base
    asked: list[Any] = []
    monkeypatch.setattr(files, "_from_hub", lambda *words: asked.append(words) or base)
    assert base_folder(change_adapter(adapter, base_model_name_or_path="organisation/base", revision="v2")) == base
    assert [words[:2] for words in asked] == [("organisation/base", "v2")]


def test_the_head_is_the_adapter_s(tmp_path: Path) -> None:
    """Prevents: RankLLaMA taken for a language model, or its base's two default labels for its own."""
    base = save(tmp_path / "base", "Llama")
    change_json(base / "config.json", architectures=["LlamaForCausalLM"])
    adapter = save_adapter(tmp_path / "adapter", base, head=True)
    config = read_json(adapter / "config.json")
    assert (config["architectures"], config["num_labels"], config["model_type"]) == (["LlamaForSequenceClassification"], 1, "llama")
    assert tensor_shapes(adapter, option="teacher.model")["score.weight"] == (1, 32)
    assert read_json(base / "config.json")["architectures"] == ["LlamaForCausalLM"]
    before = teacher_key(adapter)
    changed_weights(base)
    assert teacher_key(adapter)["weights"] != before["weights"] and teacher_key(adapter) | {"weights": 0} == before | {"weights": 0}


@pytest.mark.medium
def test_planning_with_an_adapter_is_cheap(adapter: Path) -> None:
    """Prevents: `prep plan` that imports torch to find out what an adapter is."""
    code = "import sys; from data.config.settings import Student; from retrieval.models.student import resolve_student; "
    code += f"resolve_student(Student(model={str(adapter)!r}, query_tokens=40, passage_tokens=90)); "
    code += "print({'torch', 'peft', 'transformers'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[3])
    assert (done.stdout, done.stderr) == ("set()\n", "")


def gone(adapter: Path, base: Path) -> None:
    shutil.rmtree(base)


def emptied(adapter: Path, base: Path) -> None:
    (base / "model.safetensors").unlink()


def nested(adapter: Path, base: Path) -> None:
    change_adapter(shutil.copytree(adapter, adapter.parent / "other"), base_model_name_or_path=str(adapter))
    change_adapter(adapter, base_model_name_or_path=str(adapter.parent / "other"))


def pickled(adapter: Path, base: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


REFUSALS: dict[str, tuple[Callable[[Path, Path], Any], str]] = {
    "no base": (gone, r"adapter_config\.json: base_model_name_or_path=/.*/base: no such folder"),
    "no name": (lambda adapter, base: change_adapter(adapter, base_model_name_or_path=None), r"names no base_model_name_or_path: write"),
    "no such hub id": (lambda adapter, base: change_adapter(adapter, base_model_name_or_path="a/b"), r"name_or_path=a/b: neither a folder"),
    "a base without weights": (emptied, r"student\.model: .*/base holds no weights"),
    "an adapter of an adapter": (nested, r"its base .*/other is an adapter itself; merge it"),
    "a pickle": (pickled, r"has no adapter_model\.safetensors; adapter_model\.bin is a pickle, which is not opened: load the adapter once"),
    "prompt tuning": (
        lambda adapter, base: change_adapter(adapter, peft_type="PROMPT_TUNING"),
        r"is of the kind PROMPT_TUNING; LORA, LOHA, .* are supported; merge it",
    ),
    "a random start": (lambda adapter, base: change_adapter(adapter, init_lora_weights="pissa_niter_4"), r"pissa_niter_4, which changed"),
    "layers twice": (lambda adapter, base: change_adapter(adapter, layer_replication=[[0, 2]]), r"says layer_replication=\[\[0, 2\]\]"),
    "another architecture": (
        lambda adapter, base: (adapter / "config.json").write_text('{"model_type": "roberta"}'),
        r"says model_type=roberta, the adapter's base is a bert",
    ),
    "a quantised base": (
        lambda adapter, base: change_json(base / "config.json", quantization_config={"quant_method": "awq"}), r"is quantised .*awq",
    ),
    "a tokenizer that is too large": (
        lambda adapter, base: [change_json(base / "tokenizer.json", added_tokens=[{"id": 900, "content": "x", "special": False}])],
        r"ids up to 900, the model has embeddings for 480",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", REFUSALS)
def test_refusals_before_any_work(base: Path, adapter: Path, fault: str) -> None:
    """Prevents: a fault of an adapter that is found once all that stands before the model was paid for."""
    spoil, message = REFUSALS[fault]
    spoil(adapter, base)
    with pytest.raises(UserError, match=message):
        resolve_student(Student(model=str(adapter), **OWN))


def test_without_peft(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an ImportError of a worker in place of the name of what to install."""
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "peft" else found(name, *more))
    with pytest.raises(UserError, match=r"needs peft: pip install 'adam-distillation\[lora\]'"):
        resolve_student(Student(model=str(adapter), **OWN))


def test_code_of_the_base_is_not_run(tmp_path: Path, adapter: Path) -> None:
    """Prevents: code that runs and is in no key."""
    change_adapter(adapter, base_model_name_or_path=str(save_own_code(tmp_path / "own")))
    for trusted, message in ((True, "adapter of a model with Python code of its own"), (False, "trust_remote_code=true")):
        with pytest.raises(UserError, match=message):
            resolve_student(Student(model=str(adapter), trust_remote_code=trusted, **OWN))
