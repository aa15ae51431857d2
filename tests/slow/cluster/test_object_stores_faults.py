"""Whole commands on `rclone serve s3`, on one that fails, and on stores that are not there: bytes, exit codes, and how long they take."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.children import environment, start
from support.faulty_proxy import faulty_proxy
from support.rclone import rclone_server
from support.s3 import s3_variables

from data.errors import EXIT_BAD_INPUT, EXIT_COMPLETE, EXIT_INTERRUPTED

SECONDS = 150.0  # in which a command must say that the store does not answer, on a busy machine, with its start
QUICK_TIMEOUT = '{"config_kwargs": {"read_timeout": 3}}'  # as a user may set it, so that a stall costs less


def prep(config: Path, *, endpoint: str, cache: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command of its own on the object store at this endpoint."""
    own = environment(**{**s3_variables(endpoint, cache=cache), **variables})
    command = [sys.executable, "-m", "pipeline", "run", f"config={config}", "stage=ingest"]
    return subprocess.run(command, env=own, capture_output=True, text=True, timeout=600)


@pytest.fixture
def rclone_folder(tmp_path: Path, collection: Path) -> Iterator[tuple[str, Path]]:
    """A server of its own, and the folder of its one bucket `b`, in which the collection lies."""
    shutil.copytree(collection, tmp_path / "buckets" / "b" / "beir")
    with rclone_server(tmp_path / "buckets") as endpoint:
        yield endpoint, tmp_path / "buckets" / "b"


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_a_collection_on_rclone(
    rclone_folder: tuple[str, Path], tmp_path: Path, tiny_experiment: Any, finished: Any, seed: int | None, parquet_files: Any
) -> None:
    """Prevents: code that works on the server of the unit tests alone; other bytes where 3 of 10 requests fail."""
    endpoint, _ = rclone_folder
    config = tiny_experiment(tmp_path / "far", **{"ingest.path": "s3://b/beir"})
    with faulty_proxy(endpoint, seed=seed or 0, share=0.0 if seed is None else 0.3) as proxy:
        done = prep(config, endpoint=proxy.endpoint, cache=tmp_path / "cache", FSSPEC_S3=QUICK_TIMEOUT)
    assert done.returncode == EXIT_COMPLETE, done.stderr
    assert bool(proxy.faults) == (seed is not None)
    far = parquet_files(tmp_path / "far" / "store")
    assert far and far == {name: content for name, content in parquet_files(finished.store).items() if str(name).startswith("ingest")}


def test_one_of_many_processes_makes_an_object_on_rclone(
    rclone_folder: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: two holders of a claim on a server that ignores the condition of a put."""
    endpoint, bucket = rclone_folder
    for name, value in s3_variables(endpoint, cache=tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    with faulty_proxy(endpoint, share=0.1, kinds=["503", "reset", "lost"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        begin = time.time() + 8
        children = [start("remote_copies", "make", "s3://b/claims", 6, begin, number, stdout=subprocess.PIPE) for number in range(4)]
        said = [child.communicate(timeout=600)[0].split() for child in children]
    assert [child.returncode for child in children] == [0] * 4
    for turn in range(6):
        made = [number for number, names in enumerate(said) if str(turn) in names]
        assert [str(number).encode() for number in made] == [(bucket / "claims" / str(turn)).read_bytes()]
    left = {path.relative_to(bucket / "claims").as_posix() for path in (bucket / "claims").rglob("*") if path.is_file()}
    assert left == {str(turn) for turn in range(6)}


@pytest.mark.parametrize("kind", ["silent", "down", "failing", "refused", "no bucket"])
def test_what_a_command_says_of_a_store(rclone_folder: tuple[str, Path], tmp_path: Path, tiny_experiment: Any, kind: str) -> None:
    """Prevents: a batch queue that never starts a job again after a bad hour of the store, or for ever after a wrong key."""
    endpoint, _ = rclone_folder
    config = tiny_experiment(tmp_path / "far", **{"ingest.path": "s3://none/beir" if kind == "no bucket" else "s3://b/beir"})
    variables = {"AWS_SECRET_ACCESS_KEY": "another"} if kind == "refused" else {}
    with socket.socket() as other, faulty_proxy(endpoint, share=1, kinds=["503"]) as failing:
        other.bind(("127.0.0.1", 0))
        if kind == "silent":
            other.listen()
        asked = {"failing": failing.endpoint, "refused": endpoint, "no bucket": endpoint}
        endpoint = asked.get(kind, f"http://127.0.0.1:{other.getsockname()[1]}")
        begun = time.monotonic()
        done = prep(config, endpoint=endpoint, cache=tmp_path / "cache", **variables)
        took = time.monotonic() - begun
    expected = EXIT_BAD_INPUT if kind in ("refused", "no bucket") else EXIT_INTERRUPTED
    assert (done.returncode, "Traceback" in done.stderr) == (expected, False), done.stderr
    assert took < SECONDS, f"{kind}: {took:.0f} s"
    print(f"{kind}: {took:.0f} s, {done.stderr.strip().splitlines()[-1]}")
