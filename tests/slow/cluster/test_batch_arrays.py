"""Jobs of a batch queue side by side on one store, killed and started again: the same bytes, and no pair paid for twice."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from support.children import ROOT, start
from support.lost_work import most_seconds
from support.slurm import slurm_environment
from support.stores import distinct_pairs, forget_scores

from data.errors import EXIT_COMPLETE, EXIT_INTERRUPTED
from data.logits.store import LogitStore
from pipeline.tables.journal import read_journal

Files = Callable[[Path], dict[str, bytes]]
WINDOW = 4
# More shards than jobs; windows of a few pairs, so that a kill hits in the middle of a shard.
SIZES = {"ingest.corpus_shards": 6, "ingest.query_shards": 8, "teacher.segment_pairs": WINDOW}


class Jobs:
    """Children of one zygote, each by its log."""

    def __init__(self) -> None:
        self.unbroken = 180.0  # seconds of one job alone, once that is known
        self._process = start("jobs", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.running: dict[Path, int] = {}

    def begin(self, log: Path, *args: object) -> int:
        assert self._process.stdin and self._process.stdout
        Path(f"{log}.code").unlink(missing_ok=True)
        print(log, *args, file=self._process.stdin, flush=True)
        self.running[log] = int(self._process.stdout.readline())
        return self.running[log]

    def ended(self, log: Path) -> int | None:
        """The exit code, None while it runs."""
        code = Path(f"{log}.code")
        return int(code.read_text()) if code.exists() else None

    def end(self, log: Path) -> int:
        """Wait for the exit code, as long as if each of those that run had yet to do all the work, on the cores that they share."""
        until = time.monotonic() + most_seconds(len(self.running) * self.unbroken)
        while (code := self.ended(log)) is None:
            assert time.monotonic() < until, f"{log} does not end:\n{said(log)}"
            time.sleep(0.02)
        del self.running[log]
        return code

    def close(self) -> None:
        for log, process in self.running.items():
            if self.ended(log) is None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=30)


@pytest.fixture(scope="module")
def jobs() -> Iterator[Jobs]:
    with contextlib.closing(Jobs()) as started:
        yield started


@dataclass(frozen=True)
class Unbroken:
    """What one job alone made, and how long it took."""

    store: Path
    files: dict[str, bytes]
    seconds: float


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Callable[..., Path], jobs: Jobs, parquet_files: Files) -> Unbroken:
    config = tiny_experiment(tmp_path_factory.mktemp("unbroken"), **SIZES)
    started, log = time.monotonic(), config.parent / "log"
    jobs.begin(log, f"config={config}", "claims=off")
    assert jobs.end(log) == EXIT_COMPLETE, said(log)
    jobs.unbroken = time.monotonic() - started
    store = config.parent / "store"
    assert scored(log) == distinct_pairs(store) == stored_rows(store)
    return Unbroken(store, parquet_files(store), jobs.unbroken)


def said(log: Path) -> str:
    path = Path(f"{log}.said")
    return path.read_text() if path.exists() else ""


def scored(log: Path) -> int:
    return sum(map(int, log.read_text().split())) if log.exists() else 0


def stored_rows(store: Path) -> int:
    """Rows of the logit store, a pair that two jobs scored counted twice."""
    (namespace,) = (store / "teacher_logits").iterdir()
    return sum(pq.read_metadata(path).num_rows for path in LogitStore(store, namespace.name).segment_paths())


def claims_left(store: Path) -> list[str]:
    """The claims alone: the sign of life of a killed job stays until the next one begins."""
    return sorted(path.name for path in (store / "claims").glob("*") if path.is_file())


def shards_built(store: Path) -> Counter[tuple[str, int]]:
    """How often the journals have each shard."""
    folders = {path.parent for path in store.rglob("journal.jsonl")}
    return Counter((folder.name, shard) for folder in folders for line in read_journal(folder) for shard in line["shards"])


def begin(jobs: Jobs, config: Path, names: Sequence[str], *args: object, parts: bool = False) -> list[Path]:
    """Jobs on one store, started together."""
    logs = [config.parent / name for name in names]
    for number, log in enumerate(logs):
        jobs.begin(log, f"config={config}", *args, *([f"part={number}/{len(logs)}"] if parts else []))
    return logs


def test_two_plain_runs_pay_for_nothing_twice(
    unbroken: Unbroken, jobs: Jobs, tmp_path: Path, tiny_experiment: Callable[..., Path], parquet_files: Files
) -> None:
    """Prevents: two jobs that go through the same shards in lock-step, so that all is paid for twice and nothing is faster."""
    config = tiny_experiment(tmp_path, **SIZES)
    logs = begin(jobs, config, ["one", "two"])
    assert [jobs.end(log) for log in logs] == [EXIT_COMPLETE] * 2, "".join(map(said, logs))
    store = tmp_path / "store"
    assert parquet_files(store) == unbroken.files
    assert sum(map(scored, logs)) == distinct_pairs(store) == stored_rows(store) and all(map(scored, logs))
    assert set(shards_built(store).values()) == {1}
    assert claims_left(store) == []


def test_two_runs_that_share_nothing_lose_nothing_and_are_told(
    unbroken: Unbroken, jobs: Jobs, tmp_path: Path, tiny_experiment: Callable[..., Path], parquet_files: Files
) -> None:
    """Prevents: claims=off in a command that somebody starts twice, so that pairs are paid for twice and nobody is told; or a shard or a
    logit that one spoils for the other."""
    config = tiny_experiment(tmp_path, **SIZES)
    logs = begin(jobs, config, ["one", "two"], "claims=off")
    assert [jobs.end(log) for log in logs] == [EXIT_COMPLETE] * 2, "".join(map(said, logs))
    store, pairs = tmp_path / "store", distinct_pairs(tmp_path / "store")
    assert parquet_files(store) == unbroken.files
    assert pairs <= sum(map(scored, logs)) <= 2 * pairs
    assert any("another job builds in this store now" in said(log) and "paid for, twice" in said(log) for log in logs)
    assert not [path for path in (store / "claims").rglob("*") if path.is_file()]


def begin_scoring(unbroken: Unbroken, jobs: Jobs, config: Path, names: list[str], *words: str) -> tuple[list[Path], Path]:
    """Start jobs on a copy of the store without scores. Returns their logs, and that of the first which has scored a window."""
    store = config.parent / "store"
    shutil.copytree(unbroken.store, store)
    forget_scores(store)
    logs = begin(jobs, config, names, *words)
    until = time.monotonic() + 300
    while not (at_it := [log for log in logs if scored(log) > WINDOW]) and time.monotonic() < until:
        time.sleep(0.002)
    return logs, at_it[0]


def test_four_jobs_end_though_one_is_killed_for_good(
    unbroken: Unbroken, jobs: Jobs, tmp_path: Path, tiny_experiment: Callable[..., Path], parquet_files: Files
) -> None:
    """Prevents: a shard that waits for ever for the job that had claimed it, or whose pairs all others score."""
    config = tiny_experiment(tmp_path, **SIZES)
    logs, victim = begin_scoring(unbroken, jobs, config, ["one", "two", "three", "four"], "claims=on")
    os.kill(jobs.running[victim], signal.SIGKILL)
    codes = {log: jobs.end(log) for log in logs}
    assert codes.pop(victim) == -signal.SIGKILL and set(codes.values()) == {EXIT_COMPLETE}, "".join(map(said, logs))
    store, pairs = tmp_path / "store", distinct_pairs(tmp_path / "store")
    assert parquet_files(store) == unbroken.files
    # In flight are the window that is scored and the one before it, which is being written.
    assert pairs <= sum(map(scored, logs)) <= pairs + 2 * WINDOW and stored_rows(store) == pairs


def test_a_stalled_job_is_overtaken_and_wakes_up_to_the_same_bytes(
    unbroken: Unbroken, jobs: Jobs, tmp_path: Path, tiny_experiment: Callable[..., Path], parquet_files: Files
) -> None:
    """Prevents: a node that hangs and stops a whole table; and one that comes back and spoils what others have built."""
    config = tiny_experiment(tmp_path, **SIZES)
    logs, stalled = begin_scoring(unbroken, jobs, config, ["one", "two"], "runner.claim_seconds=3")
    os.kill(jobs.running[stalled], signal.SIGSTOP)
    (other,) = set(logs) - {stalled}
    assert jobs.end(other) == EXIT_COMPLETE, said(other)
    assert parquet_files(tmp_path / "store") == unbroken.files
    os.kill(jobs.running[stalled], signal.SIGCONT)
    assert jobs.end(stalled) == EXIT_COMPLETE, said(stalled)
    assert parquet_files(tmp_path / "store") == unbroken.files


def test_four_parts_each_killed_once_and_a_plain_run(
    unbroken: Unbroken, jobs: Jobs, tmp_path: Path, tiny_experiment: Callable[..., Path], parquet_files: Files
) -> None:
    """Prevents: an array that loses what a killed task had done, waits for itself, or ends in other bytes than one job."""
    config, chance = tiny_experiment(tmp_path, **SIZES), random.Random(4)
    names = ["part0", "part1", "part2", "part3"]
    logs = begin(jobs, config, names, parts=True)
    moments = {log: time.monotonic() + chance.uniform(0.2, 0.8) * unbroken.seconds for log in logs}
    queued: dict[Path, float] = {}  # when it is started again
    waited, until = 0, time.monotonic() + most_seconds(2 * len(logs) * unbroken.seconds)  # each is begun twice at least
    while (jobs.running or queued) and time.monotonic() < until:
        time.sleep(0.02)
        for number, log in enumerate(logs):
            if log in queued and time.monotonic() > queued[log]:
                del queued[log]
                jobs.begin(log, f"config={config}", f"part={number}/{len(logs)}")
            if log not in jobs.running:
                continue
            if log in moments and time.monotonic() > moments[log] and jobs.ended(log) is None:
                del moments[log]
                os.kill(jobs.running[log], signal.SIGKILL)
            if jobs.ended(log) is None:
                continue
            code = jobs.end(log)
            assert code in (EXIT_COMPLETE, EXIT_INTERRUPTED, -signal.SIGKILL), said(log)
            waited += code == EXIT_INTERRUPTED
            if code != EXIT_COMPLETE or log in moments:  # requeued; one that had ended too early to be killed is started again
                queued[log] = time.monotonic() + (3 if code == EXIT_INTERRUPTED else 0)
    assert not jobs.running and not moments, {log.name: said(log) for log in logs}
    assert waited and "start the same command again when they have" in said(logs[1])
    log = tmp_path / "plain"
    jobs.begin(log, f"config={config}")
    assert jobs.end(log) == EXIT_COMPLETE, said(log)
    store, pairs = tmp_path / "store", distinct_pairs(tmp_path / "store")
    assert parquet_files(store) == unbroken.files and claims_left(store) == []
    assert pairs <= sum(map(scored, [*logs, log])) <= pairs + 2 * WINDOW * len(logs) and stored_rows(store) == pairs


def test_a_part_of_one_stage_builds_its_own_shards_and_the_last_completes_the_table(
    unbroken: Unbroken, jobs: Jobs, tmp_path: Path, tiny_experiment: Callable[..., Path], parquet_files: Files
) -> None:
    """Prevents: a part that builds others' shards, that prices all pairs first, or a table that nobody completes."""
    config = tiny_experiment(tmp_path, **SIZES)
    shutil.copytree(unbroken.store, tmp_path / "store")
    forget_scores(tmp_path / "store")
    for number in range(3):
        log = tmp_path / f"part{number}"
        jobs.begin(log, f"config={config}", "stage=teacher_scores", f"part={number}/3")
        assert jobs.end(log) == EXIT_COMPLETE, said(log)
        built = {int(path.name[5:10]) for path in (tmp_path / "store" / "teacher_scores").rglob("part-*.parquet")}
        assert built == {shard for shard in range(8) if shard % 3 <= number}
        assert "pairs" not in said(log)
        assert bool(list((tmp_path / "store" / "teacher_scores").rglob("manifest.json"))) == (number == 2)
    assert "part 0/3 is done, built 3 shards; 5 of 8 are left to other parts" in said(tmp_path / "part0")
    assert parquet_files(tmp_path / "store") == unbroken.files


def test_the_chain_of_arrays_on_slurm(
    unbroken: Unbroken, tmp_path: Path, tiny_experiment: Callable[..., Path], parquet_files: Files
) -> None:
    """Prevents: a recipe for Slurm that nobody has run: with a task that is preempted, and one whose node dies."""
    config = tiny_experiment(tmp_path, **SIZES)
    shutil.copytree(unbroken.store, tmp_path / "store")
    forget_scores(tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "embed")  # the stages between find all there: their tasks end at once
    begun = str(tmp_path / "store" / "claims" / "jobs" / "*")
    faults = {"prep-embed/1": ("TERM", begun), "prep-teacher_scores/0": ("KILL", begun)}
    environment = slurm_environment(tmp_path / "slurm", faults=faults, first=str(Path(sys.executable).parent)) | {"PARTS": "2"}
    words = ["bash", str(ROOT / "recipes" / "slurm" / "chain.sh"), f"config={config}"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=900)
    logs = {path.stem: path.read_text() for path in (tmp_path / "slurm").glob("*.log")}
    assert done.returncode == 0, (done.stderr, logs)
    assert len(done.stdout.splitlines()) == 7
    assert re.findall(r"ended with (-?[0-9]+)", logs["prep-embed-1"]) == ["75", "0"], logs
    assert re.findall(r"ended with (-?[0-9]+)", logs["prep-teacher_scores-0"]) == ["-9", "0"], logs
    assert parquet_files(tmp_path / "store") == unbroken.files and claims_left(tmp_path / "store") == []
