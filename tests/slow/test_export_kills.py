"""`prep export` that is killed in the middle."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import Finished
from support import children


@pytest.mark.parametrize("format", ["lists", "sentence-transformers", "beir"])
def test_the_same_command_again_writes_the_same(
    finished: Finished,
    tmp_path: Path,
    command: Callable[..., subprocess.CompletedProcess[str]],
    contents: Callable[..., dict[str, bytes]],
    format: str,
) -> None:
    """Prevents: half an export under its name after a kill, rubbish that stays, and a second try that is refused."""
    words = [f"config={finished.config}", f"format={format}"]
    died = children.run("killed_export", *words, f"out={tmp_path / 'out'}")
    assert died.returncode == -9, died.stderr
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1 and left[0].startswith(".out."), "it died in the middle"
    for name in ("out", "unbroken"):
        done = command("prep", "export", *words, f"out={tmp_path / name}")
        assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "unbroken"]
    assert contents(tmp_path / "out") == contents(tmp_path / "unbroken")
