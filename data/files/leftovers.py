"""Temporary files: their names say who writes them, so that what a killed process left can be told from what one is writing.

    .part-00000-of-00004.parquet.1f0c9a2b-4711-8d2e6f0a1b3c.tmp      .<final name>.<place>-<process>-<random>.tmp

A place is a boot of a machine and a namespace of process ids in it: there, a process that is gone is known for certain. Other places are
hosts of a network file system, containers, a machine that was started again: a file of theirs is abandoned when it is a day old.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import re
import shutil
import time
import uuid
from pathlib import Path

ABANDONED_SECONDS = 24 * 3600
# As `temporary_name` makes them; those of older versions have no place and process.
_OURS = re.compile(r"\.(?P<final>.+?)\.(?:(?P<place>[0-9a-f]{8})-(?P<process>[0-9]+)-)?[0-9a-f]{12,32}\.tmp")


@functools.cache
def this_place() -> str:
    """Where this process runs, see above."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text() + os.readlink("/proc/self/ns/pid")
    except OSError:
        boot = platform.node()
    return hashlib.blake2b(boot.encode(), digest_size=4).hexdigest()


def temporary_name(path: Path) -> Path:
    """A name of its own beside `path`, hidden, for what shall be `path` when it is whole."""
    return path.with_name(f".{path.name}.{this_place()}-{os.getpid()}-{uuid.uuid4().hex[:12]}.tmp")


def remove_leftovers(folder: Path, *, of: str = "", held: bool = False) -> None:
    """Remove the temporary files and folders right in `folder` that nobody writes any more; with `of` those of one final name.

    `held`: whether all of them are such, since nobody but the caller may write there.
    """
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            ours = _OURS.fullmatch(name)
            if ours and of in ("", ours["final"]) and (held or _is_abandoned(folder / name, ours)):
                with contextlib.suppress(OSError):
                    shutil.rmtree(folder / name) if (folder / name).is_dir() else (folder / name).unlink()


def _is_abandoned(path: Path, writer: re.Match[str]) -> bool:
    if writer["place"] == this_place():
        return process_start(int(writer["process"])) is None
    try:
        return time.time() - path.stat().st_mtime > ABANDONED_SECONDS
    except OSError:
        return False  # gone


def process_start(process: int) -> str | None:
    """When a process of this place began, in the kernel's ticks, since numbers are used again; None where it is dead."""
    try:
        os.kill(process, 0)
        state, *rest = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except ProcessLookupError:
        return None
    except OSError:  # another user's, or a system without /proc
        return ""
    return None if state in "ZX" else rest[18]
