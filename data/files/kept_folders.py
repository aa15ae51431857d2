"""Folders that have to be there as long as a process works in them.

Where one is gone, its file system is: what would be made anew in its place, on the disk below, would be hidden when it comes back.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from data.errors import NotAnswering

SEEN_SECONDS = 5.0  # in which a folder that another host made must be seen
_POLL_SECONDS = 0.2

_kept: list[tuple[Path, Path]] = []  # (what must not be made anew, the folder in it whose absence tells)


class FolderGone(NotAnswering):
    """A folder that other processes made is not there: the same command goes on when it is."""


@contextlib.contextmanager
def kept(folder: Path, *, within: Path) -> Iterator[None]:
    """As long as the block lasts, `make_folder` makes nothing in `within` once `folder` is gone.

    Raises FolderGone where it is not there within SEEN_SECONDS: a network file system may show it late.
    """
    pair = _resolved(within), _resolved(folder)
    deadline = time.monotonic() + SEEN_SECONDS
    while not pair[1].is_dir() and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
    _must_be_there(*pair)
    _kept.append(pair)
    try:
        yield
    finally:
        _kept.remove(pair)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it, if they lack. Raises FolderGone where a kept one is gone, of which it would take the place."""
    refuse_if_gone(folder)
    folder.mkdir(parents=True, exist_ok=True)


def refuse_if_gone(folder: Path) -> None:
    """Raises FolderGone where a kept folder is gone, and this one lies in what must not be made anew."""
    resolved = _resolved(folder)
    for within, kept_folder in list(_kept):  # other threads begin and end theirs
        if resolved.is_relative_to(within):
            _must_be_there(within, kept_folder)


def _must_be_there(within: Path, folder: Path) -> None:
    if not folder.is_dir():
        raise FolderGone(
            f"{folder} is not there, so {within} is not the folder in which this work was begun: is its file system mounted? "
            "Start the same command again when it is"
        )


def _resolved(path: Path) -> Path:
    return Path(os.path.realpath(path))
