"""Who may write in a run's folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from data.errors import RunFailed, UserError
from data.files.leftovers import process_start
from trainer.saving import folder_lock
from trainer.saving.folder_lock import held

LOCK = "running.json"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_lock, "_BEAT_SECONDS", 0.05)
    monkeypatch.setattr(folder_lock, "_WATCH_SECONDS", 0.5)


def locked_by(output: Path, **changes: Any) -> Path:
    """A lock of this process, but for some of it."""
    output.mkdir(exist_ok=True)
    (output / LOCK).write_text(json.dumps({**folder_lock._me(), "since": "2020-01-01 00:00:00", "token": "another", **changes}))
    return output


def test_a_folder_is_held_as_long_as_the_run_lives(tmp_path: Path) -> None:
    """Prevents: two runs that write the same checkpoints, of which one cuts the other's lines out of metrics.jsonl."""
    with held(tmp_path / "run"), pytest.raises(UserError, match=rf"another run is writing there \(process {os.getpid()} on ") as told:
        held(tmp_path / "run").__enter__()
    assert os.uname().nodename in str(told.value) and "train.output" in str(told.value)
    assert not list((tmp_path / "run").iterdir())
    with held(tmp_path / "run"):
        pass


def test_a_killed_run_of_this_machine_holds_nothing(tmp_path: Path) -> None:
    """Prevents: a run that cannot go on after kill -9, or waits for a heartbeat that nobody can give: here the kernel knows."""
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    of_child = {"pid": child.pid, "process": process_start(child.pid)}
    with pytest.raises(UserError, match=f"process {child.pid} on"), held(locked_by(tmp_path / "run", **of_child)):
        pass
    child.kill()
    while process_start(child.pid) is not None:  # until it is a zombie, which nobody has waited for
        time.sleep(0.01)
    began = time.monotonic()
    with held(locked_by(tmp_path / "run", **of_child)):
        pass
    child.wait()
    with held(locked_by(tmp_path / "run", **of_child)):
        pass
    with held(locked_by(tmp_path / "run", process="1")):  # its number was given to a process that lives
        assert time.monotonic() - began < 0.5


def test_a_run_of_another_machine_lives_as_long_as_its_heart_beats(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: a second run beside one on another node, and a requeued job that finds its own dead predecessor in the way."""
    output, there = tmp_path / "run", tmp_path / "run" / LOCK
    locked_by(output, machine="another", host="node7", pid=1)
    os.utime(there, (1, 1))  # clocks of machines differ, by years where it goes wrong: only a change counts
    ended = threading.Event()

    def beat() -> None:
        while not ended.wait(0.05):
            os.utime(there)

    heart = threading.Thread(target=beat)
    heart.start()
    with pytest.raises(UserError, match="process 1 on node7"), held(output):
        pass
    ended.set()
    heart.join()
    with held(output):
        assert json.loads(there.read_text())["pid"] == os.getpid()
    assert "process 1 on node7: watching" in capsys.readouterr().err


@pytest.mark.medium
@pytest.mark.parametrize("content", [b"", b'{"pid": 1', b"[1]", b'{"pid": "x"}', b"\xff"])
def test_a_lock_that_says_nothing_is_watched(tmp_path: Path, content: bytes) -> None:
    """Prevents: a traceback, or a folder that is locked for ever, where a kill or a full disk cut the lock short."""
    (tmp_path / LOCK).write_bytes(content)
    with held(tmp_path):
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()


def test_a_run_that_was_taken_for_dead_writes_no_more(tmp_path: Path) -> None:
    """Prevents: a process that was stopped, or cut off from the file system, and wakes up beside the run that has taken its place."""
    with held(tmp_path) as keep:
        keep()
        (tmp_path / LOCK).unlink()  # by a person: the run is still here, and says so again
        keep()
        assert json.loads((tmp_path / LOCK).read_text())["pid"] == os.getpid()
        locked_by(tmp_path, host="node7")
        with pytest.raises(RunFailed, match="taken the folder over"):
            keep()
    assert json.loads((tmp_path / LOCK).read_text())["host"] == "node7"


@pytest.mark.medium
def test_of_two_that_find_a_dead_run_one_gets_the_folder(tmp_path: Path) -> None:
    """Prevents: two that take away the same dead lock, one of them the other's new one."""
    for _ in range(8):
        locked_by(tmp_path, process="1")
        start, held_by = threading.Barrier(4), list[int]()

        def take(number: int, start: threading.Barrier = start, held_by: list[int] = held_by) -> None:
            start.wait()
            try:
                with held(tmp_path):
                    held_by.append(number)
                    start.wait()
            except UserError:
                start.wait()

        threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(held_by) == 1


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc here")
def test_a_folder_that_cannot_be_made_is_told() -> None:
    """Prevents: a traceback where permissions allow what the file system does not."""
    with pytest.raises(UserError, match=r"train\.output=/proc/run cannot be written \(/proc/run: No such file"), held(Path("/proc/run")):
        pass
