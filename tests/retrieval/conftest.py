"""Models that only the tests of this room need."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import save


@pytest.fixture(scope="session")
def cased(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student's weights with a tokenizer that keeps case: capitals are unknown tokens to it, unless they are lower-cased."""
    folder = tmp_path_factory.mktemp("cased") / "model"
    shutil.copytree(models.student, folder)
    tables = json.loads((folder / "tokenizer.json").read_text())
    tables["normalizer"]["lowercase"] = False
    (folder / "tokenizer.json").write_text(json.dumps(tables))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "do_lower_case": False}))
    return folder


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], Path]:
    """`built(name, head)`: each checkpoint once; to be copied where it is changed."""
    folder, made = tmp_path_factory.mktemp("checkpoints"), dict[tuple[str, bool], Path]()

    def get(name: str, head: bool) -> Path:
        if (name, head) not in made:
            made[name, head] = save(folder / f"{name}-{head}", name, head=head)
        return made[name, head]

    return get
