"""Paths that may be on an object store: inputs are copied to a cache once and read as local files, outputs are put when they are finished.

    CACHE/inputs/s3/bucket/key/<digest>/...    copies, by what they hold: an object that changed has another folder
    CACHE/outputs/s3/bucket/key...             what is being written; a killed command goes on from there
    CACHE/stores, CACHE/copies                 the mirrors of stores, see `data.store.mirror`

CACHE is the environment variable ADAM_REMOTE_CACHE, else adam-distillation/remote in the user's cache folder. A copy appears under its
name whole or not at all, so several processes need no lock. Nothing is ever moved on the store. Copies are never deleted: delete what you
like while no command runs. A local path goes through every function here unchanged.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TypeVar

from data.digests import bytes_digest, json_digest
from data.errors import DamagedShard, RunFailed, UserError
from data.files.leftovers import remove_leftovers
from data.files.outputs import Kind, local_output_file, local_output_folder, new_local_folder
from data.remote.folders import folder_of
from data.remote.object_store import Entry, OtherSize, RemotePath, is_remote
from data.tables.manifest import MANIFEST_NAME, Manifest
from data.tables.shards import atomic_path, atomic_write

THREADS = 8  # files on their way at once; each holds a block in memory

Item = TypeVar("Item")


def local_file(path: str) -> Path:
    """A file as a local one. Raises UserError: no such object, or the store cannot be reached."""
    if not is_remote(path):
        return Path(path)
    remote = RemotePath.of(path)
    entry = remote.entry()
    return _copies(path, {entry.name: (remote, entry)}) / entry.name


def local_table(folder: str) -> Path:
    """A stored table (a folder of shards with manifest.json) as a local one. Each shard's digest is verified while it is copied.

    The copy is named after the manifest, which names every shard's content; a shard that is there with the right size is not read again.

    Raises UserError: no manifest there, or the store cannot be reached. DamagedShard: an object is not the shard that the manifest records.
    """
    if not is_remote(folder):
        return Path(folder)
    table = _table_at(folder)
    if table is None:
        raise UserError(f"{folder} is no stored table: it has no {MANIFEST_NAME} (is its stage complete, and was all of it copied there?)")
    return table


def local_table_or_file(path: str) -> Path:
    """A stored table, or a single file, as a local one."""
    return (_table_at(path) if is_remote(path) else None) or local_file(path)


class RemoteFolder:
    """A folder of which some files are asked for by name: those are copied, the rest is not touched."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self._remote = RemotePath.of(self.address)
        self._known: dict[str, Entry] = {}  # by the name relative to the folder

    def names(self, below: str = "") -> list[str] | None:
        """Names of what lies in the folder, or in its folder `below`; those of folders end in a slash. None: no such folder."""
        entries = (self._remote.child(below) if below else self._remote).entries()
        self._known |= {f"{below}/{entry.name}" if below else entry.name: entry for entry in entries or []}
        return None if entries is None else [entry.name + "/" * entry.is_folder for entry in entries]

    def local(self, names: Sequence[str]) -> Path:
        """A local folder that holds these files, which `names` listed before, under the same names."""
        return _copies(self.address, {name: (self._remote.child(name), self._known[name]) for name in names})


@contextlib.contextmanager
def output_file(path: str, *, option: str = "out", kind: Kind | None = None) -> Iterator[Path]:
    """A local path to write; when the block ends well, a remote one is put as one object. When it does not, what is there stays.

    `option` is for errors; a file that is there is overwritten only where it is of the same kind. Raises UserError before the block
    where nothing can be written there, see `data.files.outputs`, or the store cannot be reached.
    """
    if not is_remote(path):
        with local_output_file(path, option=option, kind=kind) as local:
            yield local
        return
    remote = RemotePath.of(path)
    remote.child(MANIFEST_NAME).read()  # no such bucket, no credentials: better known before the work than after it
    local = folder_of("outputs", path)
    yield local
    try:
        remote.put(local)
    except UserError as error:
        raise type(error)(f"{error}; the finished file is {local}") from error
    local.unlink()


@contextlib.contextmanager
def output_table(folder: str, *, option: str = "out") -> Iterator[Path]:
    """A local folder to write a stored table to; when the block ends well, a remote one's shards are put, then its manifest.

    A table that is complete at the address is fetched first. To write the same one again does nothing; another one is refused, as in a
    local folder. Shards without a manifest there do not count, and are overwritten.

    Raises UserError as `output_file` does.
    """
    if not is_remote(folder):
        with local_output_folder(folder, option=option) as place:
            yield place
        return
    remote = RemotePath.of(folder)
    before = remote.child(MANIFEST_NAME).read()
    local = folder_of("outputs", folder)
    if before is not None:
        _fill(local, _local_table(remote, before))
    yield local
    content = (local / MANIFEST_NAME).read_bytes()
    names = [shard.name for shard in Manifest.parse(content, place=str(local)).shards]
    if content != before:
        put_files(remote, local, names)
        remote.child(MANIFEST_NAME).put(local / MANIFEST_NAME)
    kept = folder_of("inputs", folder) / bytes_digest(content)  # so that the next command here need not fetch it
    kept.mkdir(parents=True, exist_ok=True)
    for name in (*names, MANIFEST_NAME):
        os.replace(local / name, kept / name)
    shutil.rmtree(local)


@contextlib.contextmanager
def output_folder(folder: str, *, option: str = "out", own: Sequence[str], kept: Sequence[str] = ()) -> Iterator[Path]:
    """A local folder for files, which may hold some of the names `own` already; when the block ends well, a remote one's are put.

    Those right in it are put last. What lies below the names `kept` stays on this machine, for the same command to go on from.

    Raises UserError as `output_file` does.
    """
    if not is_remote(folder):
        with local_output_folder(folder, option=option, is_own=lambda name: name in own) as place:
            yield place
        return
    remote = RemotePath.of(folder)
    remote.child(MANIFEST_NAME).read()
    local = folder_of("outputs", folder)
    local.mkdir(parents=True, exist_ok=True)
    yield local
    _put_files(remote, local, kept=kept)


@contextlib.contextmanager
def new_output_folder(folder: str, *, option: str = "out") -> Iterator[Path]:
    """A local folder to fill, which is there whole or not at all; when the block ends well, a remote one's files are put.

    Raises UserError as `output_file` does, and where something lies there already.
    """
    if not is_remote(folder):
        with new_local_folder(folder, option=option) as place:
            yield place
        return
    remote = RemotePath.of(folder)
    if remote.entries():
        raise UserError(f"{option}={folder} is there already and holds files; give a new folder, or delete it")
    local = folder_of("outputs", folder)
    with new_local_folder(str(local), option=option) as place:
        yield place
    _put_files(remote, local)
    shutil.rmtree(local)


def _put_files(remote: RemotePath, local: Path, *, kept: Sequence[str] = ()) -> None:
    """Put all files of a folder but those below the names `kept`; those right in it last."""
    names = [path.relative_to(local).as_posix() for path in sorted(local.rglob("*")) if path.is_file()]
    names = [name for name in names if name.split("/")[0] not in kept]
    below = [name for name in names if "/" in name]
    for some in (below, [name for name in names if name not in set(below)]):
        put_files(remote, local, some)


def staging_folder(address: str) -> Path:
    """The folder of this machine in which what is to be put at an address is made, see above."""
    return folder_of("outputs", address)


def fetch_files(remote: RemotePath, folder: Path, entries: dict[str, Entry]) -> None:
    """Fetch objects below an address into a folder under the same names; what is there with the right size stays."""
    objects = [_Object(remote.child(name), folder / name, one.bytes, version=one.version, md5=one.md5) for name, one in entries.items()]
    _fetch(remote.address, objects)


def put_files(remote: RemotePath, folder: Path, names: Sequence[str]) -> None:
    """Put these files of a folder below an address, several at once."""
    _in_threads(lambda name, _: remote.child(name).put(folder / name), names)


def _copies(address: str, files: dict[str, tuple[RemotePath, Entry]]) -> Path:
    """A local folder that holds these objects of an address under these names."""
    target = folder_of("inputs", address) / json_digest([[name, entry.bytes, entry.version] for name, (_, entry) in sorted(files.items())])
    objects = [_Object(remote, target / name, entry.bytes, version=entry.version, md5=entry.md5) for name, (remote, entry) in files.items()]
    _fetch(address, objects)
    return target


def _table_at(address: str) -> Path | None:
    remote = RemotePath.of(address)
    content = remote.child(MANIFEST_NAME).read()
    return None if content is None else _local_table(remote, content)


def _local_table(remote: RemotePath, content: bytes) -> Path:
    manifest = Manifest.parse(content, place=f"{remote.address}/{MANIFEST_NAME}")
    for shard in manifest.shards:
        if PurePath(shard.name).name != shard.name or shard.name in ("", "..", MANIFEST_NAME):  # it must not name a file elsewhere
            raise DamagedShard(f"{remote.address}/{MANIFEST_NAME} names a shard {shard.name!r}, which is no file's name")
    target = folder_of("inputs", remote.address) / bytes_digest(content)
    shards = [_Object(remote.child(shard.name), target / shard.name, shard.bytes, digest=shard.digest) for shard in manifest.shards]
    _fetch(remote.address, shards)
    if not (target / MANIFEST_NAME).is_file():  # last: a folder that has it has all shards
        atomic_write(target / MANIFEST_NAME, content)
    return target


@dataclass(frozen=True)
class _Object:
    """An object, the file that it becomes, and what is known of its content."""

    remote: RemotePath
    target: Path
    bytes: int
    digest: str = ""  # of a manifest
    version: str = ""  # of a listing
    md5: str = ""  # the version where it looks like one

    def is_there(self) -> bool:
        """Whether a file of this name and size was copied before, see `_copy`. Without digest and version its name says too little."""
        return bool(self.digest or self.version) and self.target.is_file() and self.target.stat().st_size == self.bytes


def _fetch(address: str, objects: Sequence[_Object]) -> None:
    missing = [one for one in objects if not one.is_there()]
    if not missing:
        return
    for folder in {one.target.parent for one in missing}:
        remove_leftovers(folder)
    count = "1 file" if len(missing) == 1 else f"{len(missing)} files"
    print(f"copying {count}, {sum(one.bytes for one in missing) / 1e6:,.1f} MB, of {address}", file=sys.stderr, flush=True)
    _in_threads(_copy, missing)


def _copy(source: _Object, stop: threading.Event) -> None:
    """A copy that is not what the manifest or the listing says is fetched once more.

    Raises DamagedShard where the bytes are not the recorded ones then, RunFailed where the object was replaced; nothing is left.
    """
    with atomic_path(source.target) as temporary:
        wrong: RunFailed | None = None
        for _ in range(2):
            wrong = _difference(source, *_written(source, temporary, stop))
            if wrong is None:
                return
        assert wrong is not None
        raise wrong


def _written(source: _Object, target: Path, stop: threading.Event) -> tuple[str, str]:
    """Write the object's content. Returns the digest of it that manifests have, and its MD5."""
    digest, md5 = hashlib.blake2b(digest_size=16), hashlib.md5(usedforsecurity=False)
    with open(target, "wb") as file:
        for block in _blocks(source):
            if stop.is_set():
                raise RunFailed("stopped")  # never seen: what made it stop is
            file.write(block)
            digest.update(block)
            if not source.digest:
                md5.update(block)
    return digest.hexdigest(), md5.hexdigest()


def _blocks(source: _Object) -> Iterator[bytes]:
    try:
        yield from source.remote.blocks(source.bytes)
    except OtherSize as error:
        if not source.digest:
            raise
        raise _damaged(source, f"{error.bytes} bytes") from error


def _difference(source: _Object, digest: str, md5: str) -> RunFailed | None:
    """What speaks against a copy with this digest and this MD5."""
    address = source.remote.address
    if source.digest:
        if digest == source.digest:
            return None
        return _damaged(source, f"digest {digest}, fetched twice")
    if source.md5 == md5:
        return None
    if source.remote.entry().version != source.version:
        return RunFailed(f"{address} was replaced while it was read; start the same command again")
    if not source.md5 or source.remote.has_encrypted_version():
        return None
    return RunFailed(f"{address}: the store says MD5 {source.md5}, its bytes have {md5}, fetched twice: it is damaged; put it there again")


def _damaged(source: _Object, found: str) -> DamagedShard:
    recorded = f"{MANIFEST_NAME} records ({source.bytes} bytes, digest {source.digest}; found {found})"
    remedy = "it is damaged or was replaced; put the table there again"
    return DamagedShard(f"{source.remote.address} is not the file that {recorded}: {remedy}")


def _in_threads(work: Callable[[Item, threading.Event], object], items: Sequence[Item]) -> None:
    """Run `work` on all items. The first failure, or an interrupt, stops the others, which are waited for: nothing is left behind."""
    stop = threading.Event()
    with ThreadPoolExecutor(THREADS) as executor:
        futures = [executor.submit(work, item, stop) for item in items]
        try:
            for done in as_completed(futures):
                done.result()
        except BaseException:
            stop.set()
            executor.shutdown(wait=False, cancel_futures=True)
            raise


def _fill(folder: Path, source: Path) -> None:
    """The files of `source` in `folder`, where it lacks them; as hard links, since shards are never changed in place."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if not (folder / path.name).exists():
            with atomic_path(folder / path.name) as temporary:
                try:
                    os.link(path, temporary)
                except OSError:  # no hard links here
                    shutil.copyfile(path, temporary)
