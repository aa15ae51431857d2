"""Imports of logits that are killed outright, again and again, and a disk that is full."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from data.digests import json_digest
from data.errors import EXIT_FAILED
from data.logits.segment import Scores
from data.logits.store import LogitStore

KEY = {"kind": "toy"}
PAIRS = 600_000
PREP = [sys.executable, "-m", "pipeline", "cache"]


def exported(folder: Path, count: int) -> Path:
    """A file of random pairs."""
    chance = np.random.default_rng(0)
    store = LogitStore(folder / "a", json_digest(KEY))
    store.describe(key=KEY, name="toy")
    keys = chance.integers(0, 2**64, (count, 2), dtype=np.uint64)
    store.append(keys, Scores(chance.normal(size=count).astype(np.float32), np.ones(count, np.int32), np.zeros(count, bool)))
    subprocess.run([*PREP, "export", f"store={folder / 'a'}", f"out={folder / 'x.parquet'}"], check=True)
    return folder / "x.parquet"


def logits(store: Path) -> dict[bytes, float]:
    rows = [pq.read_table(path) for path in store.glob("teacher_logits/*/*.parquet")]
    return {key: logit for table in rows for key, logit in zip(table["key"].to_pylist(), table["logit"].to_pylist(), strict=True)}


def test_kills(tmp_path: Path) -> None:
    """Prevents: an import that needs a person after `kill -9`, leaves its rows in the store, or stores a pair twice."""
    path, kills = exported(tmp_path, PAIRS), 0
    chance = np.random.default_rng(1)
    command = [*PREP, "import", str(path), f"store={tmp_path / 'b'}"]
    start = time.monotonic()
    subprocess.run([*PREP, "import", str(path), f"store={tmp_path / 'whole'}"], check=True)
    whole = time.monotonic() - start
    for _ in range(5):
        process = subprocess.Popen(command)
        try:
            process.wait(timeout=whole * float(chance.uniform(0.2, 1)))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
    subprocess.run(command, check=True)
    assert kills, "nothing was killed"
    found = logits(tmp_path / "b")
    rows = sum(pq.read_metadata(one).num_rows for one in (tmp_path / "b").glob("teacher_logits/*/*.parquet"))
    assert len(found) == rows == PAIRS and found == logits(tmp_path / "a")
    assert [one.name for one in (tmp_path / "b" / "teacher_logits").iterdir()] == [json_digest(KEY)]
    assert not list((tmp_path / "b").rglob("*.tmp"))


def test_a_full_disk(tmp_path: Path, full_disk: Path) -> None:
    """Prevents: half an import, or a traceback, where the store's disk has no space for it."""
    path = exported(tmp_path, 60_000)
    done = subprocess.run([*PREP, "import", str(path), f"store={full_disk / 'b'}"], capture_output=True, text=True)
    assert done.returncode == EXIT_FAILED and "space" in done.stderr.lower() and "Traceback" not in done.stderr, done.stderr
    with contextlib.suppress(FileNotFoundError):
        assert not list((full_disk / "b").rglob("*.parquet"))
