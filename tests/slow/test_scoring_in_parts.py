"""Windows that the workers of Ray share: the bytes of one process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support.stores import distinct_pairs, forget_scores

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="as the other tests under Ray")


def test_two_workers_share_the_windows_of_two_shards(
    copied: Any, prep_run: Callable[..., list[str]], parquet_files: Callable[[Path], dict[str, bytes]]
) -> None:
    """Prevents: parts that are cut and never sent, a bill that no worker sends back, pairs that two workers pay for."""
    forget_scores(copied.store)
    prep_run(copied.config, **{"teacher.segment_pairs": 10})
    expected = parquet_files(copied.store)
    forget_scores(copied.store)
    words = [f"config={copied.config}", "teacher.segment_pairs=10", "runner=ray", "runner.workers=2"]
    script = Path(sys.executable).parent / "prep"
    done = subprocess.run([script, "run", *words], capture_output=True, text=True, timeout=600)  # a machine may be busy
    assert done.returncode == 0, done.stdout + done.stderr
    pairs = distinct_pairs(copied.store)
    assert f"{pairs} distinct, 0 cached, {pairs} to score" in done.stdout
    assert parquet_files(copied.store) == expected
    assert sum(pq.read_metadata(path).num_rows for path in copied.store.glob("teacher_logits/*/*.parquet")) == pairs
    journals = [path.read_text() for path in copied.store.glob("teacher_scores/*/journal.jsonl")]
    lines = [json.loads(line) for text in journals for line in text.splitlines()]
    assert len([line for line in lines if line.get("piece", "").startswith("windows")]) == 18
    assert {name: sum(line.get(name, 0) for line in lines) for name in ("cached", "scored")} == {"cached": 0, "scored": pairs}
