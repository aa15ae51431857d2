"""The manifest of a finished table: what the next stage reads, and all that it reads, besides the shards themselves.

STORE/<stage>/[<table>-]<fingerprint>/
    part-00000-of-00004.parquet ...   one file a shard, appears whole or not at all
    journal.jsonl                     a line for each shard as it finishes: seconds and counts of this machine (on an object store, where
                                      nothing is appended to: journal/<task>.json)
    manifest.json                     written last
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data.digests import file_digest, json_digest
from data.errors import DamagedShard, UserError
from data.store import mirror
from data.tables.shards import atomic_write, stamp_of

MANIFEST_NAME = "manifest.json"
JOURNAL_NAME = "journal.jsonl"


@dataclass(frozen=True)
class ShardRecord:
    """One shard as the manifest knows it. `digest` is of the file's bytes."""

    name: str
    rows: int
    bytes: int
    digest: str

    def check(self, folder: Path) -> None:
        """Compare the file's bytes with the record: page checksums cover data pages only, this covers footers and page headers too.

        Raises UserError where it is missing, DamagedShard where it is another file.
        """
        path = folder / self.name
        if not path.is_file():
            raise UserError(f"{path} is missing, though {MANIFEST_NAME} names it; start the same `prep run` again: it is built again")
        if path.stat().st_size != self.bytes or file_digest(path) != self.digest:
            raise DamagedShard(
                f"{path} is not the file that {MANIFEST_NAME} records ({self.bytes} bytes, digest {self.digest}): it is damaged or was "
                "replaced; delete it and start the same `prep run` again: only this shard is built again"
            )


@dataclass(frozen=True)
class Manifest:
    """A finished table. Only `shards` enters the content digest; the rest is recorded, not keyed."""

    stage: str
    table: str
    fingerprint: str
    key: dict[str, Any]  # what the fingerprint is the hash of
    shards: list[ShardRecord]
    counts: dict[str, Any]  # in, kept, dropped by reason, and the stage's own figures
    seconds: float = 0.0
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        """Rows of all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def content_digest(self) -> str:
        """Digest of the shards' names and bytes: what the next stage's fingerprint holds."""
        return json_digest([[shard.name, shard.rows, shard.digest] for shard in self.shards])

    def write(self, folder: Path) -> None:
        """Write `manifest.json` into the table's folder, whole or not at all."""
        text = json.dumps({**asdict(self), "content_digest": self.content_digest}, indent=1, sort_keys=True)
        atomic_write(folder / MANIFEST_NAME, text.encode())

    @staticmethod
    def read(folder: Path) -> Manifest | None:
        """The folder's manifest, None where there is none. Raises DamagedShard where it cannot be read."""
        path = mirror.fresh(folder / MANIFEST_NAME)
        try:
            return Manifest.parse(path.read_bytes(), place=str(path))
        except (FileNotFoundError, NotADirectoryError):
            return None

    @staticmethod
    def parse(content: bytes, *, place: str) -> Manifest:
        """The manifest that a file holds; `place` is for the error's words. Raises DamagedShard where it cannot be read."""
        try:
            values = json.loads(content)
            values.pop("content_digest")
            return Manifest(**{**values, "shards": [ShardRecord(**shard) for shard in values["shards"]]})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DamagedShard(f"{place} is no readable manifest ({error!r}); delete it and run again, no shard is lost") from error


class ManifestCache:
    """Manifests by folder, parsed again only where the file was written again: a worker asks for its inputs' with each task."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[str, Manifest]] = {}

    def read(self, folder: Path) -> Manifest | None:
        """As `Manifest.read`."""
        try:
            stamp = stamp_of(mirror.fresh(folder / MANIFEST_NAME))
        except (FileNotFoundError, NotADirectoryError):
            return None
        known = self._known.get(folder)
        if known is not None and known[0] == stamp:
            return known[1]
        manifest = Manifest.read(folder)
        if manifest is not None:
            self._known[folder] = stamp, manifest
        return manifest


def refuse_others(out: Path, fingerprint: str, footers: dict[str, dict[str, Any] | None], *, what: str) -> None:
    """Raises UserError where the folder holds shards, or the manifest of a table, with another fingerprint."""
    there = Manifest.read(out)
    of_others = any(footer is not None and footer.get("fingerprint") != fingerprint for footer in footers.values())
    if of_others or (there is not None and there.fingerprint != fingerprint):
        raise UserError(f"{out} holds {what}; choose another out=FOLDER")
