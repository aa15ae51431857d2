"""The folder that a run writes to: fit for it before any work is paid, and nobody else's as long as the run lives.

    OUTPUT/running.json     host, process and time of the run that writes here; gone when it ends

No lock of the operating system holds on every network file system, so this one is a file. Whether its owner lives is asked of the kernel
where that is this machine's, so a killed run can be started again at once. On another machine it is a heartbeat: the file is touched
every few seconds, and who finds it watches for a while, by its own clock alone, whether that happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from data.command import in_words
from data.config.settings import Train
from data.errors import RunFailed, UserError
from data.files.leftovers import process_start, temporary_name, this_place
from data.files.what_lies import stored_table

RUN_NAME, RESULT_NAME = "run.json", "result.json"
RESULT_REMEDY = "delete it and start the same command again: nothing is trained again, the last checkpoint is there"
_LOCK = "running.json"
_FILES, _FOLDERS = (RUN_NAME, RESULT_NAME, _LOCK, "metrics.jsonl"), ("checkpoints", "tensorboard", "best")
_BEAT_SECONDS = 5.0
_SETTLE_SECONDS = 0.1
_WATCH_SECONDS = 20.0  # some beats, and what a network file system may hold back


def check_place(output: Path) -> None:
    """Raises UserError where a run cannot or must not write: no folder, no permission, a table's folder or one in it."""
    setting, other = f"train.output={output}", "choose another train.output=FOLDER"
    there = next(path for path in (output.absolute(), *output.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        raise UserError(f"{setting}: {there} is no folder; {other}")
    if not os.access(there, os.W_OK | os.X_OK) and not (output / RESULT_NAME).is_file():
        raise UserError(f"{setting}: no permission to write in {there}; {other}")
    own = output.resolve()
    table = next((folder for folder in (own, *own.parents) if stored_table(folder)), None)
    if table and not (output / RUN_NAME).is_file():  # a run that was begun there goes on
        raise UserError(f"{setting}: {table} is the folder of a table that `prep` made; {other}")


def check_names(train: Train) -> None:
    """Raises UserError where another kind of thing has a name that the run needs in its folder."""
    output, other = Path(train.output), "choose another train.output=FOLDER"
    for name in (*_FOLDERS, train.task):
        if os.path.lexists(output / name) and not (output / name).is_dir():
            raise UserError(f"{output / name} is no folder, and the run keeps one of that name; {other}")
    for name in _FILES:
        if os.path.lexists(output / name) and not (output / name).is_file():
            raise UserError(f"{output / name} is no file, and the run keeps one of that name; {other}")


class OutputLock:
    """A run's hold on its folder."""

    def __init__(self, output: Path) -> None:
        self._output, self._path = output, output / _LOCK
        self._own = json.dumps({**_me(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "token": uuid.uuid4().hex}).encode()

    def take(self) -> None:
        """Raises UserError where another run lives that writes there."""
        while True:
            if self._made():
                time.sleep(_SETTLE_SECONDS)  # one that was just taking a dead run's file away may have put another's back over this one
            there = _look(self._path)
            if there is not None and there[0] == self._own:
                return
            if there is None:
                continue  # it has just ended
            holder = _holder(there[0])
            if self._lives(holder, there):
                who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}" if holder else "its owner is not known"
                raise UserError(
                    f"train.output={self._output}: another run is writing there ({who}); wait until it ends, stop it, or choose another "
                    "train.output=FOLDER"
                )
            self._remove(there[0])

    def keep(self) -> None:
        """Raises RunFailed where another run has taken the folder, which took this one for dead."""
        if not self.beat() and not self._made():
            raise RunFailed(f"train.output={self._output}: another run has taken the folder over; this one ends and writes no more")

    def beat(self) -> bool:
        """Show that this run lives, where the folder is its own still."""
        if own := self._is_own():
            os.utime(self._path)
        return own

    def release(self) -> None:
        """Let others in."""
        if self._is_own():
            self._path.unlink(missing_ok=True)

    def _is_own(self) -> bool:
        there = _look(self._path)
        return there is not None and there[0] == self._own

    def _made(self) -> bool:
        try:
            file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        except FileExistsError:
            return False
        with os.fdopen(file, "wb") as opened:
            opened.write(self._own)
        return True

    def _lives(self, holder: dict[str, Any], there: tuple[bytes, int]) -> bool:
        if holder and holder["machine"] == _me()["machine"]:
            return process_start(holder["pid"]) == holder["process"]
        where = f"process {holder['pid']} on {holder['host']}" if holder else "a run that did not say which"
        print(f"{self._output} was taken by {where}: watching for {_WATCH_SECONDS:.0f} s whether it lives", file=sys.stderr, flush=True)
        end = time.monotonic() + _WATCH_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, _WATCH_SECONDS / 10))
            if (now := _look(self._path)) != there:
                return now is not None
        return False

    def _remove(self, dead: bytes) -> None:
        # Renamed first: of two that find the same dead run only one may remove its file, and none the other's new one.
        doomed = temporary_name(self._path)
        with contextlib.suppress(FileNotFoundError):
            self._path.rename(doomed)
            if (found := _look(doomed)) and found[0] != dead:
                doomed.rename(self._path)
            doomed.unlink(missing_ok=True)


@contextlib.contextmanager
def held(output: Path) -> Iterator[Callable[[], None]]:
    """Hold a folder, which is made where there is none. Raises UserError where another run lives that writes there.

    Yields what to call before each write: it raises RunFailed where another run, which took this one for dead, has the folder now.
    """
    lock, ended = OutputLock(output), threading.Event()
    try:
        output.mkdir(parents=True, exist_ok=True)
        lock.take()
    except OSError as error:  # what permissions do not tell: a full disk, /proc
        raise UserError(f"train.output={output} cannot be written ({in_words(error)}); choose another train.output=FOLDER") from error

    def beat() -> None:
        while not ended.wait(_BEAT_SECONDS):
            with contextlib.suppress(OSError):  # the run itself looks before it writes
                lock.beat()

    heart = threading.Thread(target=beat, name="heartbeat", daemon=True)
    heart.start()
    try:
        yield lock.keep
    finally:
        ended.set()
        heart.join()
        with contextlib.suppress(OSError):
            lock.release()


def _look(path: Path) -> tuple[bytes, int] | None:
    """Content and time of the last change, as the server has them: opened anew. None where there is no such file."""
    try:
        with open(path, "rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _holder(content: bytes) -> dict[str, Any]:
    """Who wrote it; empty where that cannot be read: it is just being written, or was cut short by a kill."""
    try:
        holder = json.loads(content)
        return holder if {"host", "machine", "pid", "process", "since"} <= holder.keys() else {}
    except (ValueError, AttributeError):
        return {}


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "machine": this_place(), "pid": os.getpid(), "process": process_start(os.getpid())}
