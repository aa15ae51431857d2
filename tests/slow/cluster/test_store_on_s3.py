"""A store on a server of the S3 protocol that is not of this project, from the collection to a trained student: as it comes, with
requests that fail, and with jobs that are killed on machines with caches of their own."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
from support.faulty_proxy import FaultyProxy, faulty_proxy
from support.forked import begin_forked, fork_server, run_forked
from support.rclone import rclone_server
from support.s3 import s3_variables

from data.errors import EXIT_INTERRUPTED
from data.logits.segment import key_halves
from data.tables.shards import read_shard

NO_OP_REQUESTS = 60
SCORING_REQUESTS = 20  # of a shard, its claim and its data among them; a claim takes seven where the server knows no conditional put
TABLE_REQUESTS = 30  # of its table, however many shards it has
SECONDS = 900
KILLS = 10
MOST_LOST = 2  # windows that a killed job was scoring


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyProxy]:
    """The way to the server: `share` of it is 0 to begin with. The bucket `bucket` is the folder tmp_path/buckets/bucket."""
    (tmp_path / "buckets" / "bucket").mkdir(parents=True)
    with rclone_server(tmp_path / "buckets") as endpoint, faulty_proxy(endpoint, share=0.0, seed=1, stall_seconds=0.5) as proxy:
        yield proxy


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    """Where commands begin, their imports made."""
    return fork_server("s3fs")


@dataclass(frozen=True)
class Machine:
    """One with a cache of its own, where commands are processes of their own."""

    forks: ForkServerContext
    server: FaultyProxy
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return s3_variables(self.server.endpoint, cache=self.folder / "cache")

    def run(self, *words: object) -> str:
        """What a command says; once more where it says that the same command goes on."""
        self.folder.mkdir(exist_ok=True)
        for _ in range(3):
            log = self.folder / "log"
            ended = run_forked(
                self.forks, list(map(str, words)), folder=self.folder, log=log, timeout=SECONDS, environment=self.environment
            )
            if ended.code != EXIT_INTERRUPTED:
                break
        assert ended.code == 0, ended.output
        return ended.output

    def run_and_kill(self, *words: object, requests: int) -> int | None:
        """The exit code of a command that is killed once the server has got so many requests, if it has not ended before."""
        self.folder.mkdir(exist_ok=True)
        limit = len(self.server.requests) + requests
        job = begin_forked(self.forks, list(map(str, words)), folder=self.folder, log=self.folder / "killed", environment=self.environment)
        while job.is_alive() and len(self.server.requests) < limit:
            time.sleep(0.01)
        job.kill()
        job.join()
        return job.exitcode


@pytest.fixture
def machines(forks: ForkServerContext, server: FaultyProxy, tmp_path: Path) -> tuple[Machine, Machine]:
    """Two that share nothing but the store."""
    return Machine(forks, server, tmp_path / "one"), Machine(forks, server, tmp_path / "other")


@pytest.fixture(scope="module")
def near_student(tmp_path_factory: pytest.TempPathFactory, forks: ForkServerContext, finished: Any, contents: Any) -> dict[str, bytes]:
    """The files of the student that is trained on the same store of this machine."""
    folder = tmp_path_factory.mktemp("near")
    shards = next((finished.store / "shards").glob("*/manifest.json")).parent
    words = ["train", "run", f"config={finished.config}", f"shards={shards}", f"train.output={folder / 'train'}"]
    ended = run_forked(forks, words, folder=folder, log=folder / "log", timeout=SECONDS)
    assert ended.code == 0, ended.output
    return dict(contents(folder / "train" / "student"))


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
    server: FaultyProxy,
    machines: tuple[Machine, Machine],
    tmp_path: Path,
    tiny_experiment: Any,
    finished: Any,
    near_student: dict[str, bytes],
    parquet_files: Any,
    contents: Any,
    share: float,
) -> None:
    """Prevents: another table, or another student, because the store lies elsewhere or its requests fail; and a request for each file."""
    server.share = share
    config = f"config={tiny_experiment(tmp_path / 'far', store='s3://bucket/store')}"
    one, _ = machines
    one.run("prep", "run", config)
    of_scoring = [request for request in server.requests if "teacher_scores" in request.path or "teacher_logits" in request.path]
    assert share or len(of_scoring) <= 2 * SCORING_REQUESTS + TABLE_REQUESTS
    assert stored(tmp_path) == parquet_files(finished.store)
    shards = one.run("prep", "path", config, "stage=shards").strip()
    assert shards.startswith("s3://bucket/store/shards/")
    one.run("train", "run", config, f"shards={shards}")
    assert contents(tmp_path / "far" / "train" / "student") == near_student
    for machine in machines:
        before = len(server.requests)
        assert "nothing to do" in machine.run("prep", "run", config)
        assert share or len(server.requests) - before <= NO_OP_REQUESTS
    assert bool(server.faults) == (share > 0)


def test_jobs_that_are_killed_on_two_machines(
    machines: tuple[Machine, Machine], tmp_path: Path, tiny_experiment: Any, prep_run: Any, parquet_files: Any
) -> None:
    """Prevents: half an object, a lost or a doubled one, or a mirror that is believed over the store, where jobs die at any request."""
    window = 64
    config = tiny_experiment(tmp_path / "far", store="s3://bucket/store", **{"teacher.segment_pairs": window})
    chance = random.Random(20)
    killed = 0
    for number in range(KILLS):
        machine = machines[number % 2]
        code = machine.run_and_kill("prep", "run", f"config={config}", requests=chance.randint(5, 60))
        assert code in (0, -signal.SIGKILL), (machine.folder / "killed").read_text()
        killed += code == -signal.SIGKILL
    assert killed
    near = tiny_experiment(tmp_path / "near", **{"teacher.segment_pairs": window})  # which pairs are scored together decides the last bits
    prep_run(near)
    for machine in machines:
        machine.run("prep", "run", f"config={config}")
    assert stored(tmp_path) == parquet_files(tmp_path / "near" / "store")
    rows, pairs = rows_and_pairs(tmp_path)
    assert rows - pairs <= killed * MOST_LOST * window
    assert not list((tmp_path / "buckets").rglob("*.tmp"))
