"""Training rows, made in arrays a row group at a time, against a plain version that holds all of a shard as Python lists."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.config.settings import Experiment, load
from data.digests import hash64
from data.logits.segment import as_keys
from data.tables import shards as data_shards
from data.tables.manifest import Manifest, ShardRecord
from data.tables.schemas import CANDIDATES, CONFIDENCE, POOLS, SEPARATOR_MARK, TEACHER_SCORES, TRAINING, CandidateKind
from data.tables.shards import describe, open_footer, open_shard, read_shard
from pipeline.scoring.dedup import first_occurrence
from pipeline.stage import StageContext, Stored, WorkerCache
from pipeline.stages import training_shards as shards
from retrieval.models.resolved import ResolvedModels
from retrieval.models.student import resolve_student
from retrieval.models.tokenizer import Tokenizer
from trainer.input.stream import open_training_shards, rows_of_epoch

Row = dict[str, Any]
TEXTS = st.lists(st.sampled_from(["ba", "be", "bi", "bo", "bubabe"]), min_size=1, max_size=5).map(" ".join)  # many are the same
MIXED = st.tuples(TEXTS, TEXTS).map(lambda both: f" {SEPARATOR_MARK} ".join(both))
LOGITS = st.floats(-20, 20, width=32)


@st.composite
def candidate_lists(draw: st.DrawFn) -> list[list[Row]]:
    """Lists of one shard as rows of all three tables in one; a mixed text may be that of a passage, too."""
    lists: list[list[Row]] = []
    for number in draw(st.lists(st.integers(0, 99), unique=True, max_size=7)):
        query = draw(TEXTS)
        for place in range(draw(st.integers(1, 2))):
            negatives = draw(st.integers(1, 3))
            kinds = [CandidateKind.POSITIVE, *[CandidateKind.NEGATIVE] * negatives]
            kinds += [CandidateKind.REINFORCED_NEGATIVE] * draw(st.sampled_from([0, negatives]))
            kinds += [CandidateKind.NOISY_POSITIVE] * draw(st.integers(0, 2))
            confidence = draw(st.floats(-9, 0, width=32))
            lists.append(
                [
                    {
                        "query_id": f"q{number}", "draw": place, "position": position, "candidate_kind": int(kind),
                        "candidate_id": draw(st.text("dé+~0", min_size=1, max_size=5)), "query": query,
                        "text": draw(st.one_of(MIXED, TEXTS) if kind == CandidateKind.REINFORCED_NEGATIVE else TEXTS),
                        "logit": draw(LOGITS), "confidence": confidence,
                    }
                    for position, kind in enumerate(kinds)
                ]
            )  # fmt: skip
    return lists


def stored(folder: Path, rows: list[Row], schema: pa.Schema) -> Stored:
    others = {"token_count": 1, "truncated": False, "positive_logit": 0, "negative_mean": 0, "negative_max": 0, "positive_rank": 1}
    whole = [{**others, "label_entropy": 0, **row} for row in rows]
    with open_shard(folder / "p", schema, {}) as writer:
        writer.write(pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in whole], schema=schema))
    return Stored(folder, Manifest("", "", "", {}, [ShardRecord("p", *describe(folder / "p"))], {}))


def never_ids(query_id: str) -> list[str]:
    return [f"{query_id}-{number}" for number in range(int(query_id[1:]) % 3)]


def pool_rows(lists: list[list[Row]]) -> list[Row]:
    """The pools of these queries, in an order of their own, and of one that has no list."""
    queries = sorted({listed[0]["query_id"] for listed in lists} | {"q100"})
    return [{**dict.fromkeys(POOLS.names), "query_id": query_id, "never_ids": never_ids(query_id)} for query_id in queries]


def made(lists: list[list[Row]], experiment: Experiment, root: Path) -> Path:
    """The shard that the stage makes."""
    rows = [row for listed in lists for row in listed]
    inputs = {
        "dark_examples": stored(root / "c", rows, CANDIDATES),
        "teacher_scores": stored(root / "t", rows, TEACHER_SCORES),
        "confidence": stored(root / "f", [listed[0] for listed in lists], CONFIDENCE),
        "pools.ranked": stored(root / "p", pool_rows(lists), POOLS),
    }
    context = StageContext(
        ResolvedModels(experiment),
        shards.table(experiment),
        root / "out",
        "f",
        [0],
        1,
        inputs,
        WorkerCache(),
        report=lambda unit, count: None,
        warn=print,
    )
    context.table.build(context)
    return next((root / "out").glob("*.parquet"))


def plain(lists: list[list[Row]], experiment: Experiment) -> list[Row]:
    """The same rows text by text."""
    student = resolve_student(experiment.student)
    tokenizer = Tokenizer(student.weights_folder)

    def tokens(text: str, kind: int) -> list[int]:
        longest = experiment.dark_examples.mixed_tokens if kind == CandidateKind.REINFORCED_NEGATIVE else student.passage_tokens
        return tokenizer.encode([student.passage_prefix + text], max_tokens=int(longest or 0))[0]

    rows = [
        {
            "query_id": listed[0]["query_id"],
            "draw": listed[0]["draw"],
            "query_tokens": tokenizer.encode([student.query_prefix + listed[0]["query"]], max_tokens=student.query_tokens)[0],
            "candidate_tokens": [tokens(row["text"], row["candidate_kind"]) for row in listed],
            "candidate_kind": [row["candidate_kind"] for row in listed],
            "candidate_id": [row["candidate_id"] for row in listed],
            "teacher_logits": [row["logit"] for row in listed],
            "confidence": listed[0]["confidence"],
            "never_ids": never_ids(listed[0]["query_id"]),
        }
        for listed in lists
    ]
    return sorted(rows, key=lambda row: (hash64(experiment.seed, "order", row["query_id"], row["draw"]), row["query_id"], row["draw"]))


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Callable[..., Path]) -> Experiment:
    """Each kind of text has its own prefix or length."""
    student = {"student.query_prefix": "be: ", "student.passage_prefix": "bi: ", "student.query_tokens": 5, "student.passage_tokens": 8}
    config = tiny_experiment(tmp_path_factory.mktemp("rows"), **student, **{"dark_examples.mixed_tokens": 10, "hard_negatives.draws": 2})
    return load({"config": str(config)})


@pytest.mark.medium
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lists=candidate_lists(), group=st.integers(1, 9), written=st.integers(1, 5))
def test_the_same_rows_in_the_same_order(
    lists: list[list[Row]], group: int, written: int, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: tokens or logits of another candidate where a list begins in one row group and ends in the next, where a text stands
    twice, or where the same text is cut at two lengths."""
    monkeypatch.setattr(data_shards, "ROW_GROUP_ROWS", group)
    monkeypatch.setattr(shards, "TRAINING_GROUP_ROWS", written)
    with tempfile.TemporaryDirectory() as folder:
        path = made(lists, experiment, Path(folder))
        assert read_shard(path).to_pylist() == plain(lists, experiment)
        metadata, footer = open_footer(path)
        assert pq.read_schema(path).equals(TRAINING) and b"training" in pq.read_schema(path).metadata
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    assert sum(sizes) == len(lists) and all(size == written for size in sizes[:-1])
    tokens = sum(len(one) for row in plain(lists, experiment) for one in row["candidate_tokens"])
    candidates = sum(map(len, lists))
    expected = {"in": len(lists), "kept": len(lists), "dropped": {}, "candidates": candidates, "candidate tokens": tokens}
    assert footer["counts"] == expected


def test_the_trainer_reads_them(experiment: Experiment, tmp_path: Path) -> None:
    """Prevents: row groups that the trainer cannot place, and windows of thousands of rows in its memory."""
    row = {"draw": 0, "candidate_id": "d", "query": "ba", "text": "be bi", "logit": 0.5, "confidence": -0.5}
    pair = [{**row, "position": place, "candidate_kind": place} for place in (0, 1)]
    lists = [[{**one, "query_id": f"q{number}"} for one in pair] for number in range(1100)]
    draws = [[{**one, "draw": draw} for one in listed] for listed in lists for draw in (0, 1)]
    path = made(draws, experiment, tmp_path)
    Manifest("shards", "", "", {}, [ShardRecord(path.name, *describe(path))], {}).write(path.parent)
    found = open_training_shards(path.parent, tokenizer=resolve_student(experiment.student).tokenizer_digest)
    assert [sum(group.rows_of_draw) for group in found.groups] == [512, 512, 512, 512, 152]
    rows = list(rows_of_epoch(found, seed=0, epoch=1))
    assert sorted(row.query_id for row in rows) == sorted(f"q{number}" for number in range(1100))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), max_size=40))
def test_first_sight(halves: list[tuple[int, int]]) -> None:
    """Prevents: two texts taken for one because half of their keys is the same."""
    keys = as_keys([first.to_bytes(8, "big") + second.to_bytes(8, "big") for first, second in halves])
    first, number = first_occurrence(keys)
    distinct = list(dict.fromkeys(halves))
    assert [halves[row] for row in first] == distinct and np.array_equal(first, sorted(first))
    assert [distinct[place] for place in number] == halves and first.tolist() == [halves.index(key) for key in distinct]
