"""Which shards of a table are complete: by a listing of its folder, and by the footers of those files that were not looked at before."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path

from data.errors import DamagedShard
from data.files.leftovers import temporary_name
from data.store import mirror
from data.store.place import Listed, Place
from data.tables.manifest import Manifest
from data.tables.shards import read_footer, shard_name

_RECENT_SECONDS = 2.0  # a file written more lately is not remembered: a second change in the same clock tick would not show
FILE_NAME = "seen.json"


class SeenShards:
    """Remembers shards whose footer was found good, by what a listing says of the file, so that a plan opens none of them again.

    A file that was written since has another version, and is opened. Losing what is remembered costs time only.
    """

    def __init__(self, place: Place) -> None:
        self._place = place
        self._path = place.root / FILE_NAME
        self._known: dict[str, dict[str, str]] = {}  # folder of a table, relative to the store -> name of a shard -> its version
        self._dirty = False
        with contextlib.suppress(OSError, ValueError, AttributeError):
            known = json.loads(self._path.read_text(encoding="utf-8"))
            self._known = {folder: shards for folder, shards in known.items() if isinstance(shards, dict)}

    def stale_shards(self, folder: Path, count: int, *, fingerprint: str, manifest: Manifest | None) -> dict[int, str]:
        """Shards that are not complete, with the reason. A complete one has its final name and a footer with this fingerprint."""
        if mirror.is_mirrored(folder):
            return _unlisted_shards(folder, count, manifest)
        below = folder.relative_to(self._place.root).as_posix()
        listed = self._place.files(below)
        known = self._known.get(below, {})
        sizes = {shard.name: shard.bytes for shard in manifest.shards} if manifest else {}
        stale: dict[int, str] = {}
        good: dict[str, str] = {}
        for shard in range(count):
            name = shard_name(shard, count)
            found = listed.get(f"{below}/{name}")
            if found is None:
                stale[shard] = "file is missing" if manifest else "not built yet"
            elif known.get(name) != found.version and (fault := _fault(folder / name, fingerprint)):
                stale[shard] = fault
            elif sizes.get(name, found.bytes) != found.bytes:
                stale[shard] = "file is not the size that the manifest records"
            elif _is_settled(found):
                good[name] = found.version
        if good != known:
            self._known[below] = good
            self._dirty = True
        return stale

    def save(self) -> None:
        """Write what was learned; a store that cannot be written is no error here. Only a regular file is replaced."""
        if not self._dirty or not self._place.root.is_dir() or (self._path.exists() and not self._path.is_file()):
            return
        self._known = {folder: shards for folder, shards in self._known.items() if (self._place.root / folder).is_dir()}
        with contextlib.suppress(OSError):
            temporary = temporary_name(self._path)
            temporary.write_text(json.dumps(self._known), encoding="utf-8")
            temporary.replace(self._path)
        self._dirty = False


def _unlisted_shards(folder: Path, count: int, manifest: Manifest | None) -> dict[int, str]:
    """The same of a store elsewhere, by its listing: an object is there whole or not at all, and the folder has the fingerprint's name."""
    sizes = {shard.name: shard.bytes for shard in manifest.shards} if manifest else {}
    stale: dict[int, str] = {}
    for shard in range(count):
        name = shard_name(shard, count)
        there = mirror.listed(folder / name)
        if there is None:
            stale[shard] = "file is missing" if manifest else "not built yet"
        elif sizes.get(name, there.bytes) != there.bytes:
            stale[shard] = "file is not the size that the manifest records"
    return stale


def _fault(path: Path, fingerprint: str) -> str | None:
    try:
        footer = read_footer(path)
    except DamagedShard:
        return "file is cut short or damaged"
    if footer is None:
        return "file is missing"
    return None if footer.get("fingerprint") == fingerprint else "file belongs to other settings"


def _is_settled(found: Listed) -> bool:
    return time.time() - found.changed > _RECENT_SECONDS
