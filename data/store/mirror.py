"""The mirror of a store on an object store: what is written is put there first, what is read is copied from there once.

A path in a mirror stands for an object (`data.store.paths`), so whoever reads and writes tables need not know where they lie. Every
function here leaves a path that is in no mirror as it is. A file of a mirror is believed while a note beside the mirrors knows it,

    CACHE/copies/s3/bucket/prefix/...    [stamp of the file, version of the object, digest of the content]

and, where the store was listed, while the listing has the object in that version. The mirror is a cache: delete it while nothing runs.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TypeVar

from data.digests import bytes_digest, file_digest
from data.errors import DamagedShard, RunFailed, UserError
from data.files.leftovers import temporary_name
from data.remote.folders import folder_of
from data.remote.object_store import Entry, RemotePath
from data.store.paths import address_of

THREADS = 8  # objects on their way at once
_END_BYTES = 1 << 16  # of a Parquet file, in which its footer mostly lies
_OWN = ("digests.json", "seen.json")  # of the files of this machine: no part of the store
_TASKS = ("journal", "claims")  # folders of many small objects, which whoever wants them reads
_MANIFEST = "manifest.json"

Result = TypeVar("Result")

_listed: dict[str, Entry] = {}  # objects by address, as they were listed last, or put from here since
_whole: set[str] = set()  # addresses below which all objects are listed


@dataclass(frozen=True)
class _Copy:
    """What is known of a file of a mirror."""

    stamp: str
    version: str
    digest: str


def is_mirrored(path: Path) -> bool:
    """Whether a path stands for an object."""
    return address_of(path) is not None


def refresh(folder: Path) -> None:
    """List what lies below a folder, forget files that are not there any more, and read what is new of manifests and notes.

    A request for 1,000 objects, and one for each manifest or note that changed. Raises UserError and its kinds where that fails.
    """
    address = address_of(folder)
    if address is None:
        return
    started = time.time()
    found = {f"{address}/{name}": entry for name, entry in RemotePath.of(address).find().items()}
    for known in [known for known in list(_listed) if known.startswith(f"{address}/")]:
        _listed.pop(known, None)
    _listed.update(found)
    _whole.add(address)
    for path in list(_files(folder)):
        if address_of(path) not in found and path.name not in _OWN and not path.name.startswith("."):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_ctime < started - 1:  # what gets its name now was put before
                    _forget(path)
    notes = []
    for known in found:
        path = folder / known.removeprefix(f"{address}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".json" and path.parent.name not in _TASKS:
            notes.append(path)
    _in_threads(fresh, notes)


def seen(folder: Path) -> Path:
    """A folder whose folders and notes are here, as they were listed last."""
    address = address_of(folder)
    if address is not None and not _is_listed(f"{address}/any"):
        refresh(folder)
    return folder


def forget_listings() -> None:
    """Know of no object, as a process that begins."""
    _listed.clear()
    _whole.clear()


def listed(path: Path) -> Entry | None:
    """The object of a path in a mirror as it was listed last, for whoever has listed the store."""
    address = address_of(path)
    assert address is not None
    return _listed.get(address) if _is_listed(address) else _entry(address)


def exists(path: Path) -> bool:
    """Whether there is such a file, here or in the store. One that was listed is not asked for again."""
    address = address_of(path)
    return path.exists() if address is None else _entry(address) is not None


def size_of(path: Path) -> int:
    """Bytes of a file, here or in the store. Raises FileNotFoundError."""
    address = address_of(path)
    return path.stat().st_size if address is None else _there(path, address).bytes


def files(folder: Path, end: str) -> list[Path]:
    """Visible files right in a folder whose names end so, as they are now. Nothing is copied: ask for those that are wanted."""
    address = address_of(folder)
    if address is None:
        return sorted(folder.glob(f"[!.]*{end}"))
    refresh(folder)
    names = [known.removeprefix(f"{address}/") for known in list(_listed) if known.startswith(f"{address}/")]
    return [folder / name for name in sorted(names) if name.endswith(end) and "/" not in name]


def fresh(path: Path, *, now: bool = False) -> Path:
    """A small file as the store holds it, by the last listing, or `now`; no file where it holds none."""
    address = address_of(path)
    if address is None:
        return path
    known = _is_listed(address) and not now
    entry = _listed.get(address)
    copy = _copy_of(path)
    if known and entry is not None and copy is not None and copy.version == entry.version:
        return path
    remote = RemotePath.of(address)
    content = _read(remote, entry) if entry is not None or not known else None
    if content is not None and not known and (entry is None or not _may_be_of(content, entry)):
        entry = remote.entry_or_none()  # others have put it since: from now on it counts as listed
        if entry is not None:
            _listed[address] = entry
            content = content if _may_be_of(content, entry) else _read(remote, entry)
    if content is None:
        _listed.pop(address, None)
        _forget(path)
    elif copy is None or copy.digest != bytes_digest(content) or entry is not None:
        with _new_file(path) as temporary:
            temporary.write_bytes(content)
            version = entry.version if entry is not None and entry.bytes == len(content) else ""
            _note(path, _Copy(_stamp(temporary), version, bytes_digest(content)))
    return path


def present(path: Path, *, digest: str = "") -> Path:
    """A file that never changes, to be read here: copied where it is not, and compared with the digest that its table's manifest records.

    Raises FileNotFoundError where the store has none; DamagedShard where what it has is not what is recorded, twice.
    """
    address = address_of(path)
    if address is None:
        return path
    copy = _copy_of(path)
    entry = _listed.get(address)
    is_right = copy is not None and digest in ("", copy.digest) and (entry is None or entry.version == copy.version)
    if is_right and (entry is not None or not _is_listed(address)):
        return path
    remote, entry = RemotePath.of(address), _there(path, address)
    recorded = digest or _recorded(path)
    md5 = "" if recorded else entry.md5
    if any(_is_copied(remote, entry, path, digest=recorded, md5=md5) for _ in range(2)):
        return path
    if md5 and remote.has_encrypted_version() and _is_copied(remote, entry, path, digest="", md5=""):
        return path
    said = f"{_MANIFEST} records (digest {recorded})" if recorded else f"the store says (MD5 {md5})"
    raise DamagedShard(
        f"{address} is not the file that {said}, fetched twice: it is damaged or was replaced; delete it and start the same `prep run` "
        "again: only this is built again"
    )


def present_all(paths: Iterable[Path]) -> list[Path]:
    """Several at a time. Raises FileNotFoundError where one is gone."""
    paths = list(paths)
    return _in_threads(present, paths) if any(map(is_mirrored, paths)) else paths


def end_of(path: Path) -> bytes | None:
    """The end of a Parquet file that lies in the store and not here, the footer in it; None where it is to be read from its file.

    Raises FileNotFoundError where the store has none.
    """
    address = address_of(path)
    if address is None or _copy_of(path) is not None:
        return None
    remote, size = RemotePath.of(address), _there(path, address).bytes
    end = remote.read(max(0, size - _END_BYTES), size) or b""
    length = int.from_bytes(end[-8:-4], "little") + 8
    return end if length <= len(end) or length > size else remote.read(size - length, size)


def version_of(path: Path) -> str | None:
    """What tells that an object was not written again, on every machine; None where the path is no object's. Raises FileNotFoundError."""
    address = address_of(path)
    if address is None:
        return None
    entry = _there(path, address)
    return f"{entry.bytes}|{entry.version}"


def _entry(address: str) -> Entry | None:
    """An object as it was listed last, or, of one that was not, as it is now: others may have put it since."""
    return _listed.get(address) or RemotePath.of(address).entry_or_none()


def _there(path: Path, address: str) -> Entry:
    entry = _entry(address)
    if entry is None:
        _forget(path)
        raise FileNotFoundError(errno.ENOENT, "gone", str(path))
    return entry


def put(temporary: Path, path: Path) -> None:
    """Put a finished file that is about to get its name here."""
    address = address_of(path)
    if address is None:
        return
    entry = RemotePath.of(address).put(temporary)
    _listed[address] = entry
    _note(path, _Copy(_stamp(temporary), entry.version, file_digest(temporary)))


def remove(path: Path) -> None:
    """Remove a file, if it is there."""
    if address := address_of(path):
        RemotePath.of(address).delete()
        _listed.pop(address, None)
        _forget(path)
    else:
        path.unlink(missing_ok=True)


def remove_tree(folder: Path) -> None:
    """Remove a folder with all that is in it."""
    if address := address_of(folder):
        names = RemotePath.of(address).find()
        _in_threads(remove, [folder / name for name in names])
    shutil.rmtree(folder, ignore_errors=True)


def set_aside(path: Path, aside: Path) -> bool:
    """Give a damaged file another name. Returns whether it has: where the copy alone was damaged, the object is copied again and stays.

    Raises FileNotFoundError where it is gone.
    """
    address, there = address_of(path), address_of(aside)
    if address is None or there is None:
        path.replace(aside)
        return True
    damaged = file_digest(path)
    _forget(path)
    if file_digest(present(path)) != damaged:
        return False
    RemotePath.of(there).put(path)
    remove(path)
    return True


def _is_copied(remote: RemotePath, entry: Entry, path: Path, *, digest: str, md5: str) -> bool:
    """Copy an object; whether what came has the digest and the MD5, where they are known. What has not gets no name."""
    with _new_file(path) as temporary:
        _write(remote, entry, path, temporary)
        found = file_digest(temporary)
        if digest in ("", found) and (not md5 or md5 == _md5(temporary)):
            _note(path, _Copy(_stamp(temporary), entry.version, found))
            return True
        temporary.unlink()
        return False


def _read(remote: RemotePath, entry: Entry | None) -> bytes | None:
    """A small object's content. What has not the MD5 that was listed was replaced since, or came damaged: two readings agree then."""
    content = remote.read()
    if content is None or entry is None or not entry.md5 or _may_be_of(content, entry):
        return content
    again = remote.read()
    if again != content:
        raise RunFailed(f"{remote.address} is replaced while it is read, or comes damaged; start the same command again")
    return content


def _may_be_of(content: bytes, entry: Entry) -> bool:
    """Whether an object may be of this content: by its MD5 where that is known, else by its size."""
    return entry.bytes == len(content) and entry.md5 in ("", hashlib.md5(content, usedforsecurity=False).hexdigest())


def _write(remote: RemotePath, entry: Entry, path: Path, temporary: Path) -> None:
    """Raises FileNotFoundError where the object is gone since it was listed, RunFailed where it was replaced."""
    try:
        with open(temporary, "wb") as file:
            for block in remote.blocks(entry.bytes):
                file.write(block)
    except UserError:
        _listed.pop(remote.address, None)
        _there(path, remote.address)
        raise


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """A temporary name that becomes the path's, if it is written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        yield temporary
        if temporary.exists():
            os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _is_listed(address: str) -> bool:
    return any(str(above) in _whole for above in _folders_of(address))


def _folders_of(address: str) -> Iterator[str]:
    scheme, _, key = address.partition("://")
    for above in PurePosixPath(key).parents:
        yield f"{scheme}://{above}"


def _recorded(path: Path) -> str:
    """The digest that the manifest beside a shard records; empty where there is none."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for shard in json.loads((path.parent / _MANIFEST).read_bytes())["shards"]:
            if shard["name"] == path.name:
                return str(shard["digest"])
    return ""


def _copy_of(path: Path) -> _Copy | None:
    """What is known of a file; None where it is not there, or was written since by another hand."""
    try:
        copy = _Copy(*json.loads(_note_path(path).read_bytes()))
        return copy if copy.stamp == _stamp(path) else None
    except (OSError, ValueError, TypeError):
        return None


def _note(path: Path, copy: _Copy) -> None:
    note = _note_path(path)
    with _new_file(note) as temporary:
        temporary.write_text(json.dumps([copy.stamp, copy.version, copy.digest]))


def _note_path(path: Path) -> Path:
    address = address_of(path)
    assert address is not None
    return folder_of("copies", address)


def _forget(path: Path) -> None:
    _note_path(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _stamp(path: Path) -> str:
    status = path.stat()
    return f"{status.st_size}|{status.st_mtime_ns}|{status.st_ino}"


def _files(folder: Path) -> Iterator[Path]:
    for below, _, names in os.walk(folder):
        yield from (Path(below, name) for name in names)


def _in_threads(work: Callable[[Path], Result], items: Iterable[Path]) -> list[Result]:
    with ThreadPoolExecutor(THREADS) as executor:
        return list(executor.map(work, items))
