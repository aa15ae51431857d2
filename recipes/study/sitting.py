"""A sitting: commands as child processes, until the time is up."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from data.errors import EXIT_COMPLETE, EXIT_NOTHING_LEFT, RunFailed

_PACKAGES = {"prep": "pipeline", "train": "trainer", "retrieve": "retrieval"}


class TimeUp(Exception):
    """The sitting's time is over: what was under way goes on in the next one."""


@dataclass
class Sitting:
    """What is left of the hours that were given. None has no end."""

    hours: float | None
    log: Path  # what the commands say

    def __post_init__(self) -> None:
        self._ends = None if self.hours is None else time.monotonic() + 3600 * self.hours
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a child is ended with this process

    @property
    def left(self) -> float | None:
        """Seconds; None without an end."""
        return None if self._ends is None else self._ends - time.monotonic()

    def check(self) -> None:
        """Raises TimeUp where nothing is left."""
        if self.left is not None and self.left <= 0:
            raise TimeUp

    def command(self, name: str, *args: str) -> tuple[int, float]:
        """(exit code, processor seconds) of `prep`, `train`, `retrieve`, or of a script by its path.

        The code is 0, or 3: nothing is left to learn. Raises TimeUp where it had to be ended, and RunFailed where it failed.
        """
        self.check()
        program = ["-P", "-m", _PACKAGES[name]] if name in _PACKAGES else [name]
        self.log.parent.mkdir(parents=True, exist_ok=True)
        began = children_seconds()
        with open(self.log, "ab") as log:
            log.write(" ".join(["\n$", name, *args, "\n"]).encode())
            log.flush()
            environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}
            child = subprocess.Popen(
                [sys.executable, *program, *args], stdout=log, stderr=subprocess.STDOUT, env=environment, process_group=0
            )
            try:
                code = child.wait(self.left)
            except subprocess.TimeoutExpired as late:
                _end(child)
                raise TimeUp from late
            except BaseException:
                _end(child)
                raise
        if code not in (EXIT_COMPLETE, EXIT_NOTHING_LEFT):
            raise RunFailed(f"{name} {' '.join(args[:2])} ended with {code}: its last words are at the end of {self.log}")
        return code, children_seconds() - began


def children_seconds() -> float:
    """Processor time of all commands that have ended, of all their threads: what else the machine does is not in it."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ask the child to save and end, and wait for it."""
    child.terminate()
    try:
        child.wait(120)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
