"""Whole runs that are stopped: signals under Ray and before the work, kill -9; and foreign modules in the working directory."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import children

from data.errors import EXIT_FAILED, EXIT_INTERRUPTED
from data.files.leftovers import this_place

BIN = Path(sys.executable).parent
INTERRUPTED = "interrupted; what is finished is kept, the same command goes on from here"
# Names of ours, and of libraries that workers import.
FOREIGN = ("data", "pipeline", "retrieval", "trainer", "rich", "yaml", "typer", "polars")


def start(*words: object, folder: Path | None = None, **environment: str) -> subprocess.Popen[str]:
    # A shell's `&` and some test runners ignore SIGINT, and a child inherits it.
    return subprocess.Popen(
        list(map(str, words)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, env={**os.environ, **environment},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """A working directory with modules of the names that we import; each tells when it is."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in FOREIGN:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'a').write('{name} ')\n")
    return folder


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
@pytest.mark.parametrize("when", ["ray starts", "embed"])
def test_a_signal_under_ray(number: signal.Signals, when: str, tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: exit code 1 and no word, as Ray's own handler of SIGTERM has it: a queue then does not start the job again."""
    config = tiny_experiment(tmp_path)
    process = start(BIN / "prep", "run", f"config={config}", "runner=ray", "runner.workers=1")
    deadline = time.monotonic() + 300
    sign = tmp_path / "store" / ("ingest" if when == "ray starts" else "embed")
    while not sign.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    if when == "ray starts":
        time.sleep(1)  # Ray takes several
    process.send_signal(number)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == EXIT_INTERRUPTED and INTERRUPTED in output and "Traceback" not in output, output
    assert not list((tmp_path / "store").rglob("*.tmp"))


@pytest.mark.parametrize("room", ["pipeline", "trainer", "retrieval"])
def test_a_signal_in_the_first_half_second(room: str, tmp_path: Path) -> None:
    """Prevents: KeyboardInterrupt with the traceback of an import, and exit code 130 or -15."""
    for name in (f"{room}.cli", "typer", "data.remote.cache"):
        process = children.start(
            "stopped_import", room, name, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        assert process.stdout is not None
        if process.stdout.readline() != "here\n":  # this command does not import it
            process.communicate(timeout=180)
            continue
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=180)
        assert (process.returncode, errors) == (EXIT_INTERRUPTED, f"{INTERRUPTED}\n"), name


def test_foreign_modules_play_no_part_under_ray(foreign: Path, tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: workers that import the working directory's data.py, or its rich.py, in place of ours or the library's."""
    config = tiny_experiment(tmp_path / "run")
    process = start(BIN / "prep", "run", f"config={config}", "runner=ray", "runner.workers=1", folder=foreign)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and not (tmp_path / "imported").exists(), output


@pytest.mark.parametrize("way", [["--no-python", str(BIN / "train")], ["-m", "trainer"]], ids=" ".join)
def test_foreign_modules_play_no_part_under_torchrun(
    way: list[str], foreign: Path, finished: Any, tmp_path: Path, tiny_experiment: Callable[..., Path]
) -> None:
    """Prevents: a training whose processes import the working directory's modules. With `-m` that of trainer.py is Python's own doing."""
    if "-m" in way:
        (foreign / "trainer.py").unlink()
    config = tiny_experiment(tmp_path / "run")
    (shards,) = (finished.store / "shards").iterdir()
    words = [BIN / "torchrun", "--nproc-per-node=1", *way, "run", f"config={config}", f"shards={shards}", "train.epochs=1"]
    process = start(*words, folder=foreign)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0 and "student saved in" in output and not (tmp_path / "imported").exists(), output


def test_a_worker_that_cannot_start_is_told_at_once(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: "its worker died 3 times (The actor died because of an error", after three tries and without the cause."""
    (tmp_path / "broken").mkdir()
    # Only in workers. The module of the actor imports these two.
    code = "import sys\nif 'default_worker' in ' '.join(sys.argv):\n    sys.modules['pipeline.executors.worker'] = None\n"
    (tmp_path / "broken" / "sitecustomize.py").write_text(code + "    sys.modules['pipeline.plan'] = None\n")
    config = tiny_experiment(tmp_path / "run")
    words = (BIN / "prep", "run", f"config={config}", "runner=ray", "runner.workers=1")
    process = start(*words, PYTHONPATH=str(tmp_path / "broken"))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == EXIT_FAILED and "Traceback" not in output, output
    assert "no node is left that can do the work" in output and "pipeline.executors.worker" in output.splitlines()[-1], output


def test_a_kill_9_leaves_nothing_for_ever(finished: Any, tmp_path: Path, tiny_experiment: Callable[..., Path], parquet_files: Any) -> None:
    """Prevents: half shards that stay in the store after the run that goes on, or one that sweeps away what it needs."""
    config = tiny_experiment(tmp_path / "run")
    store = config.parent / "store"
    for stage in ("embed", "teacher_scores", "shards"):
        process = start(BIN / "prep", "run", f"config={config}")
        deadline = time.monotonic() + 300
        while not list(store.glob(f"{stage}/*/.*.tmp")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.0005)
        process.kill()
        process.communicate(timeout=180)
    # Whatever the kills have left, and what must be found: a quarantine's, a segment's, the digests'.
    for path in ("digests.json", f"teacher_logits/{next((store / 'teacher_logits').iterdir()).name}/x.parquet"):
        left = store / path
        (left.parent / f".{left.name}.{this_place()}-4194305-0123456789ab.tmp").touch()
    shutil.rmtree(store / "teacher_scores")
    process = start(BIN / "prep", "run", f"config={config}")
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert not list(store.rglob(".*.tmp")) and parquet_files(store) == parquet_files(finished.store)
