"""What a worker says of itself, and which are refused, without Ray."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from data.tables.manifest import ShardRecord
from pipeline.executors.ray import handshake
from pipeline.executors.ray.handshake import FOLDER, Challenge, Handshake, Introduction, introduce, sources_digest, why_refused
from pipeline.executors.tasks import ShardTask, TaskResult

ROOT = Path(__file__).parents[3]
DRIVER = Introduction(
    "head", python="3.11", sources="a" * 32, libraries={"torch": "2.9.1+cpu", "numpy": "2.3.0"}, formats=("fp32", "bf16"),
)  # fmt: skip
WORKER = replace(DRIVER, host="c1", node="n1", libraries={"torch": "2.9.1+cu128", "numpy": "2.3.0", "faiss": "1.13"}, answer="x")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "_SEEN_SECONDS", 0.0)


@pytest.mark.parametrize(
    ("worker", "reason"),
    [
        (WORKER, None),
        (replace(WORKER, formats=("fp32", "fp16", "bf16")), None),
        (replace(WORKER, python="3.12"), "it runs Python 3.12, the driver 3.11"),
        (replace(WORKER, sources="b" * 32), "its code is not the driver's"),
        (
            replace(WORKER, libraries={**WORKER.libraries, "torch": "2.8.0+cu128"}),
            r"it has torch 2.8.0\+cu128, the driver torch 2.9.1\+cpu",
        ),
        (replace(WORKER, libraries={"torch": "2.9.1"}), "it has no numpy, the driver numpy 2.3.0"),
        (replace(WORKER, formats=("fp32",)), "does not compute bf16.* AVX512-BF16"),
        (replace(WORKER, fault="/store is not there on c1"), "^/store is not there on c1$"),
    ],
)
def test_who_is_refused_and_why(worker: Introduction, reason: str | None) -> None:
    """Prevents: rows of other code, another library or another processor under the driver's fingerprint; a GPU's build that is refused."""
    refused = why_refused(DRIVER, worker)
    assert refused is None if reason is None else re.search(reason, refused or "")


def test_a_worker_of_the_same_store_is_accepted(tmp_path: Path) -> None:
    """Prevents: files of the handshake that pile up in the store; a worker that is refused for nothing."""
    ours = Handshake(str(tmp_path))
    worker = introduce(ours.challenge, node="n1")
    assert worker.fault == "" and worker.node == "n1" and len(list((tmp_path / FOLDER).iterdir())) == 2
    assert ours.why_refused(worker) is None
    introduce(ours.challenge)  # an answer that is never looked at
    ours.close()
    assert list((tmp_path / FOLDER).iterdir()) == []


def test_the_environment_comes_with_the_challenge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a worker on another host that has no credentials for the store it is asked about."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of the host")
    introduce(Handshake(str(tmp_path), environment={"AWS_ACCESS_KEY_ID": "of the driver"}).challenge)
    assert os.environ["AWS_ACCESS_KEY_ID"] == "of the driver"


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    """Prevents: a host without the mount that ingests onto its own disk and reports success."""
    (tmp_path / "store").mkdir()
    ours = Handshake(str(tmp_path / "store"))
    shutil.rmtree(tmp_path / "store")
    worker = introduce(ours.challenge)
    assert worker.host in worker.fault and worker.fault.startswith(f"{tmp_path}/store is not there on")
    assert ours.why_refused(worker) == worker.fault
    assert not (tmp_path / "store").exists()


def test_another_folder_of_the_same_name_is_seen(tmp_path: Path) -> None:
    """Prevents: a local folder that happens to have the store's path, where shards vanish."""
    store, aside = tmp_path / "store", tmp_path / "aside"
    ours = Handshake(str(store))
    store.rename(aside)
    store.mkdir()
    assert "is not the driver's folder" in introduce(ours.challenge).fault
    shutil.copytree(aside, store, dirs_exist_ok=True)  # reads right, and writes elsewhere
    worker = introduce(ours.challenge)
    shutil.rmtree(store)
    aside.rename(store)
    assert "is not seen by the driver" in (ours.why_refused(worker) or "")


def test_a_read_only_store_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a traceback with no host for a store that is mounted for reading alone."""
    ours = Handshake(str(tmp_path))
    place = type(ours._place)

    def refuse(self: object, name: str, content: bytes) -> None:
        raise OSError(30, "Read-only file system", f"{tmp_path}/{name}")

    monkeypatch.setattr(place, "put", refuse)
    fault = introduce(ours.challenge).fault
    assert fault.startswith(f"{tmp_path} cannot be written on ") and "Read-only file system" in fault


def test_challenges_of_killed_drivers_go_after_a_day(tmp_path: Path) -> None:
    """Prevents: a folder that grows with each driver that was killed, and a running driver's challenge that another removes."""
    killed, running = Handshake(str(tmp_path)), Handshake(str(tmp_path))
    os.utime(tmp_path / killed.challenge.name, (time.time() - 90_000,) * 2)
    Handshake(str(tmp_path)).close()
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == [Path(running.challenge.name).name]


@pytest.mark.medium
def test_the_digest_is_of_the_code_that_is_imported(tmp_path: Path) -> None:
    """Prevents: a host with one changed line that counts as having the driver's code; two installations of the same that differ."""
    for package in ("data", "pipeline", "retrieval"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))

    def digest_there() -> str:
        code = "from pipeline.executors.ray.handshake import sources_digest; print(sources_digest())"
        return subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
                              capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip

    assert digest_there() == sources_digest()
    changed = tmp_path / "retrieval" / "models" / "pooling.py"
    changed.write_text(changed.read_text() + "\n# another line\n")
    assert digest_there() != sources_digest()


def test_an_address_that_nothing_opens_is_a_fault_of_the_worker() -> None:
    """Prevents: a worker that lacks the package of an object store and is reported as a crash."""
    host = introduce().host
    assert f"nowhere://bucket/store on {host}: " in introduce(Challenge("nowhere://bucket/store", "x")).fault


def test_a_shard_that_the_driver_does_not_see_is_not_there(tmp_path: Path) -> None:
    """Prevents: a worker whose store was unmounted while it worked, and whose shard counts as built until the table is to be sealed."""
    task = ShardTask("embed.corpus", "embed/a", "f", (0,), 1, {}, {}, {}, 1)
    result = TaskResult(task, 1.0, records=[ShardRecord("part-00000-of-00001.parquet", 3, 9, "d")])
    (tmp_path / "embed" / "a").mkdir(parents=True)
    ours = Handshake(str(tmp_path))
    assert not ours.sees(result)
    path = tmp_path / "embed" / "a" / "part-00000-of-00001.parquet"
    path.write_bytes(b"short")
    assert not ours.sees(result)
    path.write_bytes(b"nine byte")
    assert ours.sees(result) and ours.sees(TaskResult(task, 1.0))
    ours.close()
