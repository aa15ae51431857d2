"""Where a user has something written: looked at before the work, and never replaced unless it is a regular file of the same kind.

A name that is free, or of a regular file, is written whole or not at all. A link stays, and its target is written. A device or a pipe
(`/dev/stdout`, `/dev/null`, `>(gzip)`) gets the finished bytes as a stream.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

from data.errors import RunFailed, UserError
from data.files.leftovers import remove_leftovers, temporary_name
from data.tables.device_note import NOTE_NAME
from data.tables.manifest import MANIFEST_NAME
from data.tables.shards import kind_of

_HEAD_BYTES = 4096

Kind = Literal["run", "json", "html", "parquet"]
# How files of a kind begin, whole or cut. One that begins otherwise is not overwritten.
_STARTS: dict[Kind, bytes] = {"run": rb"\s*\S+\s+Q0(\s|$)", "json": rb"\{", "html": rb"(?i)<!doctype html", "parquet": rb"PAR1"}


def is_stream(path: str | Path) -> bool:
    """Whether a path is a device, a pipe, or a file that this process's output goes to: written through, never replaced."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    if stat.S_ISREG(mode):  # `out=/dev/stdout > FILE`
        return is_standard_output(path) or is_standard_output(path, 2)
    return stat.S_ISCHR(mode) or stat.S_ISFIFO(mode)


def is_standard_output(path: str | Path, descriptor: int = 1) -> bool:
    """Whether who reads what is written there reads what this process prints too: then nothing else may be printed."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except OSError:  # nothing there, or the descriptor is closed
        return False


@contextlib.contextmanager
def local_output_file(given: str, *, option: str, kind: Kind | None = None) -> Iterator[Path]:
    """A local path to write; a file there must be of the kind. Raises UserError before the block where nothing can, or may, be written."""
    if is_stream(given):
        with _streamed(given, option=option) as path:
            yield path
        return
    path = Path(os.path.realpath(given))
    if given.endswith("/") or os.path.isdir(path):
        raise UserError(f"{option}={given} is a folder; give the name of a file in it")
    if os.path.exists(path) and not path.is_file():
        raise UserError(f"{option}={given} is {kind_of(path)}, which is not written to; give the name of a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        trial = temporary_name(path)  # the longest name that will be made
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise not_writable(path.parent, given, error, option=option) from error
    if path.exists():
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
        if head and kind and not re.match(_STARTS[kind], head):
            found = f"a file of another kind (it begins {head[:20]!r})"
            raise UserError(f"{option}={given} is {found}, which is left as it is; choose another name")
    remove_leftovers(path.parent, of=path.name)
    yield path


def not_writable(folder: Path, given: str, error: OSError, *, option: str) -> UserError:
    """The error for `option=given`, which was to lie in `folder`."""
    blocking = next((one for one in (folder, *folder.parents) if os.path.exists(one) and not one.is_dir()), None)
    why = f"{blocking} is {kind_of(blocking)}, not a folder" if blocking else f"{folder}: {error.strerror}"
    return UserError(f"{option}={given} cannot be written: {why}; choose another place")


@contextlib.contextmanager
def _streamed(given: str, *, option: str) -> Iterator[Path]:
    """A file in a temporary folder, whose bytes go to the stream `given` at the end. A pipe is opened at once: somebody must read it."""
    try:
        stream = os.open(given, os.O_WRONLY | os.O_APPEND)
    except OSError as error:
        raise UserError(f"{option}={given} cannot be written: {error.strerror}; give the name of a file") from error
    try:
        with tempfile.TemporaryDirectory(prefix="adam-") as folder:
            path = Path(folder) / "out"
            yield path
            with open(path, "rb") as source, open(stream, "wb", closefd=False) as file:
                shutil.copyfileobj(source, file)
    except BrokenPipeError as error:
        raise RunFailed(f"{option}={given}: who read it has stopped reading") from error
    finally:
        os.close(stream)


def _is_of_table(name: str) -> bool:
    return name in (MANIFEST_NAME, NOTE_NAME) or name.startswith("part-")


@contextlib.contextmanager
def local_output_folder(given: str, *, option: str, is_own: Callable[[str], bool] = _is_of_table) -> Iterator[Path]:
    """A local folder for a stored table, or for what else `is_own` knows by name. A new one is made, and goes again where it stays empty.

    Raises UserError before the block where it is neither free, nor empty, nor holds one of its own, or cannot be written.
    """
    folder = Path(os.path.realpath(given))
    if os.path.exists(folder) and not folder.is_dir():
        raise UserError(f"{option}={given} is {kind_of(folder)}; give the name of a folder")
    is_new = not os.path.exists(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise not_writable(folder, given, error, option=option) from error
    if names and not any(map(is_own, names)):
        raise UserError(f"{option}={given} is a folder with other files ({names[0]}); give a new or an empty one")
    remove_leftovers(folder)
    try:
        yield folder
    finally:
        if is_new:
            with contextlib.suppress(OSError):  # not empty
                folder.rmdir()


@contextlib.contextmanager
def new_local_folder(given: str, *, option: str = "out") -> Iterator[Path]:
    """A folder that gets its name when the block ends well, with all that was written into it; else nothing of it stays.

    What a killed process left of the same name is removed. Raises UserError before the block where something stands there already, or
    nothing can be written.
    """
    folder = Path(os.path.realpath(given))
    if os.path.exists(folder) and not folder.is_dir():
        raise UserError(f"{option}={given} is {kind_of(folder)}; give the name of a new folder")
    try:
        if folder.is_dir() and (names := sorted(os.listdir(folder))):
            raise UserError(f"{option}={given} is there already and holds {names[0]}; give a new folder, or delete it")
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent, of=folder.name)
        temporary = temporary_name(folder)
        temporary.mkdir()
    except OSError as error:
        raise not_writable(folder.parent, given, error, option=option) from error
    try:
        yield temporary
        os.replace(temporary, folder)  # onto an empty folder, too
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFailed(
                f"no space left while writing {given} ({error.strerror}); free some space and start the same command again"
            ) from error
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
