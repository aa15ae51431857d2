"""Objects on a store that fsspec knows (`s3://bucket/key`, `gs://...`): listed, read and put whole. `data.remote.cache` is what uses them.

Credentials and endpoints are the store's own affair: for S3 the `AWS_*` variables and files, and fsspec's configuration (`FSSPEC_S3_...`).
Nothing is imported before the first address is opened, so work on local files costs nothing here.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import RunFailed, UserError

BLOCK_BYTES = 16 << 20  # of one request; a thread holds one block
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# What names a version of an object, best first. A hash that the store keeps says more than a time.
_VERSION_KEYS = ("ETag", "etag", "md5Hash", "content_md5", "blob_id", "LastModified", "last_modified", "updated", "mtime", "created")
# By name, since the packages that they come from need not be installed.
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError", "UnauthorizedSSOTokenError"}
_NO_ANSWER = {
    "EndpointConnectionError", "ConnectTimeoutError", "ConnectionClosedError", "ReadTimeoutError", "ClientConnectorError",
    "ConnectionRefusedError", "FSTimeoutError",
}  # fmt: skip


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
        return Entry(name, details["type"] == "directory", int(details["size"] or 0), version)


@dataclass(frozen=True)
class RemotePath:
    """An address with what opens it. The methods may be called from several threads.

    All raise UserError in words for the user: no such bucket, no credentials, access refused, no answer.
    """

    address: str
    _fs: Any

    @staticmethod
    def of(address: str) -> RemotePath:
        """Raises UserError where no package opens such addresses."""
        with _explained(address):
            import fsspec

            fs, _ = fsspec.core.url_to_fs(address, use_listings_cache=False)  # a listing from a minute ago is no listing
        return RemotePath(address.rstrip("/"), fs)

    def child(self, name: str) -> RemotePath:
        """`address/name`."""
        return RemotePath(f"{self.address}/{name}", self._fs)

    def entries(self) -> list[Entry] | None:
        """What lies right below, by name; None where nothing does."""
        with _explained(self.address):
            listed = self._unless_absent(self._fs.ls, detail=True)
            if listed is None:
                return None
            own = self._fs._strip_protocol(self.address).rstrip("/")  # S3 consoles make an empty object for a folder
            return sorted((Entry.of(one) for one in listed if one["name"].rstrip("/") != own), key=lambda entry: entry.name)

    def entry(self) -> Entry:
        """The object here. Raises UserError where there is none."""
        with _explained(self.address):
            found = Entry.of(self._fs.info(self.address))
        if found.is_folder:
            raise UserError(f"{self.address} is a folder, expected a file")
        return found

    def entry_or_none(self) -> Entry | None:
        """The object here, None where there is none."""
        with _explained(self.address):
            found = self._unless_absent(self._fs.info)
        entry = None if found is None else Entry.of(found)
        return None if entry is None or entry.is_folder else entry

    def find(self) -> dict[str, Entry]:
        """All objects below, at any depth, by their names relative to this one; a request for each 1,000."""
        with _explained(self.address):
            own = self._fs._strip_protocol(self.address).rstrip("/") + "/"
            found = self._unless_absent(self._fs.find, detail=True) or {}
            return {key.removeprefix(own): Entry.of(one) for key, one in found.items() if key.startswith(own)}

    def put_bytes(self, content: bytes) -> None:
        """Put an object of this content, in the place of one that may be there."""
        with _explained(self.address):
            self._fs.pipe_file(self.address, content)

    def put_if_absent(self, content: bytes) -> bool:
        """Put a small object if there is none. Of several that try at once one gets True."""
        with _explained(self.address):
            try:
                self._fs.pipe_file(self.address, content, mode="create")
            except FileExistsError:
                return False
        return True

    def delete(self) -> None:
        """Remove the object, if it is there."""
        with _explained(self.address):
            self._unless_absent(self._fs.rm_file)

    def read(self, start: int | None = None, end: int | None = None) -> bytes | None:
        """A small object's content, or its bytes from `start` up to, not with, `end`; None where there is none."""
        with _explained(self.address):
            return self._unless_absent(self._fs.cat_file, start=start, end=end)

    def _unless_absent(self, function: Callable[..., Any], **options: Any) -> Any:
        try:
            return function(self.address, **options)
        except FileNotFoundError as error:
            if _is_of_bucket(error):
                raise
            return None

    def blocks(self) -> Iterator[bytes]:
        """A large object's content, one request a block. S3 refuses the next block where the object was replaced meanwhile."""
        with _explained(self.address):
            file = self._fs.open(self.address, "rb", cache_type="none")
        with file:
            while True:
                with _explained(self.address):
                    block = file.read(BLOCK_BYTES)
                if not block:
                    return
                yield block

    def put(self, local: Path) -> None:
        """Put a file as one whole object: on an object store it is there with all its bytes or not at all."""
        with _explained(self.address):
            self._fs.put_file(str(local), self.address)
            there = int(self._fs.info(self.address)["size"])
        if there != local.stat().st_size:
            raise RunFailed(f"{self.address} has {there} bytes after {local.stat().st_size} were put: start the same command again")


def _is_of_bucket(error: BaseException) -> bool:
    return "bucket does not exist" in str(error)


@contextlib.contextmanager
def _explained(address: str) -> Iterator[None]:
    """Around calls of the store's package alone: whatever it raises is the store's, the network's or the address's fault."""
    try:
        yield
    except Exception as error:  # each package has kinds of its own
        raise _explanation(error, address) from error


def _explanation(error: Exception, address: str) -> UserError:
    scheme = address.split("://")[0]
    kind = type(error).__name__
    said = " ".join(str(error).split())[:300]
    if isinstance(error, ImportError):
        remedy = "pip install -c constraints.txt -e '.[s3]'" if scheme in ("s3", "s3a") else "install it"
        return UserError(f"{address}: addresses {scheme}:// need a package that is not installed ({said}): {remedy}")
    if isinstance(error, ValueError) and "Protocol not known" in said:
        return UserError(f"{address}: unknown kind of address {scheme}://; known are s3://, gs:// and all others of fsspec")
    if isinstance(error, FileNotFoundError):
        return UserError(f"{address}: no such bucket" if _is_of_bucket(error) else f"{address}: nothing there")
    if kind in _NO_CREDENTIALS:
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; FSSPEC_S3_ANON=true reads public buckets"
        return UserError(f"{address}: no credentials ({said}); {remedy}" if scheme == "s3" else f"{address}: no credentials ({said})")
    if isinstance(error, PermissionError):
        return UserError(f"{address}: access is refused ({said}): wrong credentials, or they lack this right")
    if kind in _NO_ANSWER:
        remedy = "check the network, and AWS_ENDPOINT_URL where the store is not Amazon's" if scheme == "s3" else "check the network"
        return UserError(f"{address}: the store does not answer ({said}); {remedy}")
    if kind == "FileExpired":
        return RunFailed(f"{address} was replaced while it was read; start the same command again")
    return RunFailed(f"{address}: {kind}: {said}; start the same command again if the store was at fault")
