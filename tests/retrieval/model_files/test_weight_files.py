"""Weight files that are no weight files, or not whole: a sentence from their headers, whichever command reads them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.model_files import LFS_POINTER, change_json, checkpoint, write_json

from data.config.settings import Student, Teacher
from data.errors import UserError
from retrieval.model_files.checks import check_training_start
from retrieval.model_files.weight_files import tensor_shapes
from retrieval.models.student import resolve_student
from retrieval.teachers.backends import resolve_teacher

READERS: dict[str, Callable[[Path], object]] = {
    "student": lambda folder: resolve_student(Student(model=str(folder), query_tokens=16, passage_tokens=48)),
    "embed.model": lambda folder: resolve_student(Student(model=str(folder), query_tokens=16, passage_tokens=48), option="embed.model"),
    "teacher": lambda folder: resolve_teacher(Teacher(model=str(folder), max_tokens=64, precision="fp32"), device="cpu"),
    "start": lambda folder: check_training_start(folder, option="teacher.model"),
}


def cut(folder: Path, size: int) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])


def written(content: bytes, name: str = "model.safetensors") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content)


def longer(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes() + b"xx")


def renamed(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").rename(folder / name)


def gone(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.symlink(folder / "blob", folder / "model.safetensors")


def adapted(folder: Path) -> None:
    write_json(folder / "adapter_config.json", {"base_model_name_or_path": "organisation/base"})


def sharded(index: dict[str, Any], *shards: str) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        from safetensors.numpy import save_file

        (folder / "model.safetensors").unlink()
        write_json(folder / "model.safetensors.index.json", index)
        for shard in shards:
            save_file({shard: np.zeros(2, np.float32)}, folder / f"{shard}.safetensors")

    return apply


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "git-lfs pointer": (written(LFS_POINTER), r"model\.safetensors is a git-lfs pointer.*git lfs pull"),
    "pointer as tokenizer": (written(LFS_POINTER, "tokenizer.json"), r"tokenizer\.json is a git-lfs pointer"),
    "pointer as config": (written(LFS_POINTER, "config.json"), r"config\.json is a git-lfs pointer"),
    "cut in the weights": (
        lambda folder: cut(folder, 2000),
        r"model\.safetensors is cut short: it has 2,000 bytes, its header asks for 3,",
    ),
    "cut in the header": (lambda folder: cut(folder, 30), r"model\.safetensors is cut short: it has 30 bytes"),
    "more than whole": (longer, r"model\.safetensors is no whole safetensors file"),
    "a page in its place": (written(b"<!DOCTYPE html><html></html>"), r"no whole safetensors file .*begins with b'<!DOCTYP"),
    "empty": (written(b""), r"model\.safetensors is empty"),
    "a link to nothing": (gone, r"model\.safetensors is a link to a file that is gone"),
    "pickle": (renamed("pytorch_model.bin"), r"pytorch_model\.bin is a pickle.*safe_serialization=True"),
    "nothing": (lambda folder: (folder / "model.safetensors").unlink(), r"holds no weights.*safe_serialization=True"),
    "another name": (renamed("model.fp16.safetensors"), r"holds model\.fp16\.safetensors, but no model\.safetensors"),
    "adapter alone": (
        renamed("adapter_model.safetensors"),
        r"holds a PEFT adapter \(adapter_model\.safetensors\) without its adapter_config",
    ),
    "adapter beside a whole model": (adapted, r"holds a PEFT adapter .* beside a whole model"),
    "missing shard": (sharded({"weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}, "a"), r"lacks 1 of the 2 shards .*: b\.safe"),
    "lost tensor": (
        sharded({"weight_map": {"a": "a.safetensors", "b": "a.safetensors"}}, "a"),
        r"names b \(1 such\), which a\.safetensors",
    ),
    "index of another form": (sharded({"weight_map": ["a"]}, "a"), r"index\.json: expected a weight_map"),
    "quantised": (lambda folder: change_json(folder / "config.json", quantization_config={"quant_method": "awq"}), "awq"),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_told_from_the_files(models: Any, tmp_path: Path, damage: str, reader: str) -> None:
    """Prevents: a traceback out of safetensors once all that stands before a model has been paid for."""
    folder = checkpoint(tmp_path / "model", models.teacher)
    READERS[reader](folder)
    spoil, words = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(UserError, match=words):
        READERS[reader](folder)


def test_a_model_in_shards_is_known_as_a_whole_one(models: Any, tmp_path: Path) -> None:
    """Prevents: a large checkpoint taken for a damaged one; the shards of another model that lie beside it, taken for its own."""
    from transformers import BertModel

    shutil.copytree(models.student, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    BertModel.from_pretrained(models.student, add_pooling_layer=False).save_pretrained(tmp_path / "model", max_shard_size="20KB")
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    whole, parts = (tensor_shapes(folder, option="student.model") for folder in (models.student, tmp_path / "model"))
    assert parts == whole and parts["embeddings.position_embeddings.weight"] == (128, 32)
    shutil.copy(models.teacher / "model.safetensors", tmp_path / "model" / "other.safetensors")
    assert tensor_shapes(tmp_path / "model", option="student.model") == whole


def test_weights_of_an_adapter_that_nothing_applies_are_passed_over(models: Any, tmp_path: Path) -> None:
    """Prevents: a merged model refused for the adapter file that was left beside it without its configuration."""
    folder = checkpoint(tmp_path / "model", models.teacher)
    shutil.copy(folder / "model.safetensors", folder / "adapter_model.safetensors")
    READERS["student"](folder)
