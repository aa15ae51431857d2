"""Objects on a store that fsspec knows (`s3://bucket/key`, `gs://...`): listed, read and put whole. `data.remote.cache` is what uses them.

Credentials and endpoints are the store's own affair: for S3 the `AWS_*` variables and files, and fsspec's configuration (`FSSPEC_S3_...`).
Nothing is imported before the first address is opened, so work on local files costs nothing here.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from data.errors import RunFailed, UserError
from data.remote import conditional, s3
from data.remote.attempts import CutBody, attempted, explained, is_of_bucket

BLOCK_BYTES = 16 << 20  # of one request; a thread holds one block
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# What names a version of an object, best first. A hash that the store keeps says more than a time.
_TIME_KEYS = ("LastModified", "last_modified", "updated", "mtime", "created")
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "content_md5", "blob_id", *_TIME_KEYS)

T = TypeVar("T")


def is_remote(path: str | Path) -> bool:
    """Whether a path is an address `scheme://...`. Ask before it becomes a `Path`, which makes one slash of two."""
    return _ADDRESS.match(str(path)) is not None


@dataclass(frozen=True)
class Entry:
    """What a listing says of an object, or of a folder (a common start of keys)."""

    name: str  # the last part of the key
    is_folder: bool
    bytes: int
    version: str  # differs wherever the content does, as far as the store tells
    changed: float = 0.0  # seconds since 1970, by the store's clock; 0 where it does not say

    @staticmethod
    def of(details: dict[str, Any]) -> Entry:
        """From an fsspec listing."""
        name = details["name"].rstrip("/").rsplit("/", 1)[-1]
        version = next((str(details[key]).strip('"') for key in _VERSION_KEYS if details.get(key)), "")
        changed = next((_seconds(details[key]) for key in _TIME_KEYS if details.get(key)), 0.0)
        return Entry(name, details["type"] == "directory", int(details["size"] or 0), version, changed)

    @property
    def md5(self) -> str:
        """The version where it looks like the content's MD5, in hexadecimal; "" of an object that was put in parts, and of other kinds."""
        if re.fullmatch(r"[0-9a-f]{32}", self.version):
            return self.version
        try:
            decoded = base64.b64decode(self.version, validate=True)  # as Google's store gives it
        except (binascii.Error, ValueError):
            return ""
        return decoded.hex() if len(decoded) == 16 else ""


def _seconds(time: Any) -> float:
    if isinstance(time, str):
        time = datetime.fromisoformat(time)
    return float(time.timestamp()) if isinstance(time, datetime) else float(time)


class OtherSize(RunFailed):
    """An object has not the size that a listing, a manifest or a put says: it was replaced meanwhile."""

    def __init__(self, message: str, *, found: int = 0) -> None:
        super().__init__(message)
        self.bytes = found


@dataclass(frozen=True)
class RemotePath:
    """An address with what opens it. The methods may be called from several threads.

    All raise UserError in words for the user: no such bucket, no credentials, access refused; NotAnswering where the store does not
    answer, or gives errors, for a minute or more.
    """

    address: str
    _fs: Any

    @staticmethod
    def of(address: str) -> RemotePath:
        """Raises UserError where no package opens such addresses."""
        with explained(address):
            import fsspec

            own = s3.client_options(fsspec.config.conf.get("s3", {})) if address.split("://")[0] in s3.SCHEMES else {}
            fs, _ = fsspec.core.url_to_fs(address, use_listings_cache=False, **own)  # a listing from a minute ago is no listing
        if own:
            fs.retries = 1  # see `s3.client_options`
        return RemotePath(address.rstrip("/"), fs)

    def child(self, name: str) -> RemotePath:
        """`address/name`."""
        return RemotePath(f"{self.address}/{name}", self._fs)

    def sibling(self, name: str) -> RemotePath:
        """The object of this name beside this one."""
        return RemotePath(f"{self.address.rsplit('/', 1)[0]}/{name}", self._fs)

    def entries(self) -> list[Entry] | None:
        """What lies right below, by name; None where nothing does."""
        listed = self._unless_absent(lambda: self._fs.ls(self.address, detail=True))
        if listed is None:
            return None
        # S3 consoles make an empty object for a folder
        return sorted((Entry.of(one) for one in listed if one["name"].rstrip("/") != self._key), key=lambda entry: entry.name)

    def find(self, *, hidden: bool = False) -> dict[str, Entry]:
        """All objects below, at any depth, by their names relative to this one; a request for each 1,000 on S3.

        Names of which a part begins with a dot are left out: they belong to puts on a condition, see `conditional`. With `hidden` they
        alone are given.
        """
        listed = self._unless_absent(self._found) or {}
        start = f"{self._key}/"
        names = {name.removeprefix(start): details for name, details in listed.items() if name.startswith(start)}
        return {name: Entry.of(details) for name, details in names.items() if name and name[-1] != "/" and _is_hidden(name) == hidden}

    def _found(self) -> dict[str, Any]:
        above, _, name = self.address.rpartition("/")
        if s3.is_s3(self._fs) and not above.endswith("/"):  # else s3fs asks, where it finds none, for an object of the folder's name
            return dict(self._fs.find(above, prefix=f"{name}/", detail=True))
        return dict(self._fs.find(self.address, detail=True))

    @property
    def _key(self) -> str:
        return str(self._fs._strip_protocol(self.address)).rstrip("/")

    def entry(self) -> Entry:
        """The object here. Raises UserError where there is none."""
        found = Entry.of(attempted(self.address, lambda: self._fs.info(self.address)))
        if found.is_folder:
            raise UserError(f"{self.address} is a folder, expected a file")
        return found

    def entry_or_none(self) -> Entry | None:
        """The object here, None where there is none. One request on S3, which does not tell a missing bucket from a missing object."""
        found = self._unless_absent(lambda: s3.details(self._fs, self.address) if s3.is_s3(self._fs) else self._fs.info(self.address))
        entry = None if found is None else Entry.of(found)
        return None if entry is None or entry.is_folder else entry

    def exists(self) -> bool:
        """Whether there is an object here."""
        return self.entry_or_none() is not None

    def read(self, start: int | None = None, end: int | None = None) -> bytes | None:
        """A small object's content, or its bytes from `start` up to, not with, `end`; None where there is none. One request."""
        whole = start is None and end is None
        options = {"max_concurrency": 1} if whole and s3.is_s3(self._fs) else {}  # s3fs would ask for the size first
        content = self._unless_absent(lambda: self._fs.cat_file(self.address, start=start, end=end, **options))
        return None if content is None else bytes(content)

    def _unless_absent(self, work: Callable[[], T]) -> T | None:
        def found() -> T | None:
            try:
                return work()
            except FileNotFoundError as error:
                if is_of_bucket(error):
                    raise
                return None

        return attempted(self.address, found)

    def blocks(self, size: int) -> Iterator[bytes]:
        """The content of an object of `size` bytes, one request a block, none beyond its end.

        Raises UserError where there is none, OtherSize where it ends before. Whether it was replaced by one of the same size between
        two blocks is for the caller to find out.
        """
        for start in range(0, size, BLOCK_BYTES):
            yield self._block(start, min(start + BLOCK_BYTES, size), size=size)

    def _block(self, start: int, end: int, *, size: int) -> bytes:
        def work() -> bytes:
            try:
                block = bytes(self._fs.cat_file(self.address, start=start, end=end))
            except OSError as error:
                if not s3.is_beyond_end(error):
                    raise
                block = b""
            if len(block) != end - start:
                self._of_size(size)
                raise CutBody(f"{len(block)} bytes came, {end - start} were asked for")
            return block

        return attempted(self.address, work)

    def put(self, local: Path) -> Entry:
        """Put a file as one whole object: on an object store it is there with all its bytes or not at all. Returns the object."""
        size = local.stat().st_size
        if s3.is_s3(self._fs) and size <= s3.LARGEST_PUT:
            return self.put_bytes(local.read_bytes())
        return self._put_large(lambda: self._fs.put_file(str(local), self.address), size)

    def put_bytes(self, content: bytes) -> Entry:
        """Put an object of this content, in the place of one that may be there. Returns the object; on S3 no request is made for it."""
        if s3.is_s3(self._fs) and len(content) <= s3.LARGEST_PUT:
            version = attempted(self.address, lambda: s3.put(self._fs, self.address, content))
            return Entry(self.address.rsplit("/", 1)[-1], False, len(content), version) if version else self.entry()
        return self._put_large(lambda: self._fs.pipe_file(self.address, content), len(content))

    def _put_large(self, work: Callable[[], object], size: int) -> Entry:
        attempted(self.address, work)
        there = self._of_size(size)
        if s3.is_s3(self._fs):
            with contextlib.suppress(Exception):  # of many kinds; not all servers know the request, nor are all users allowed it
                s3.end_other_uploads(self._fs, self.address)
        return there

    def _of_size(self, size: int) -> Entry:
        there = self.entry()
        if there.bytes != size:
            raise OtherSize(
                f"{self.address} has {there.bytes} bytes, {size} were expected: start the same command again", found=there.bytes
            )
        return there

    def put_if_absent(self, content: bytes | Path) -> bool:
        """Put a small object if there is none. Of several that try at once one gets True, see `conditional`."""
        given = content.read_bytes() if isinstance(content, Path) else content
        if conditional.has_condition(self._fs, self):
            return conditional.create(self._fs, self, given)
        return conditional.settle(self, given)

    def delete(self) -> None:
        """Remove the object, if it is there."""
        self._unless_absent(lambda: self._fs.rm_file(self.address))

    def has_encrypted_version(self) -> bool:
        """Whether the version is no hash of the content, though it looks like one, since the store encrypts with a key of its user."""
        return s3.is_s3(self._fs) and attempted(self.address, lambda: s3.encrypts(self._fs, self.address))


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
