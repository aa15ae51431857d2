"""The manifest of a table whose shards are all there: from then on it is complete."""

from __future__ import annotations

import contextlib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from data.errors import NotAnswering
from data.store import mirror
from data.store.paths import shown
from data.tables.manifest import MANIFEST_NAME, Manifest, ShardRecord
from data.tables.shards import describe, read_footer, shard_name
from pipeline.plan import TablePlan
from pipeline.stage import PIECES
from pipeline.tables.journal import known_records, read_journal

_RECORDED_VERSIONS = ("torch", "transformers", "pyarrow", "polars", "faiss-gpu", "ray", "onnxruntime", "tokenizers")


def write_manifest(plan: TablePlan) -> Manifest:
    """Write the manifest from the shards' own footers: the table is complete from now on. Its pieces have served then.

    A digest is taken here only where the worker's is not known.
    """
    mirror.refresh(plan.folder)  # the workers may be elsewhere
    records = []
    known = known_records(plan.folder)
    counts: dict[str, Any] = {}
    versions: dict[str, str] = {}
    for shard in range(plan.shard_count):
        path = plan.folder / shard_name(shard, plan.shard_count)
        footer = read_footer(path)
        if footer is None:
            raise NotAnswering(f"{shown(path)} was built and is gone; start the same command again")
        records.append(known.get(path.name) or ShardRecord(path.name, *describe(path)))
        counts = _added(counts, footer.get("counts", {}))
    for name in _RECORDED_VERSIONS:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    manifest = Manifest(
        stage=plan.table.stage,
        table=plan.table.name,
        fingerprint=plan.fingerprint,
        key=plan.full_key,
        shards=records,
        counts=counts,
        seconds=round(sum(line["seconds"] for line in read_journal(plan.folder)), 3),
        versions=versions,
    )
    manifest.write(plan.folder)
    mirror.remove_tree(plan.folder / PIECES)
    return manifest


def sealed_by_others(plan: TablePlan) -> Manifest | None:
    """The manifest that another job wrote since the table was planned without one; None where there is none."""
    if plan.manifest is not None:
        return None
    mirror.fresh(plan.folder / MANIFEST_NAME, now=True)
    manifest = Manifest.read(plan.folder)
    if manifest is None or manifest.fingerprint != plan.fingerprint:
        return None
    mirror.refresh(plan.folder)  # its shards as well, whoever built them
    return manifest


def _added(total: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """The sum of nested counts."""
    sums = dict(total)
    for name, value in more.items():
        sums[name] = _added(total.get(name, {}), value) if isinstance(value, dict) else total.get(name, 0) + value
    return sums
