"""A store on a server of the S3 protocol that is not of this project, from the collection to a trained student: as it comes, with
requests that fail, and with jobs that are killed on machines with caches of their own."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.faulty_proxy import FaultyProxy, faulty_proxy
from support.rclone import rclone_server
from support.s3 import s3_variables

from data.errors import EXIT_INTERRUPTED
from data.logits.segment import key_halves
from data.tables.shards import read_shard

SCRIPTS = Path(sys.executable).parent
NO_OP_REQUESTS = 60
SCORING_REQUESTS = 20  # of a shard, its claim and its data among them; a claim takes nine where the server knows no conditional put
TABLE_REQUESTS = 30  # of its table, however many shards it has
KILLS = 10
MOST_LOST = 2  # windows that a killed job was scoring


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyProxy]:
    """The way to the server: `share` of it is 0 to begin with. The bucket `bucket` is the folder tmp_path/buckets/bucket."""
    (tmp_path / "buckets" / "bucket").mkdir(parents=True)
    with rclone_server(tmp_path / "buckets") as endpoint, faulty_proxy(endpoint, share=0.0, seed=1, stall_seconds=2.0) as proxy:
        yield proxy


def environment(server: FaultyProxy, cache: Path) -> dict[str, str]:
    """Of a machine with this cache."""
    return {**os.environ, **s3_variables(server.endpoint, cache=cache)}


def command(server: FaultyProxy, cache: Path, *words: object) -> subprocess.CompletedProcess[str]:
    """A command on a machine; once more where it says that the same command goes on."""
    for _ in range(3):
        done = subprocess.run(
            [SCRIPTS / str(words[0]), *map(str, words[1:])], capture_output=True, text=True, timeout=900, env=environment(server, cache)
        )
        if done.returncode != EXIT_INTERRUPTED:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def stored(tmp_path: Path) -> dict[str, bytes]:
    """The tables as they lie on the server's disk."""
    store = tmp_path / "buckets" / "bucket" / "store"
    found = (path.relative_to(store) for path in store.rglob("*.parquet"))
    return {str(name): (store / name).read_bytes() for name in found if name.parts[0] != "teacher_logits"}


def rows_and_pairs(tmp_path: Path) -> tuple[int, int]:
    """Rows of the logit store, and distinct pairs in them."""
    folder = tmp_path / "buckets" / "bucket" / "store" / "teacher_logits"
    keys = [tuple(key) for path in folder.rglob("*.parquet") for key in key_halves(read_shard(path).column("key")).tolist()]
    return len(keys), len(set(keys))


@pytest.mark.parametrize("share", [0.0, 0.3])
def test_from_the_collection_to_a_trained_student(
    server: FaultyProxy, tmp_path: Path, tiny_experiment: Any, finished: Any, parquet_files: Any, contents: Any, share: float
) -> None:
    """Prevents: another table, or another student, because the store lies elsewhere or its requests fail; and a request for each file."""
    server.share = share
    config = f"config={tiny_experiment(tmp_path / 'far', store='s3://bucket/store')}"
    cache = tmp_path / "cache"
    command(server, cache, "prep", "run", config)
    of_scoring = [request for request in server.requests if "teacher_scores" in request.path or "teacher_logits" in request.path]
    assert share or len(of_scoring) <= 2 * SCORING_REQUESTS + TABLE_REQUESTS
    assert stored(tmp_path) == parquet_files(finished.store)
    shards = command(server, cache, "prep", "path", config, "stage=shards").stdout.strip()
    assert shards.startswith("s3://bucket/store/shards/")
    command(server, cache, "train", "run", config, f"shards={shards}")
    near = next((finished.store / "shards").glob("*/manifest.json")).parent
    train = [f"config={finished.config}", f"shards={near}", f"train.output={tmp_path / 'near-train'}"]
    command(server, cache, "train", "run", *train)
    assert contents(tmp_path / "far" / "train" / "student") == contents(tmp_path / "near-train" / "student")
    for machine in (cache, tmp_path / "other"):
        before = len(server.requests)
        assert "nothing to do" in command(server, machine, "prep", "run", config).stdout
        assert share or len(server.requests) - before <= NO_OP_REQUESTS
    assert bool(server.faults) == (share > 0)


def test_jobs_that_are_killed_on_two_machines(
    server: FaultyProxy, tmp_path: Path, tiny_experiment: Any, prep_run: Any, parquet_files: Any
) -> None:
    """Prevents: half an object, a lost or a doubled one, or a mirror that is believed over the store, where jobs die at any request."""
    window = 64
    config = tiny_experiment(tmp_path / "far", store="s3://bucket/store", **{"teacher.segment_pairs": window})
    chance = random.Random(20)
    caches = [tmp_path / "a", tmp_path / "b"]
    killed = 0
    for number in range(KILLS):
        limit = len(server.requests) + chance.randint(5, 60)
        words = [SCRIPTS / "prep", "run", f"config={config}"]
        with subprocess.Popen(words, env=environment(server, caches[number % 2]), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as job:
            while job.poll() is None and len(server.requests) < limit:
                time.sleep(0.01)
            with contextlib.suppress(ProcessLookupError):
                job.kill()
            assert job.wait() in (0, -signal.SIGKILL), job.stderr and job.stderr.read()
            killed += job.returncode == -signal.SIGKILL
    assert killed
    near = tiny_experiment(tmp_path / "near", **{"teacher.segment_pairs": window})  # which pairs are scored together decides the last bits
    prep_run(near)
    for cache in caches:
        command(server, cache, "prep", "run", f"config={config}")
    assert stored(tmp_path) == parquet_files(tmp_path / "near" / "store")
    rows, pairs = rows_and_pairs(tmp_path)
    assert rows - pairs <= killed * MOST_LOST * window
    assert not list((tmp_path / "buckets").rglob("*.tmp"))
