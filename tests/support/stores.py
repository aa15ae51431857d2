"""Of the stores of finished runs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from data.tables.shards import read_shard


def candidates(store: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(store.glob("dark_examples/*/*.parquet")) for row in read_shard(path).to_pylist()]


def distinct_pairs(store: Path) -> int:
    return len({(row["query"], row["text"]) for row in candidates(store)})


def forget_scores(store: Path) -> None:
    for name in ("teacher_scores", "teacher_logits"):
        shutil.rmtree(store / name, ignore_errors=True)
