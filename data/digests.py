"""Content digests and seeded hashes: the roots of fingerprints, cache keys and every random choice of the pipeline.

All are BLAKE2b, so they are the same on every machine, Python and library version.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.files.leftovers import temporary_name
from data.store.paths import store_root

_READ_BYTES = 4 << 20
_RECENT_NS = 2_000_000_000  # a file changed more lately is not remembered: a second change in the same clock tick would not show


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text. NaN is refused."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def json_digest(value: Any) -> str:
    """Hex digest (16 bytes) of a JSON-able value."""
    return bytes_digest(canonical_json(value).encode())


def bytes_digest(data: bytes) -> str:
    """Hex digest (16 bytes) of a byte string."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def file_digest(path: str | Path) -> str:
    """Hex digest (16 bytes) of a file's content, read in blocks."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def file_stamp(path: str | Path) -> str:
    """Path, size, times and inode of a file: what any write changes, but for two within the same tick of the clock."""
    status = os.stat(path)
    return f"{os.path.realpath(path)}|{status.st_size}|{status.st_mtime_ns}|{status.st_ctime_ns}|{status.st_ino}"


class DigestCache:
    """Remembers file digests by (path, size, times, inode), so that a plan need not read gigabytes again.

    Any write changes ctime, so a changed file is always read again. The cache is a convenience: losing it costs time only, and
    it never enters a fingerprint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._had_folder = path.parent.is_dir()
        self._known: dict[str, str] = {}
        self._dirty = False
        with contextlib.suppress(OSError, ValueError):
            known = json.loads(path.read_text())
            self._known = known if isinstance(known, dict) else {}

    @staticmethod
    def of_store(store: str | Path) -> DigestCache:
        """The cache that all jobs of a store share; of a store elsewhere, those of this machine, whose files it knows."""
        return DigestCache(store_root(store) / "digests.json")

    def file(self, path: str | Path) -> str:
        """Digest of the file's content, from memory where the file has not been touched since."""
        changed_ns = os.stat(path).st_ctime_ns
        key = file_stamp(path)
        known = self._known.get(key)
        if isinstance(known, str):
            return known
        digest = file_digest(path)
        if time.time_ns() - changed_ns > _RECENT_NS:
            self._known[key] = digest
            self._dirty = True
        return digest

    def save(self) -> None:
        """Write what was learned; a store that cannot be written is no error here. Only a regular file is replaced."""
        if not self._dirty or (self._path.exists() and not self._path.is_file()):
            return
        if self._had_folder and not self._path.parent.is_dir():  # its file system is gone: nothing is made in its place
            return
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_name(self._path)
            temporary.write_text(json.dumps(self._known))
            temporary.replace(self._path)
        self._dirty = False


def _joined(parts: tuple[object, ...]) -> bytes:
    # Length-prefixed, so that ("ab", "c") and ("a", "bc") differ.
    encoded = [str(part).encode() for part in parts]
    return b"".join(len(part).to_bytes(4, "little") + part for part in encoded)


def hash64(*parts: object) -> int:
    """A 64-bit unsigned hash of the parts: the seeded randomness that does not depend on who asks, or when."""
    return int.from_bytes(hashlib.blake2b(_joined(parts), digest_size=8).digest(), "little")


def hash64_after(*parts: object) -> Callable[[object], int]:
    """`hash64(*parts, last)` as a function of `last`, the parts before it hashed once: 0.2 s instead of 0.35 for 200,000."""
    begun = hashlib.blake2b(_joined(parts), digest_size=8)

    def hashed(last: object) -> int:
        whole = begun.copy()
        whole.update(_joined((last,)))
        return int.from_bytes(whole.digest(), "little")

    return hashed


def text_hash(text: str) -> int:
    """A 64-bit signed hash of a passage's text, to find exact duplicates."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def pair_key(query: str, candidate: str) -> bytes:
    """The 16-byte key of a (query text, candidate text) pair in the teacher-logit store."""
    return hashlib.blake2b(_joined((query, candidate)), digest_size=16).digest()


def uniforms(count: int, *parts: object) -> NDArray[np.float64]:
    """`count` numbers in [0, 1) that are a pure function of the parts (Philox, keyed by their hash)."""
    generator = np.random.Philox(key=hash64(*parts))
    return (generator.random_raw(count) >> np.uint64(11)).astype(np.float64) * 2.0**-53
