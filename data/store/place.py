"""Where a store lies, as whole files under names: what every job that shares it sees, and what only one of several jobs may make.

Shards, manifests and segments are written once, whole, under names that say what they hold. So a store needs no locks, no renames and no
appends; and what two jobs settle between them is a file that only one of them can make.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from data.files.kept_folders import make_folder
from data.files.leftovers import remove_leftovers, temporary_name
from data.remote.object_store import is_remote


@dataclass(frozen=True)
class Listed:
    """What a listing says of a file."""

    bytes: int
    changed: float  # seconds since 1970, by the clock of the file system or of the object store
    version: str  # differs wherever the content does


class Place(Protocol):
    """Files by their names relative to the store, as `teacher_scores/0ab1/part-00000-of-00004.parquet`."""

    address: str  # as the user gave it
    root: Path  # the folder in which this machine reads and writes the files; of an object store a copy

    def files(self, below: str = "") -> dict[str, Listed]:
        """All files in a folder and below it, as they are now; none where it is not there."""

    def read(self, name: str) -> bytes | None:
        """A small file's content as it is now, None where there is none."""

    def put(self, name: str, content: bytes) -> None:
        """Write a small file whole, in the place of one that may be there."""

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """Write a small file whole if there is none of the name. Of several that try at once one gets True."""

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""

    def sweep(self, below: str, *, now: float) -> None:
        """Remove hidden files in a folder and below it that killed processes left half made. `now` is by the clock of listings."""

    def refresh(self) -> None:
        """See what is there now, where that takes asking: `root` holds the manifests and notes, and no file that is gone."""


class LocalPlace:
    """A folder of this machine, or of a network file system."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder)
        self.root = folder

    def files(self, below: str = "") -> dict[str, Listed]:
        """By walking the folder; hidden files, which are being written, are left out."""
        found: dict[str, Listed] = {}
        for folder, _, names in os.walk(self.root / below):
            prefix = "" if Path(folder) == self.root else f"{Path(folder).relative_to(self.root).as_posix()}/"
            for name in names:
                with contextlib.suppress(FileNotFoundError):
                    if not name.startswith("."):
                        status = os.stat(f"{folder}/{name}")
                        version = f"{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"
                        found[f"{prefix}{name}"] = Listed(status.st_size, status.st_mtime, version)
        return found

    def read(self, name: str) -> bytes | None:
        """The file's bytes."""
        try:
            return (self.root / name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put(self, name: str, content: bytes) -> None:
        """By a file of another name that is renamed. Neither this nor the next is forced to the disk."""
        path = self.root / name
        with _written(path, content) as temporary:
            os.replace(temporary, path)

    def put_if_absent(self, name: str, content: bytes) -> bool:
        """By a hard link, which fails where the name is taken, on network file systems too."""
        path = self.root / name
        with _written(path, content) as temporary:
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            except OSError:  # no hard links here: made empty, then filled
                return _created(path, content)
        return True

    def delete(self, name: str) -> None:
        """Unlink it."""
        (self.root / name).unlink(missing_ok=True)

    def sweep(self, below: str, *, now: float) -> None:
        """By their names, which say who writes them."""
        for folder, _, _ in os.walk(self.root / below):
            remove_leftovers(Path(folder))

    def refresh(self) -> None:
        """Nothing: the folder shows what is there."""


@contextlib.contextmanager
def _written(path: Path, content: bytes) -> Iterator[Path]:
    """A file beside `path` with the content; removed at the end if it is still there."""
    make_folder(path.parent)
    temporary = temporary_name(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)  # not forced to the disk: what jobs settle between them is worth nothing after a power failure
        yield temporary
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _created(path: Path, content: bytes) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with open(descriptor, "wb") as file:
        file.write(content)
    return True


def open_place(store: str) -> Place:
    """The place of a store. Raises UserError where nothing opens such an address."""
    if is_remote(store):
        from data.store.remote import RemotePlace

        return RemotePlace(store)
    return LocalPlace(Path(store))
