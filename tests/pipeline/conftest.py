"""Processes that are killed: started quickly, from one that has everything imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Forks a child for each line of its input: a fresh interpreter a kill would take seconds.
_FORK_A_RUN_A_LINE = """
import os, sys, traceback
for line in sys.stdin:
    path, *words = line.split()
    child = os.fork()
    if child:
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the other one talks there
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    code = 1
    try:
        work(words)
        code = 0
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        traceback.print_exc()
    os._exit(code)
"""


class Zygote:
    """A process that has run `code`, which imports, patches and defines `work(words)`; it forks a child for each run of that.

    A child may note what it does in the file open as `log`. Before the fork nothing may be computed on several threads: a child would
    have only one of them.
    """

    def __init__(self, code: str) -> None:
        words = [sys.executable, "-c", code + _FORK_A_RUN_A_LINE]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout

    def begin(self, log: Path, *words: object) -> int:
        """Returns the child's process id."""
        print(log, *words, file=self._in, flush=True)
        return int(self._out.readline())

    def end(self) -> int:
        """The child's exit code, negative for a signal."""
        return int(self._out.readline())

    def close(self) -> None:
        self._in.close()
        self._process.wait(timeout=30)


@pytest.fixture(scope="module")
def start_zygote() -> Iterator[Callable[[str], Zygote]]:
    """`start_zygote(code)`: a `Zygote`, closed with the module's last test."""
    started: list[Zygote] = []

    def start(code: str) -> Zygote:
        started.append(Zygote(code))
        return started[-1]

    yield start
    for zygote in started:
        zygote.close()
