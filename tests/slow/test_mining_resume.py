"""Mining killed at any moment: the same command started again ends in the same bytes, and does nothing twice."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from data.tables.manifest import Manifest


@dataclass(frozen=True)
class Run:
    """One process: how it ended, the steps it took, and the pieces (shards, parts) that lay finished before it and after it."""

    code: int
    steps: list[str]
    before: dict[Path, tuple[int, int]]
    after: dict[Path, tuple[int, int]]


@dataclass(frozen=True)
class Job:
    """A command, and where what it makes lies.

    Attributes:
        zygote: what runs it.
        words: the command.
        folder: holds all it writes, and nothing else.
        result: the bytes by which its end is judged.
        parts: pattern of the pieces that a run which goes on must keep.
        scratch: for logs.
    """

    zygote: Any
    words: tuple[str, ...]
    folder: Path
    result: Callable[[Path], dict[str, Any]]
    parts: str
    scratch: Path

    def forget(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()

    def finished(self) -> dict[Path, tuple[int, int]]:
        """Pieces under their final names, with what changes when one is written again."""
        return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in self.folder.rglob(self.parts)}

    def run(self, *, last_step: int = 0, kill_after: float | None = None) -> Run:
        """Run the command; die at a step, or some seconds after the start."""
        log = self.scratch / f"{time.monotonic_ns()}.log"
        before = self.finished()
        child = self.zygote.begin(log, last_step, *self.words)
        if kill_after is not None:
            time.sleep(kill_after)
            with contextlib.suppress(ProcessLookupError):  # it was done before
                os.kill(child, signal.SIGKILL)
        code = self.zygote.end()
        return Run(code, log.read_text().splitlines() if log.exists() else [], before, self.finished())


def check_kills(job: Job, *, seed: int, timed: int = 2) -> list[tuple[Run, Run]]:
    """Kill the job once at a step of every kind, again at a step of what it then goes on with, and at some moments by the clock.

    Returns for each of the first kind the unbroken run and the last of those that went on.
    """
    chance = random.Random(seed)
    job.forget()
    started = time.monotonic()
    unbroken = job.run()
    length, expected = time.monotonic() - started, job.result(job.folder)
    assert unbroken.code == 0 and expected

    kinds = sorted({step.split()[0] for step in unbroken.steps})
    ended = []
    for kind in kinds:
        job.forget()
        places = [place for place, step in enumerate(unbroken.steps, start=1) if step.split()[0] == kind]
        killed = job.run(last_step=chance.choice(places))
        assert killed.code == -signal.SIGKILL and killed.steps == unbroken.steps[: len(killed.steps)] and killed.steps[-1].startswith(kind)
        again = job.run(last_step=chance.randint(1, len(unbroken.steps) - len(killed.steps) + 1))
        ended.append((unbroken, finish(job, [killed, again], unbroken, expected)))
    for _ in range(timed):
        job.forget()
        finish(job, [job.run(kill_after=chance.uniform(0, length)) for _ in range(2)], unbroken, expected)
    return ended


def finish(job: Job, killed: list[Run], unbroken: Run, expected: dict[str, Any]) -> Run:
    """The last run after some killed ones: it keeps what there is, ends well, and in the same bytes."""
    runs = [*killed, job.run()]
    assert runs[-1].code == 0 and all(run.code in (0, -signal.SIGKILL) for run in killed)
    for run in runs:
        written = {step.split()[1] for step in run.steps if step.startswith("write ")}
        assert not written & {path.name for path in run.before}, "a finished piece was made again"
        assert all(run.after[path] == state for path, state in run.before.items() if path in run.after)
        if "remove" not in run.steps:
            assert run.before.keys() <= run.after.keys(), "a finished piece is gone"
    assert job.result(job.folder) == expected, "other bytes than an unbroken run's"
    return runs[-1]


def left_over(run: Run, unbroken: Run, *, kinds: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """(the steps that a run took, those that an unbroken one takes after the last piece that was finished), of some kinds."""
    finished = {f"written {path.name}" for path in run.before}
    last = max((place for place, step in enumerate(unbroken.steps, start=1) if step in finished), default=0)
    both = [[step for step in steps if step.startswith(kinds)] for steps in (run.steps, unbroken.steps[last:])]
    return both[0], both[1]


def table_bytes(folder: Path) -> dict[str, Any]:
    """All shards, and the manifests without the seconds that they took."""
    files: dict[str, Any] = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("part-*.parquet")}
    for path in folder.rglob("manifest.json"):
        manifest = Manifest.read(path.parent)
        assert manifest is not None
        files[str(path.relative_to(folder))] = (manifest.content_digest, manifest.fingerprint, manifest.key, manifest.counts)
    return files


def all_bytes(folder: Path) -> dict[str, Any]:
    """Every file but the unfinished ones of killed processes."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@pytest.fixture(scope="module")
def zygote(start_zygote: Callable[[str], Any], models: Any) -> Any:
    return start_zygote("mining", models.student)


@pytest.fixture(scope="module")
def mined(tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Callable[..., Path], zygote: Any) -> Path:
    """The config of a store with collection and vectors, in row groups of a few rows."""
    folder = tmp_path_factory.mktemp("mined")
    config = tiny_experiment(folder, **{"embed.batch_tokens": 64})
    for stage in ("ingest", "embed"):
        zygote.begin(folder / "log", 0, "prep", "run", f"config={config}", f"stage={stage}")
        assert zygote.end() == 0
    return config


def tables(config: Path, stage: str) -> dict[str, Path]:
    return {path.name.split("-")[0]: path for path in (config.parent / "store" / stage).iterdir()}


def of_stage(zygote: Any, config: Path, stage: str, scratch: Path, *, parts: str = "part-*.parquet") -> Job:
    words = ("prep", "run", f"config={config}", f"stage={stage}")
    return Job(zygote, words, config.parent / "store" / stage, table_bytes, parts, scratch)


def test_embedding_killed(mined: Path, zygote: Any, tmp_path: Path) -> None:
    """Prevents: hours of embeddings lost to a kill, half a shard taken for a whole one, other vectors after a restart."""
    runs = check_kills(of_stage(zygote, mined, "embed", tmp_path), seed=1)
    kinds = Counter(step.split()[0] for step in runs[0][0].steps)
    assert kinds["window"] > kinds["journal"] == 5 and kinds["batch"] > 2 * kinds["window"]  # a kill does fall inside a shard
    for unbroken, last in runs:
        took, left = left_over(last, unbroken, kinds=("batch", "window", "write part"))
        assert sorted(took) == sorted(left)  # what a killed job had claimed comes last


def test_pools_killed(mined: Path, zygote: Any, tmp_path: Path) -> None:
    """Prevents: a search done twice, or pools that differ after a restart."""
    runs = check_kills(of_stage(zygote, mined, "pools", tmp_path, parts="*.parquet"), seed=2)
    steps = runs[0][0].steps
    kinds = Counter(step.split()[0] for step in steps)
    blocks = sum(step.startswith("write student") for step in steps)
    assert kinds["search"] >= blocks > 1 and kinds["journal"] == 2 + blocks + 2  # what is asked of each shard, blocks, shards
    for unbroken, last in runs:
        took, left = left_over(last, unbroken, kinds=("search", "rows", "write part", "write student"))
        assert sorted(took) == sorted(left)  # what a killed job had claimed comes last


def test_encode_killed(mined: Path, models: Any, zygote: Any, tmp_path: Path) -> None:
    """Prevents: `retrieve encode` that starts anew, or whose manifest or shards tell that it was killed."""
    words = ("retrieve", "encode", f"model={models.student}", f"texts={tables(mined, 'ingest')['corpus']}", "kind=corpus")
    own = ("precision=fp32", "batch_tokens=64", "threads=1", f"out={tmp_path / 'work' / 'vectors'}")
    runs = check_kills(Job(zygote, (*words, *own), tmp_path / "work", all_bytes, "part-*.parquet", tmp_path), seed=3, timed=1)
    for unbroken, last in runs:
        took, left = left_over(last, unbroken, kinds=("batch", "window", "write part"))
        assert took == left


def test_search_killed(mined: Path, zygote: Any, tmp_path: Path) -> None:
    """Prevents: a run with queries missing, doubled or in another order after a kill; parts searched again; parts left lying."""
    vectors = tables(mined, "embed")
    words = ("retrieve", "search", f"corpus={vectors['corpus']}", f"queries={vectors['queries']}", "depth=20", "threads=1")
    job = Job(zygote, (*words, f"out={tmp_path / 'work' / 'a.run'}"), tmp_path / "work", all_bytes, "0*.run", tmp_path)
    runs = check_kills(job, seed=4)
    parts = [f"write {number:09d}.run" for number in range(0, 24, 4)]
    assert [step for step in runs[0][0].steps if step.startswith("write ")] == [*parts, "write a.run"]
    for unbroken, last in runs:
        took, left = left_over(last, unbroken, kinds=("write ", "remove"))
        assert took == left
        assert last.steps.count("search") == -(-sum(step.startswith("write 0") for step in took) // 2)  # two parts each
    assert not list((tmp_path / "work").glob("*.parts"))
