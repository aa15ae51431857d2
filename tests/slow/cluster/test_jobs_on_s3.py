"""Workers of Ray on a store that lies on an object store: the pieces that one made are what another reads."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.rclone import rclone_server
from support.s3 import s3_variables
from support.stores import distinct_pairs

from data.errors import EXIT_COMPLETE
from data.logits.segment import key_halves
from data.tables.shards import read_shard

PREP = Path(sys.executable).parent / "prep"
SIZES = {"ingest.query_shards": 4, "teacher.segment_pairs": 64}


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    """Of a server whose bucket `bucket` is the folder tmp_path/buckets/bucket."""
    (tmp_path / "buckets" / "bucket").mkdir(parents=True)
    with rclone_server(tmp_path / "buckets") as address:
        yield address


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Any, prep_run: Any) -> Path:
    """The store of one process on this machine."""
    folder = tmp_path_factory.mktemp("near")
    prep_run(tiny_experiment(folder, **SIZES))
    return folder / "store"


def begin(endpoint: str, cache: Path, config: Path, *words: str) -> subprocess.Popen[str]:
    """A run on the machine that has this cache."""
    environment = {**os.environ, **s3_variables(endpoint, cache=cache)}
    words = ("run", f"config={config}", *words)
    return subprocess.Popen([PREP, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def said(job: subprocess.Popen[str]) -> str:
    """All that it said, once it has ended well."""
    try:
        output, _ = job.communicate(timeout=600)
    finally:
        job.kill()
    assert job.returncode == EXIT_COMPLETE, output
    return output


def scored_pairs(store: Path) -> int:
    """Rows of the logit store, which are distinct pairs."""
    keys = [
        tuple(key) for path in (store / "teacher_logits").rglob("*.parquet") for key in key_halves(read_shard(path).column("key")).tolist()
    ]
    assert len(keys) == len(set(keys))
    return len(keys)


def left_behind(store: Path) -> list[str]:
    """What nobody needs any more once all jobs have ended."""
    names = (path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file())
    return [name for name in names if name.endswith(".tmp") or name.startswith(("claims/", ".handshake/")) or "/pieces/" in name]


def test_workers_of_ray(endpoint: str, near: Path, tmp_path: Path, tiny_experiment: Any, parquet_files: Any) -> None:
    """Prevents: workers that do not find the store, or a piece that another one made; and other bytes than of one process."""
    config = tiny_experiment(tmp_path / "far", store="s3://bucket/store", **SIZES)
    said(begin(endpoint, tmp_path / "cache", config, "runner=ray", "runner.workers=2"))
    store = tmp_path / "buckets" / "bucket" / "store"
    assert parquet_files(store) == parquet_files(near)
    lines = [json.loads(path.read_bytes()) for path in store.glob("teacher_scores/*/journal/*.json")]
    pieces = [line["piece"] for line in lines if "piece" in line]
    assert any(name.startswith("keys-") for name in pieces) and any(name.startswith("windows-") for name in pieces)
    assert scored_pairs(store) == distinct_pairs(near)
    assert left_behind(store) == []
