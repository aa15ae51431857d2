"""A shard whose windows several workers score: the same logits and tables, each text read once for each thing that is done with it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.stores import distinct_pairs, forget_scores

from data.config.settings import load
from data.errors import RunFailed
from data.logits.segment import Segment
from data.logits.store import LogitStore
from data.tables.manifest import Manifest, ShardRecord
from data.tables.shards import open_shard, read_shard
from pipeline.executors.local import LocalExecutor
from pipeline.scoring.requested_pairs import first_of_pairs
from pipeline.scoring.windows import spans_of
from pipeline.stage import Cutting, Stored
from pipeline.stages import teacher_scores
from pipeline.stages.ingest import shard_of_query
from retrieval.models.resolved import ResolvedModels

Prep = Callable[..., list[str]]
Files = Callable[[Path], dict[str, bytes]]
WINDOW = {"teacher.segment_pairs": 10}  # 9 windows a shard


def logits_of(store: Path) -> list[tuple[Any, ...]]:
    rows = [row for path in store.glob("teacher_logits/*/*.parquet") for row in read_shard(path).to_pylist()]
    return sorted(tuple(row.values()) for row in rows)


def lines_of(store: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in store.glob("teacher_scores/*/journal.jsonl") for line in path.read_text().splitlines()]


@pytest.fixture
def many_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool that two shards do not keep busy, played by one worker."""
    monkeypatch.setattr(LocalExecutor, "workers", lambda self, *, uses_device: 8)


@pytest.fixture
def alone(copied: Any, prep_run: Prep, parquet_files: Files, count_scored: list[int]) -> Any:
    """(copied, tables, logits, batches) of an unbroken run of one worker; the copy has no scores any more."""
    forget_scores(copied.store)
    prep_run(copied.config, **WINDOW)
    tables, logits, batches = parquet_files(copied.store), logits_of(copied.store), sorted(count_scored)
    assert not [line for line in lines_of(copied.store) if "windows" in line.get("piece", "")]
    forget_scores(copied.store)
    count_scored.clear()
    return copied, tables, logits, batches


def test_parts_give_the_same_bytes_and_batches(
    alone: Any, prep_run: Prep, parquet_files: Files, count_scored: list[int], request: pytest.FixtureRequest
) -> None:
    """Prevents: logits by rounding of other batches, pairs that two parts score or none, hits counted that were paid for just now."""
    copied, tables, logits, batches = alone
    request.getfixturevalue("many_workers")
    prep_run(copied.config, **WINDOW)
    assert parquet_files(copied.store) == tables and logits_of(copied.store) == logits and sorted(count_scored) == batches
    lines = lines_of(copied.store)
    assert len([line for line in lines if line.get("piece", "").startswith("windows")]) == 18
    total = {name: sum(line.get(name, 0) for line in lines) for name in ("pairs", "cached", "scored")}
    assert total == {"pairs": len(logits), "cached": 0, "scored": len(logits)}
    assert not list(copied.store.glob("teacher_scores/*/pieces"))


def test_parts_that_were_broken_off_go_on(
    alone: Any, prep_run: Prep, parquet_files: Files, count_scored: list[int], many_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: windows paid for again after a failure among the parts, or other batches after it."""
    from retrieval.teachers import cross_encoder

    copied, tables, logits, batches = alone
    plain, calls = cross_encoder.TorchCrossEncoder.logits, [0]

    def breaks(self: Any, *given: Any) -> Any:
        calls[0] += 1
        if calls[0] in (4, 9):
            raise RunFailed("the machine is gone")
        return plain(self, *given)

    monkeypatch.setattr(cross_encoder.TorchCrossEncoder, "logits", breaks)
    for _ in range(2):
        with pytest.raises(RunFailed, match="the machine is gone"):
            prep_run(copied.config, **WINDOW)
    prep_run(copied.config, **WINDOW)
    assert parquet_files(copied.store) == tables and logits_of(copied.store) == logits and sorted(count_scored) == batches


@pytest.mark.medium
@pytest.mark.parametrize("workers", [1, 8])
def test_a_text_is_hashed_once(
    copied: Any, prep_run: Prep, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, workers: int
) -> None:
    """Prevents: shards x parts readings of all texts, and one more for the price and one for the shard itself."""
    from pipeline.scoring import requested_pairs

    forget_scores(copied.store)
    if workers > 1:
        request.getfixturevalue("many_workers")
    hashed: list[str] = []
    plain = requested_pairs.pair_keys

    def counted(queries: Any, counts: Any, texts: Any) -> bytes:
        hashed.extend(texts.to_pylist())
        return plain(queries, counts, texts)

    monkeypatch.setattr(requested_pairs, "pair_keys", counted)
    prep_run(copied.config, **WINDOW)
    assert len(hashed) == 168


def test_without_the_keys_parts_read_the_texts(
    alone: Any, prep_run: Prep, parquet_files: Files, count_scored: list[int], many_workers: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: jobs that price nothing, or lose a file of keys, and score other pairs than the others."""
    copied, tables, logits, batches = alone
    first, second = teacher_scores.TABLE.rounds

    def none(context: Any, piece: Any) -> None:
        context.figures["price"] = {}

    monkeypatch.setattr("pipeline.scoring.pricing.write_keys", None)
    bare = dataclasses.replace(teacher_scores.TABLE, rounds=(dataclasses.replace(first, build=none), second))
    monkeypatch.setattr(teacher_scores, "TABLE", bare)
    prep_run(copied.config, **WINDOW)
    assert parquet_files(copied.store) == tables and logits_of(copied.store) == logits and sorted(count_scored) == batches


def cutting(config: Path, rows: list[int], *, workers: int, prices: bool = True) -> Cutting:
    models = ResolvedModels(load({"config": str(config)}))
    records = [ShardRecord(str(number), count, 0, "") for number, count in enumerate(rows)]
    inputs = {"dark_examples": Stored(Path("x"), Manifest("dark_examples", "", "", {}, records, {}))}
    return Cutting(models, inputs, range(len(rows)), Path("y"), 1, workers, prices)


def test_shards_are_cut_only_where_workers_would_be_idle(finished: Any) -> None:
    """Prevents: thousands of small tasks where shards are enough; one slow shard that a cluster waits for; jobs that cut differently."""
    keys, parts = (each.cut for each in teacher_scores.TABLE.rounds)
    rows = [5000, 100, 2048, 90_000]
    assert parts(cutting(finished.config, rows, workers=1)) == []
    names = [piece.name for piece in parts(cutting(finished.config, rows, workers=2))]
    assert [name.split("-of")[0][:13] for name in names] == ["windows-00000"] * 3 + ["windows-00003"] * 16 and len(set(names)) == 19
    assert [piece.name for piece in parts(cutting(finished.config, rows, workers=400))] == names
    assert parts(cutting(finished.config, rows * 2, workers=2)) == []
    assert parts(cutting(finished.config, [2048] * 4, workers=9)) == []
    assert len(keys(cutting(finished.config, rows, workers=1))) == 4
    assert keys(cutting(finished.config, rows, workers=1, prices=False)) == []
    assert len(keys(cutting(finished.config, rows, workers=2, prices=False))) == 4


@given(sizes=st.lists(st.sampled_from([1, 700, 4096]), max_size=4), rows=st.sampled_from([1000, 4095, 4096, 9000]))
def test_spans_follow_each_other(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], rows: int) -> None:
    """Prevents: rows between two windows, or in both, whatever the row groups are."""
    path = tmp_path_factory.mktemp("spans") / "s.parquet"
    schema = pa.schema([("row", pa.int64())])
    with open_shard(path, schema, {}) as writer:
        for size in sizes:
            writer.write_row_group(pa.table([pa.array(range(size))], schema=schema))
    spans = spans_of(path, rows)
    assert [row for span in spans for row in range(span.start, span.stop)] == list(range(sum(sizes)))
    starts = np.cumsum([0, *sizes]).tolist()
    for span in spans:
        assert 0 < span.stop - span.start <= rows
        assert starts[span.groups.start] == span.groups_start <= span.start and span.stop <= starts[span.groups.stop]


@given(st.lists(st.integers(0, 6)))
def test_first_rows_of_pairs(found: list[int]) -> None:
    """Prevents: a pair that no window takes for its own, or two do."""
    numbers = {value: number for number, value in enumerate(dict.fromkeys(found))}
    pairs = np.array([numbers[value] for value in found], np.int32)
    assert first_of_pairs(pairs).tolist() == [value not in found[:row] for row, value in enumerate(found)]


def test_a_querys_shard_stays_what_it_is() -> None:
    """Prevents: another hash, by which segments that exist would be taken for those of other shards, and all be paid for again."""
    assert [shard_of_query(text, 64) for text in ("what is a deductible", "Ärzte", "")] == [9, 20, 28]


def test_the_price_is_said_by_the_workers_as_the_plan_says_it(copied: Any, prep_run: Prep) -> None:
    """Prevents: two figures of one bill."""
    from typer.testing import CliRunner

    from pipeline.cli import app

    shutil.rmtree(copied.store / "teacher_scores")
    half = sorted(copied.store.glob("teacher_logits/*/*.parquet"))[0]
    half.unlink()
    planned = CliRunner().invoke(app, ["plan", f"config={copied.config}"], env={"COLUMNS": "200"}).output
    (line,) = [line for line in prep_run(copied.config) if " to score" in line]
    words = line.split(maxsplit=1)[1]
    assert words in planned and f"{distinct_pairs(copied.store)} distinct" in words and " 0 to score" not in words


def test_a_job_that_counted_some_shards_says_so(finished: Any) -> None:
    """Prevents: the bill of a few shards, which this one of several jobs counted, read as that of all."""
    (tell, _) = (each.told for each in teacher_scores.TABLE.rounds)
    assert tell is not None
    lines: list[str] = []
    price = {"requested": 10, "distinct": 8, "cached": 8, "sampled": 0, "sampled_tokens": 0}
    tell(cutting(finished.config, [10, 10], workers=1), [{"price": price}], lines.append)
    tell(cutting(finished.config, [10, 10], workers=1), [], lines.append)
    assert lines == ["teacher_scores   1 of 2 shards: 10 pairs, 8 distinct, 8 cached, 0 to score"]


@pytest.mark.medium
def test_old_segments_that_pile_up_are_merged_by_the_run(
    copied: Any, prep_run: Prep, parquet_files: Files, count_scored: list[int]
) -> None:
    """Prevents: hundreds of small segments of an earlier version, or of imports, that each shard reads whole."""
    forget_scores(copied.store)
    prep_run(copied.config, **{"teacher.segment_pairs": 1})
    (folder,) = (copied.store / "teacher_logits").iterdir()
    logits, tables = logits_of(copied.store), parquet_files(copied.store)
    store = LogitStore(copied.store, folder.name)
    for path in store.segment_paths():  # as an earlier version would have left them
        keys, scores = Segment.open(path).read(range(16))
        path.unlink()
        for row in range(len(keys)):
            store.append(keys[row : row + 1], scores.take(np.array([row])))
    shutil.rmtree(copied.store / "teacher_scores")
    count_scored.clear()
    lines = prep_run(copied.config)
    assert f"merged {len(logits)} segments" in "\n".join(lines) and count_scored == []
    assert len(store.segment_paths()) == 1 and logits_of(copied.store) == logits and parquet_files(copied.store) == tables
