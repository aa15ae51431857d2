"""`retrieve evaluate collections=` that is killed, and started again."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.children import run


def test_a_killed_evaluation_goes_on(tmp_path: Path, collection: Path, models: Any, contents: Callable[[Path], dict[str, bytes]]) -> None:
    """Prevents: vectors of hours made again, half a run taken for a whole one, figures of a part of the collections."""
    words = ["evaluate", f"model={models.student}", f"collections={collection}", "precision=fp32", "threads=1"]
    assert run("killed_encode", *words, f"out={tmp_path / 'killed'}").returncode == -signal.SIGKILL
    kept = {path: path.stat().st_ino for path in (tmp_path / "killed").rglob("*.parquet")}
    assert len(kept) == 3 and not (tmp_path / "killed" / "results.json").exists()  # texts of both, vectors of the queries
    assert run("killed_encode", *words, f"out={tmp_path / 'killed'}").returncode == 0  # one shard is left, so it does not die again
    assert {path: path.stat().st_ino for path in kept} == kept
    assert run("loaded", "retrieve", *words, f"out={tmp_path / 'whole'}").returncode == 0
    assert not list(tmp_path.rglob("*.tmp"))
    left_out = ("digests.json", "device.json")
    found = []
    for name in ("killed", "whole"):
        files = contents(tmp_path / name)
        found.append({file: content for file, content in files.items() if not file.endswith(left_out)})
    assert found[0] == found[1] and "results.json" in found[0]
