"""Scoring that is killed at any moment, by itself or under Ray: no logit is lost, doubled, or another one."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.kills import descendants
from support.stores import distinct_pairs, forget_scores

from data.config.settings import load
from data.logits.store import LogitStore

Prep = Callable[..., list[str]]
Files = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def zygotes(start_zygote: Callable[[str], Any]) -> list[Any]:
    return [start_zygote("scoring"), start_zygote("scoring")]


def spelt(config: Path, words: dict[str, int]) -> list[str]:
    return [f"config={config}", *(f"{key}={value}" for key, value in words.items())]


def scored(log: Path) -> int:
    return sum(map(int, log.read_text().split())) if log.exists() else 0


WINDOW = 7


@pytest.mark.parametrize(("workers", "most"), [(1, 20), (8, 10)])
def test_killed_at_many_moments(copied: Any, tmp_path: Path, zygotes: list[Any], parquet_files: Files, workers: int, most: int) -> None:
    """Prevents: a kill that loses more than the segments in flight, leaves half a segment, or ends in other bytes; windows that are shared
    by workers, and scored twice after it."""
    zygote, words = zygotes[0], {"teacher.segment_pairs": WINDOW}
    for name in ("first", "unbroken"):  # the first one also fills the machine's caches
        forget_scores(copied.store)
        started = time.monotonic()
        zygote.begin(tmp_path / name, *spelt(copied.config, words))
        assert zygote.end() == 0
    length, expected, pairs = time.monotonic() - started, parquet_files(copied.store), scored(tmp_path / "unbroken")
    assert pairs == distinct_pairs(copied.store)

    chance, kills, rounds = random.Random(20), 0, 0
    words["workers"] = workers  # the bytes are to be those of one that shares nothing
    while kills < most:
        rounds += 1
        forget_scores(copied.store)
        log, killed = tmp_path / f"round{rounds}", 0
        while True:
            child = zygote.begin(log, *spelt(copied.config, words))
            time.sleep(chance.uniform(0, length))
            if kills < most:
                with contextlib.suppress(ProcessLookupError):  # it was done before
                    os.kill(child, signal.SIGKILL)
            code = zygote.end()
            if code == 0:
                break
            assert code == -signal.SIGKILL
            kills, killed = kills + 1, killed + 1
        assert parquet_files(copied.store) == expected, "other bytes than an unbroken run's"
        # In flight are the window that is scored and the one before it, which is being written.
        assert pairs <= scored(log) <= pairs + 2 * WINDOW * killed
        stored = LogitStore(copied.store, next((copied.store / "teacher_logits").iterdir()).name)
        assert stored.size()[0] == pairs and stored.verify() == []
    assert rounds <= 20


def test_two_jobs_fill_one_store_at_once(copied: Any, tmp_path: Path, zygotes: list[Any], prep_run: Prep, count_scored: list[int]) -> None:
    """Prevents: jobs that overwrite each other's logits, or that fail because of each other."""
    more = {"hard_negatives.negatives": 4}
    for stage in ("hard_negatives", "dark_examples"):
        prep_run(copied.config, stage=stage, **more)
    forget_scores(copied.store)
    words = {"teacher.segment_pairs": WINDOW}
    zygotes[0].begin(tmp_path / "one", *spelt(copied.config, words))
    zygotes[1].begin(tmp_path / "two", *spelt(copied.config, words | more))
    assert [zygote.end() for zygote in zygotes] == [0, 0]
    assert scored(tmp_path / "one") > 0 and scored(tmp_path / "two") > 0
    everything = distinct_pairs(copied.store)
    assert LogitStore(copied.store, next((copied.store / "teacher_logits").iterdir()).name).size()[0] == everything
    shutil.rmtree(copied.store / "teacher_scores")
    prep_run(copied.config)
    prep_run(copied.config, **more)
    assert count_scored == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="processes are found through /proc")
@pytest.mark.parametrize("victim", ["worker", "driver", "all of Ray"])
def test_ray_killed_while_it_scores(copied: Any, victim: str, parquet_files: Files) -> None:
    """Prevents: what a killed actor, driver or Ray had scored and stored is lost, doubled, or ends in other bytes."""
    from pipeline.run import run

    settings = {"config": str(copied.config), "teacher.segment_pairs": "2"}
    forget_scores(copied.store)
    run(load(settings), stage="teacher_scores", say=lambda line: None)
    expected = parquet_files(copied.store)
    forget_scores(copied.store)

    words = ["run", *(f"{key}={value}" for key, value in settings.items()), "stage=teacher_scores", "runner=ray", "runner.workers=1"]
    script = Path(sys.executable).parent / "prep"
    process = subprocess.Popen([script, *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    deadline, wanted = (
        time.monotonic() + 300,
        random.Random(victim).randint(1, 15),
    )  # segments, before they are merged, and then in the middle of the next
    while len(list(copied.store.glob("teacher_logits/*/*.parquet"))) < wanted and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    workers, everything = descendants(process.pid, title=b"ray::RayWorker"), descendants(process.pid)
    hit = {"worker": workers, "driver": [process.pid], "all of Ray": [*everything, process.pid]}[victim]
    assert hit and process.poll() is None
    for one in hit:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    for one in everything:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    if victim == "worker":
        assert process.returncode == 0, output  # it was replaced
    else:
        assert process.returncode == -signal.SIGKILL
        run(load(settings), stage="teacher_scores", say=lambda line: None)
    assert parquet_files(copied.store) == expected
    stored = LogitStore(copied.store, next((copied.store / "teacher_logits").iterdir()).name)
    rows = sum(pq.read_metadata(path).num_rows for path in stored.segment_paths())
    assert rows == stored.size()[0] == distinct_pairs(copied.store)
