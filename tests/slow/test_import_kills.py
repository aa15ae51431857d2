"""Imports that are killed, and started again by the same command."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.children import environment

from data.errors import EXIT_INTERRUPTED
from data.logits.store import LogitStore, namespaces

LISTS = 3000
NEGATIVES = 9


def start(lists: Path, folder: Path) -> subprocess.Popen[str]:
    words = [f"out={folder / 'out'}", f"store={folder / 'store'}", "teacher=theirs", "format=sentence-transformers"]
    command = [sys.executable, "-m", "pipeline", "import", str(lists), *words]
    return subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def files(folder: Path) -> dict[str, bytes]:
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in found.items() if Path(name).suffix in (".jsonl", ".tsv", ".trec")}


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_killed_imports_are_repeated(tmp_path: Path, how: signal.Signals) -> None:
    """Prevents: half an import that passes for a whole one, leftovers that fill the disk, and logits that are stored twice."""
    lists = tmp_path / "lists.jsonl"
    with lists.open("w") as file:
        for number in range(LISTS):
            negatives = {f"negative_{place}": f"passage {(7 * number + place) % 5000} of them" for place in range(1, NEGATIVES + 1)}
            scores = [round(0.01 * (number % 100) - place, 3) for place in range(NEGATIVES + 1)]
            file.write(json.dumps({"query": f"query {number}", "positive": f"right {number}", **negatives, "score": scores}) + "\n")
    whole = tmp_path / "whole"
    whole.mkdir()
    process = start(lists, whole)
    began = time.monotonic()
    output, _ = process.communicate(timeout=600)
    seconds = time.monotonic() - began
    assert process.returncode == 0, output
    folder = tmp_path / "killed"
    folder.mkdir()
    killed = 0
    for share in (0.3, 0.5, 0.7, 0.9, 0.95):
        process = start(lists, folder)
        time.sleep(share * seconds)
        process.send_signal(how)
        process.communicate(timeout=180)
        killed += process.returncode in (-how, EXIT_INTERRUPTED)
        assert not (folder / "out").exists() or files(folder / "out") == files(whole / "out")
    assert killed
    process = start(lists, folder)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert files(folder / "out") == files(whole / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["out", "store"], "nothing is left of the killed ones"
    (namespace,) = namespaces(whole / "store")
    assert LogitStore(folder / "store", namespace).size()[0] == LogitStore(whole / "store", namespace).size()[0] == LISTS * (NEGATIVES + 1)
