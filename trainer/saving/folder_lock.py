"""A run's hold on its folder: nobody else writes there as long as the run lives.

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
from data.errors import RunFailed, UserError
from data.files.leftovers import process_start, temporary_name, this_place
from trainer.saving.output_folder import LOCK_NAME

_BEAT_SECONDS = 5.0
_SETTLE_SECONDS = 0.1
_WATCH_SECONDS = 20.0  # some beats, and what a network file system may hold back


@contextlib.contextmanager
def held(output: Path) -> Iterator[Callable[[], None]]:
    """Hold a folder, which is made where there is none. Raises UserError where another run lives that writes there.

    Yields what to call before each write: it raises RunFailed where another run, which took this one for dead, has the folder now.
    """
    lock = _Lock(output)
    ended = threading.Event()
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
            if lock.is_own():
                (output / LOCK_NAME).unlink(missing_ok=True)


class _Lock:
    def __init__(self, output: Path) -> None:
        self._output = output
        self._path = output / LOCK_NAME
        self._own = json.dumps({**_me(), "since": time.strftime("%Y-%m-%d %H:%M:%S"), "token": uuid.uuid4().hex}).encode()

    def take(self) -> None:
        """Raises UserError where another run lives that writes there."""
        while True:
            if self._made():
                time.sleep(_SETTLE_SECONDS)  # one that was just taking a dead run's file away may have put another's back over this one
            found = _look(self._path)
            if found is None:
                continue  # it has just ended
            if found[0] == self._own:
                return
            holder = _holder(found[0])
            if self._lives(holder, found):
                raise UserError(
                    f"train.output={self._output}: another run is writing there (process {holder['pid']} on {holder['host']}, since "
                    f"{holder['since']}); wait until it ends, stop it, or choose another train.output=FOLDER"
                )
            # Renamed first: of two that find the same dead run only one may remove its file, and none the other's new one.
            doomed = temporary_name(self._path)
            with contextlib.suppress(FileNotFoundError):
                self._path.rename(doomed)
                if (moved := _look(doomed)) and moved[0] != found[0]:
                    doomed.rename(self._path)
                doomed.unlink(missing_ok=True)

    def keep(self) -> None:
        """Raises RunFailed where another run has taken the folder, which took this one for dead."""
        if not self.beat() and not self._made():
            raise RunFailed(f"train.output={self._output}: another run has taken the folder over; this one ends and writes no more")

    def beat(self) -> bool:
        """Show that this run lives. False where the folder is not its own any more."""
        if own := self.is_own():
            os.utime(self._path)
        return own

    def is_own(self) -> bool:
        """Whether the file is this run's."""
        found = _look(self._path)
        return found is not None and found[0] == self._own

    def _made(self) -> bool:
        with contextlib.suppress(FileExistsError), open(self._path, "xb") as file:
            file.write(self._own)
            return True
        return False

    def _lives(self, holder: dict[str, Any], found: tuple[bytes, int]) -> bool:
        if holder["machine"] == this_place():
            return process_start(holder["pid"]) == holder["process"]
        taken = f"{self._output} was taken by process {holder['pid']} on {holder['host']}"
        print(f"{taken}: watching for {_WATCH_SECONDS:.0f} s whether it lives", file=sys.stderr, flush=True)
        end = time.monotonic() + _WATCH_SECONDS
        while time.monotonic() < end:
            time.sleep(min(1.0, _WATCH_SECONDS / 10))
            if (now := _look(self._path)) != found:
                return now is not None
        return False


def _look(path: Path) -> tuple[bytes, int] | None:
    """Content and time of the last change, as the server has them: opened again each time. None where there is no such file."""
    try:
        with open(path, "rb") as file:
            return file.read(), os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _holder(content: bytes) -> dict[str, Any]:
    """Who wrote it; nobody known where that cannot be read: it is just being written, or was cut short by a kill."""
    unknown = dict.fromkeys(_me(), "unknown") | {"since": "an unknown time"}
    try:
        return {**unknown, **json.loads(content)}
    except (ValueError, TypeError):
        return unknown


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "machine": this_place(), "pid": os.getpid(), "process": process_start(os.getpid())}
