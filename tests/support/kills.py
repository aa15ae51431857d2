"""Processes that are killed again and again, and a disk that is full."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.children import start


def descendants(process: int, *, title: bytes = b"") -> list[int]:
    """Processes below one, of a title, youngest last."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                continue
    found, front = [], [process]
    while front:
        front = [child for child, parent in parents.items() if parent in front]
        found += front
    titled = []
    for child in found:
        try:
            if (Path("/proc") / str(child) / "cmdline").read_bytes().startswith(title):
                titled.append(child)
        except OSError:
            continue
    return titled


class Zygote:
    """A process that has run the head of a program, imports and patches, and forks a child for each run of its `work`.

    Before the fork nothing may be computed on several threads: a child would have only one of them.
    """

    def __init__(self, name: str, *args: object) -> None:
        self._process = start(name, *args, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin and self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout

    def begin(self, log: Path, *args: object) -> int:
        """Returns the child's process id."""
        print(log, *args, file=self._in, flush=True)
        return int(self._out.readline())

    def end(self) -> int:
        """The child's exit code, negative for a signal."""
        return int(self._out.readline())

    def close(self) -> None:
        self._in.close()
        self._process.wait(timeout=30)


@pytest.fixture(scope="module")
def start_zygote() -> Iterator[Callable[..., Zygote]]:
    """`start_zygote(name, *args)`: a `Zygote` of tests/support/programs/NAME.py, closed with the module's last test."""
    with contextlib.ExitStack() as started:
        yield lambda name, *args: started.enter_context(contextlib.closing(Zygote(name, *args)))


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of 256 KiB; the test is skipped where none can be mounted."""
    folder = tmp_path / "small"
    folder.mkdir()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True)
    except OSError:
        pytest.skip("no mount here")
    if done.returncode:
        pytest.skip("no tmpfs can be mounted here")
    try:
        yield folder
    finally:
        with contextlib.suppress(OSError):
            subprocess.run(["umount", "--lazy", folder], capture_output=True)  # a process that is ending may have it open
