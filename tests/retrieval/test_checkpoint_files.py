"""Digests of a checkpoint's files: of what they hold now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from retrieval.checkpoint_files import tokenizer_digest


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
