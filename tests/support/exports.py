"""Lists of a finished store in the layout of `prep export format=lists`, written with pyarrow alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def _shards(store: Path, pattern: str) -> list[pa.Table]:
    (folder,) = (path for path in store.glob(pattern) if (path / "manifest.json").is_file())
    return [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]


def lists_of(store: Path) -> list[pa.Table]:
    """Shard by shard the candidates with their logits and C(q)."""
    if (store / "curriculum").is_dir():
        return _shards(store, "curriculum/*")
    parts = []
    for rows, scores, confidences in zip(
        *(_shards(store, f"{stage}/*") for stage in ("dark_examples", "teacher_scores", "confidence")), strict=True
    ):
        sure = {(row["query_id"], row["draw"]): row["confidence"] for row in confidences.to_pylist()}
        keys = zip(rows.column("query_id").to_pylist(), rows.column("draw").to_pylist(), strict=True)
        parts.append(
            rows.append_column("logit", scores.column("logit")).append_column(
                "confidence", pa.array([sure[key] for key in keys], pa.float32())
            )
        )
    return parts


def write_export(store: Path, folder: Path, **training: Any) -> Path:
    """Export a store; `training` overrides what export.json says of it."""
    parts = lists_of(store)
    (folder / "lists").mkdir(parents=True)
    write_parts(folder, parts)
    pools = pa.concat_tables(_shards(store, "pools/ranked-*"))
    pq.write_table(pools.select(["query_id", "never_ids"]), folder / "never.parquet")
    (shards,) = store.glob("shards/*")
    said = json.loads(pq.read_schema(next(shards.glob("*.parquet"))).metadata[b"training"])
    kept = {name: value for name, value in said.items() if name not in ("tokenizer", "schema_version")}
    order = json.loads((shards / "manifest.json").read_text())["content_digest"]
    lists = {(row["query_id"], row["draw"]) for part in parts for row in part.select(["query_id", "draw"]).to_pylist()}
    write_note(folder, training={**kept, "order": order, **training}, counts={"lists": len(lists)})
    return folder


def write_parts(folder: Path, parts: list[pa.Table]) -> None:
    """The lists, each part in one row group."""
    for number, part in enumerate(parts):
        pq.write_table(part, folder / "lists" / f"part-{number:05d}-of-{len(parts):05d}.parquet", row_group_size=max(1, part.num_rows))


def write_note(folder: Path, *, training: dict[str, Any], counts: dict[str, int]) -> None:
    """export.json."""
    note = {"teacher": {"name": "tiny"}, "other_teachers": [], "training": training, "counts": counts, "format": "lists", "version": 1}
    (folder / "export.json").write_text(json.dumps(note))
