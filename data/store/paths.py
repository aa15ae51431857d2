"""Which folder of this machine stands for a store: the store itself, or the mirror of one on an object store.

    CACHE/stores/s3/bucket/prefix/...    under the same names as there

So what lies in a store has a path on every machine, and from a path in a mirror follows its address.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path

from data.errors import UserError
from data.remote.folders import address_in, cache_folder, folder_of
from data.remote.object_store import is_remote

_STORES = "stores"
_WITHIN = f"{os.sep}{_STORES}{os.sep}"


def store_root(store: str | Path) -> Path:
    """The folder in which this machine reads and writes a store's files."""
    return _resolved(folder_of(_STORES, str(store))) if is_remote(store) else Path(store)


def address_of(path: Path) -> str | None:
    """The address of a path in a mirror; None of any other."""
    text = str(path)
    if _WITHIN not in text:
        return None
    try:
        mirrors = _mirrors(cache_folder())
    except (UserError, RuntimeError):  # no cache, no home folder: so no mirror, and who works on files needs neither
        return None
    if not text.startswith(mirrors):
        return None
    return address_in(path.parts[len(Path(mirrors).parts) :])


def shown(path: Path) -> str:
    """A path of a store for people: where it lies for everybody."""
    return address_of(path) or str(path)


@functools.lru_cache
def _mirrors(cache: Path) -> str:
    return str(_resolved(cache / _STORES)) + os.sep


@functools.lru_cache
def _resolved(path: Path) -> Path:
    """Without links, as files get their names."""
    return Path(os.path.realpath(path))
