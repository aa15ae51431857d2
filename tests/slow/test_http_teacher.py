"""A teacher behind HTTP in processes that are killed, and on a server that no one here wrote."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.infinity import infinity  # noqa: F401
from support.kills import descendants
from support.rerank_server import RerankServer
from support.stores import candidates, distinct_pairs, forget_scores

from data.config.settings import Teacher, load
from data.digests import pair_key
from data.logits.segment import as_keys
from data.logits.store import LogitStore
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.base import TeacherSettings

WINDOW = 7
Prep = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def served_by(url: str, shape: str, model: str = "tiny-reranker") -> dict[str, Any]:
    own = {"teacher.backend": "http", "teacher.model": model, "teacher.revision": "1", "teacher.precision": "auto"}
    return {**own, "teacher.segment_pairs": WINDOW, "teacher.http": {"url": url, "shape": shape, "documents": 3, "concurrency": 2}}


def as_sent(query: str, text: str) -> tuple[str, str]:
    return query, text.replace(SEPARATOR_MARK, "[SEP]").replace(MASK_MARK, "[MASK]")


def stored_pairs(store: Path) -> set[tuple[str, str]]:
    """The pairs in the logit store, as they are sent."""
    pairs = sorted({(row["query"], row["text"]) for row in candidates(store)})
    namespaces = list((store / "teacher_logits").glob("*"))
    if not namespaces:
        return set()
    known = ~np.isnan(LogitStore(store, namespaces[0].name).lookup(as_keys([pair_key(*pair) for pair in pairs])).logits)
    return {as_sent(*pair) for pair, there in zip(pairs, known, strict=True) if there}


def start(config: Path) -> subprocess.Popen[str]:
    script = Path(sys.executable).parent / "prep"
    words = [script, "run", f"config={config}", "stage=teacher_scores"]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def segments(store: Path) -> int:
    return len(list(store.glob("teacher_logits/*/*.parquet")))


def wait_for_segments(store: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while segments(store) < count and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    assert process.poll() is None, process.communicate()[0]


def end(process: subprocess.Popen[str], *, seconds: float = 60) -> tuple[int, str]:
    output, _ = process.communicate(timeout=seconds)
    return process.returncode, output


@pytest.mark.parametrize("runner", ["local", "ray"])
def test_no_stored_pair_is_asked_for_again(
    tmp_path: Path, tiny_experiment: Any, prep_run: Prep, rerank_server: Any, parquet_files: Any, runner: str, monkeypatch: Any
) -> None:
    """Prevents: a kill after which a bill is paid again; a server started again that changes a table; a key that workers lack."""
    server: RerankServer = rerank_server(shape="infinity")
    server.key = "s3cret"
    monkeypatch.setenv("RERANK_API_KEY", "s3cret")
    words = {**served_by(server.url, "infinity"), "runner.kind": runner, "runner.workers": 1}
    config, store = tiny_experiment(tmp_path, **words), tmp_path / "store"
    prep_run(config, stage="all", runner="local")
    expected = parquet_files(store)
    forget_scores(store)

    server.seconds = 0.05
    asked: Counter[tuple[str, str]] = Counter()
    for number, how in enumerate([signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, None]):
        before, stored = stored_pairs(store), segments(store)
        server.asked.clear()
        process = start(config)
        wait_for_segments(store, stored + 2, process)
        if how is not None:
            below = descendants(process.pid)
            os.kill(process.pid, how)
            code, output = end(process)
            assert code == (75 if how == signal.SIGTERM else -how), output
            for one in below:  # Ray's would go on for a while
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGKILL)
            time.sleep(0.3)  # what is under way at the server
        else:
            server.stop()
            time.sleep(1.5)
            server.start()
            code, output = end(process, seconds=300)
            assert code == 0, output
        assert "s3cret" not in output
        assert not before & server.asked.keys(), f"round {number}: stored pairs were asked for again"
        asked += server.asked
    pairs = distinct_pairs(store)
    assert parquet_files(store) == expected and len(stored_pairs(store)) == pairs
    once = {pair: count for pair, count in asked.items() if pair[0] != "how a plant makes sugar"}
    # In flight are the window that is scored and the one before it, which is being written; a request that met the restart is sent again.
    assert pairs <= sum(once.values()) <= pairs + 3 * 2 * WINDOW + 2 * 3


@pytest.mark.parametrize("waits_for", ["stall:60", "503:60"])
def test_a_signal_ends_a_run_that_waits(tmp_path: Path, tiny_experiment: Any, prep_run: Prep, rerank_server: Any, waits_for: str) -> None:
    """Prevents: a batch system's TERM unheard while a server is awaited, and then its KILL."""
    server: RerankServer = rerank_server(shape="infinity")
    config, store = tiny_experiment(tmp_path, **served_by(server.url, "infinity")), tmp_path / "store"
    prep_run(config, stage="all")
    forget_scores(store)
    server.seconds = 0.02
    server.faults.extend([""] * 20 + [waits_for] * 50)
    process = start(config)
    wait_for_segments(store, 2, process)
    while server.faults and len(server.faults) > 49 and process.poll() is None:
        time.sleep(0.01)
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGTERM)
    started = time.monotonic()
    code, output = end(process)
    assert code == 75 and "interrupted" in output and time.monotonic() - started < 30, output


def teacher_logits(teacher: Teacher, pairs: list[tuple[str, str]]) -> Any:
    opened = resolve_teacher(teacher, device="cpu").open(TeacherSettings.of(teacher, device="cpu", threads=1))
    opened.load()
    return opened.score(pairs)


@pytest.mark.parametrize("shape", ["rerank", "infinity"])
def test_infinity_gives_the_logits_of_the_weights(finished: Any, models: Any, infinity: Any, shape: str) -> None:  # noqa: F811
    """Prevents: a client that only fits our own stub; a sigmoid that is left, or undone twice."""
    pairs = sorted({as_sent(row["query"], row["text"]) for row in candidates(finished.store)})
    url, name = infinity(models.teacher)
    http = {"url": url, "shape": shape, "documents": 8}
    served = teacher_logits(Teacher(model=name, backend="http", revision="1", http=http), pairs)
    ours = teacher_logits(Teacher(model=str(models.teacher), precision="fp32", max_tokens=128), pairs)
    print(f"infinity, {shape}: largest difference {np.abs(served - ours).max():.1e} of {len(pairs)} pairs")
    assert np.ptp(ours) > 0.1
    np.testing.assert_allclose(served, ours, atol=1e-3)


def test_from_texts_to_a_trained_student_on_infinity(
    tmp_path: Path,
    tiny_experiment: Any,
    command: Any,
    models: Any,
    infinity: Any,  # noqa: F811
) -> None:
    """Prevents: rooms that each work on a real server and do not fit together."""
    url, name = infinity(models.teacher)
    config = tiny_experiment(tmp_path, **{**served_by(url, "infinity", name), "teacher.segment_pairs": 64})

    def done(*words: object) -> str:
        result = command(*words)
        assert result.returncode == 0, f"{' '.join(map(str, words))}\n{result.stdout}\n{result.stderr}"
        return str(result.stdout).strip()

    done("prep", "run", f"config={config}")
    done("train", "run", f"config={config}", f"shards={done('prep', 'path', f'config={config}', 'stage=shards')}")
    assert (tmp_path / "train" / "student" / "config.json").is_file()
    assert load({"config": str(config)}).teacher.http.url == url
