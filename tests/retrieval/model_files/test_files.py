"""Digests of checkpoints: equal for what computes the same, different for what does not, of what the files hold now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data.digests import DigestCache
from data.errors import UserError
from retrieval.model_files.files import copy_tokenizer, resolve_folder, tokenizer_digest, weights_digest


@pytest.mark.parametrize(("name", "value"), [("do_lower_case", False), ("mask_token", "[UNK]"), ("tokenizer_class", "Other")])
def test_settings_that_change_tokens_change_the_digest(models: Any, tmp_path: Path, name: str, value: object) -> None:
    """Prevents: shards of one tokenizer taken for those of another, since only tokenizer.json was looked at."""
    folder = tmp_path / "model"
    shutil.copytree(models.student, folder)
    before = tokenizer_digest(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, name: value}))
    assert tokenizer_digest(folder) != before


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_changed_has_another_digest_in_the_same_process(models: Any, tmp_path: Path, name: str) -> None:
    """Prevents: a digest that is remembered for a folder whose files are others by now; one that depends on where the folder lies."""
    folder = shutil.copytree(models.student, tmp_path / "model")
    before = tokenizer_digest(folder)
    assert before == tokenizer_digest(models.student)
    content = json.loads((folder / name).read_text())
    changed = {**content, "normalizer": None} if name == "tokenizer.json" else {**content, "mask_token": "[OTHER]"}
    (folder / name).write_text(json.dumps(changed))
    after = tokenizer_digest(folder)
    (folder / name).write_text(json.dumps(content))
    assert before == tokenizer_digest(folder) != after


def test_padding_and_truncation_change_no_token(models: Any, tmp_path: Path) -> None:
    """Prevents: a trained student, whose files were saved again, refused on the shards it was trained on."""
    folder = tmp_path / "model"
    shutil.copytree(models.student, folder)
    before = tokenizer_digest(folder)
    tables = json.loads((folder / "tokenizer.json").read_text())
    tables["truncation"] = {"max_length": 7, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    (folder / "tokenizer.json").write_text(json.dumps(tables))
    assert tokenizer_digest(folder) == before


def test_pickled_weights_are_refused_with_the_remedy(models: Any, tmp_path: Path) -> None:
    """Prevents: a downloaded checkpoint that runs code when it is opened."""
    folder = tmp_path / "model"
    shutil.copytree(models.student, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="safe_serialization"):
        weights_digest(folder, DigestCache(tmp_path / "digests.json"), option="student.model")


def test_a_missing_folder_names_its_neighbours(models: Any) -> None:
    """Prevents: a misspelt path looked up on the hub."""
    with pytest.raises(UserError, match=r"student\.model=.*studnt: no such folder .*student"):
        resolve_folder(str(models.student.parent / "studnt"), option="student.model")


def test_the_output_of_a_training_is_no_model(models: Any, tmp_path: Path) -> None:
    """Prevents: words about lengths or weights where the folder above the model was given."""
    for name in ("best", "student"):
        shutil.copytree(models.student, tmp_path / name)
    with pytest.raises(UserError, match=rf"is the output of a training; give the model in it: {tmp_path}/student or {tmp_path}/best"):
        resolve_folder(str(tmp_path), option="model")


@pytest.mark.parametrize("tables", [True, False])
def test_a_copied_tokenizer_has_the_digest_of_its_source(models: Any, tmp_path: Path, tables: bool) -> None:
    """Prevents: a trained student refused on the shards that it was trained on, for a file of its tokenizer left behind."""
    source = tmp_path / "source"
    shutil.copytree(models.student, source)
    if not tables:
        (source / "tokenizer.json").unlink()
        (source / "vocab.txt").write_text("[PAD]\n[UNK]\nba\n")
    extra = ["spm.model", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja", "added_tokens.json"]
    for name in extra:
        (source / name).write_text("{}")
    (tmp_path / "target").mkdir()
    copy_tokenizer(source, tmp_path / "target")
    assert tokenizer_digest(tmp_path / "target") == tokenizer_digest(source)
    assert all((tmp_path / "target" / name).is_file() for name in extra)


def test_a_tokenizer_in_one_sentencepiece_file_is_told_what_to_make_of_it(tmp_path: Path) -> None:
    """Prevents: "no tokenizer" said of a folder that plainly has one."""
    (tmp_path / "spm.model").write_bytes(b"x")
    with pytest.raises(UserError, match=r"holds no tokenizer .*of its spm.model, AutoTokenizer"):
        tokenizer_digest(tmp_path)
