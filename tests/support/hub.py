"""A repository of the hub without a network: what is asked for is here, the rest is not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub.utils import filter_repo_objects

from retrieval.model_files import files


class Hub:
    """A folder as a repository. Its files come as links to blobs of other names, as in the cache of the hub's client."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache = folder, cache
        self.answers = True

    @property
    def snapshot(self) -> Path:
        """What the hub's client gives."""
        return self.cache / "snapshots" / "main"

    @property
    def fetched(self) -> set[str]:
        """What is here, without JSON and text."""
        names = (path.relative_to(self.snapshot).as_posix() for path in self.snapshot.rglob("*") if path.is_symlink())
        return {name for name in names if not name.endswith((".json", ".txt"))}

    def download(self, model: str, *, allow_patterns: list[str], ignore_patterns: list[str] | None = None, dry_run: bool = False,
                 revision: str | None = None) -> Any:  # fmt: skip
        """In place of `huggingface_hub.snapshot_download`."""
        names = [path.relative_to(self.folder).as_posix() for path in sorted(self.folder.rglob("*")) if path.is_file()]
        wanted = list(filter_repo_objects(names, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns))
        if dry_run:
            if not self.answers:
                raise ConnectionError("offline")
            return [SimpleNamespace(filename=name) for name in wanted]
        for name in wanted:
            target, blob = self.snapshot / name, self.cache / "blobs" / name.replace("/", "+")
            if not target.is_symlink() and self.answers:
                for path in (target, blob):
                    path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(self.folder / name, blob)
                target.symlink_to(os.path.relpath(blob, target.parent))
        return str(self.snapshot)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Hub]:
    """`hub(folder)` puts a folder on the hub, as whatever id."""

    def put(folder: Path) -> Hub:
        found = Hub(folder, tmp_path / "cache")
        monkeypatch.setattr("huggingface_hub.snapshot_download", found.download)
        files._from_hub.cache_clear()
        return found

    return put
