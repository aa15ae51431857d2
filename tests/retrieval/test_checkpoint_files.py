"""Digests of checkpoints: equal for what computes the same, different for what does not, of what the files hold now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from data.digests import DigestCache
from data.errors import UserError
from retrieval.checkpoint_files import resolve_folder, tokenizer_digest, weights_digest


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
