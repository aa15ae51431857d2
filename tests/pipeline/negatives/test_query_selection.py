"""Selection of queries by ranks: against the definition read plainly, over whole runs, and what is told of it."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.config.settings import load
from data.errors import NothingLeft, UserError
from pipeline.negatives.pool_pairs import PoolRow
from pipeline.negatives.query_selection import KEPT_RANKS, RANKS, RanksOfPositive, band, ranks_of, why_dropped
from pipeline.plan import Planner, table_named
from pipeline.report.page import write_report
from pipeline.stages import hard_negatives
from trainer.input.stream import open_training_shards, rows_of_epoch

Prep = Callable[..., list[str]]
FROM_STUDENT = {"hard_negatives.sampler": "top", "dark_examples.reinforced": False, "dark_examples.mask_ratios": "[]"}


def plainly(scores: dict[str, float], logits: dict[str, float], positives: set[str], *, depth: int) -> tuple[int | None, int | None]:
    """The definition: the student's list, the first labelled positive in it, and where the teacher's order of the list has that one."""
    listed = sorted(scores, key=lambda doc_id: (-scores[doc_id], doc_id))[:depth]
    again = sorted(listed, key=lambda doc_id: (-logits[doc_id], doc_id))
    first = next((doc_id for doc_id in listed if doc_id in positives), None)
    return (None, None) if first is None else (listed.index(first) + 1, again.index(first) + 1)


def kept_plainly(student: int | None, teacher: int | None, rule: str) -> bool:
    if student is None or teacher is None:
        return False
    if rule == "prod":
        return student in range(2, 16) and teacher == 1
    return teacher - 1 < student - 1 and teacher - 1 < 15  # counted from 0


@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 45), st.integers(1, 5), st.integers(2, 60))
def test_ranks_and_what_is_kept(seed: int, passages: int, depth: int, labels: int, values: int) -> None:
    """Prevents: a rank off by one, ties that favour p+, two ranks of two positives, a teacher that ranks what the student never
    found."""
    chance = np.random.default_rng(seed)
    ids = [f"d{number}" for number in chance.permutation(100)[: passages + labels]]
    positives = ids[:labels]
    scores = dict(zip(ids, (chance.integers(0, values, len(ids)) / 4).astype(np.float32).tolist(), strict=True))
    logits = dict(zip(ids, (chance.integers(0, values, len(ids)) / 4).astype(np.float32).tolist(), strict=True))
    pool = sorted(ids[labels:], key=lambda doc_id: (-scores[doc_id], doc_id))[:depth]
    others = [f"x{number}" for number in range(3)]  # of another source: no rivals of the student's list
    row = PoolRow(
        "q",
        positives,
        np.array([scores[doc_id] for doc_id in positives], np.float32),
        [*others, *pool],
        np.array([9.0, 8.0, 7.0, *(scores[doc_id] for doc_id in pool)], np.float32),
        np.array([1] * 3 + [0] * len(pool), np.int8),
    )
    found = ranks_of(
        row, logits={**logits, **dict.fromkeys(others, 99.0)}, positive_logits=[logits[doc_id] for doc_id in positives], depth=depth
    )
    assert (found.student, found.teacher) == plainly(scores, logits, set(positives), depth=depth)
    for rule in ("prod", "prod_nq"):
        assert (why_dropped(found, rule) is None) == kept_plainly(found.student, found.teacher, rule)


def test_both_ranks_are_of_the_positive_that_is_trained() -> None:
    """Prevents: a query kept since the student has one positive at rank 2 and the teacher another at rank 1, and trained with a third."""

    def kept(positive_scores: list[float], positive_logits: list[float]) -> RanksOfPositive:
        pool = [f"d{number}" for number in range(10)]
        falling = np.linspace(5, 1, 10).astype(np.float32)
        row = PoolRow("q", ["a", "b", "c"], np.array(positive_scores, np.float32), pool, falling, np.zeros(10, np.int8))
        logits = {doc_id: 0.0 for doc_id in pool} | {"d0": 3.0}
        return ranks_of(row, logits=logits, positive_logits=positive_logits, depth=12)

    first_is_b = [0.0, 4.9, 2.0]  # c comes later, a is not in the list
    right, wrong = kept(first_is_b, [9.0, 5.0, 4.0]), kept(first_is_b, [9.0, 2.0, 5.0])
    assert (right.positive, right.student, right.teacher) == ("b", 2, 1) and why_dropped(right, "prod") is None
    assert (wrong.positive, wrong.student, wrong.teacher) == ("b", 2, 3)
    assert why_dropped(wrong, "prod") == "the teacher ranks another passage first"


@given(st.integers(1, 20), st.integers(1, 20))
def test_every_rank_is_judged_as_defined(student: int, teacher: int) -> None:
    """Prevents: a limit of 15 that is meant from 0 and taken from 1, or the other way about."""
    for rule in ("prod", "prod_nq"):
        assert (why_dropped(RanksOfPositive(student, teacher), rule) is None) == kept_plainly(student, teacher, rule)
    assert [band(rank) for rank in (1, 2, 5, 6, 15, 16, 100, 101, None)] == [
        "1",
        "2-5",
        "2-5",
        "6-15",
        "6-15",
        "16-100",
        "16-100",
        "101+",
        "none",
    ]


@pytest.mark.medium
@pytest.mark.parametrize("rule", ["prod", "prod_nq"])
def test_a_run_keeps_the_queries_that_its_tables_say(
    copied: Any, prep_run: Prep, tmp_path: Path, rule: str, count_scored: list[int]
) -> None:
    """Prevents: logits of another query's pool, counts that do not add up, a second round that pays for pairs again."""
    settings = {**FROM_STUDENT, "hard_negatives.select": rule, "hard_negatives.depth": 20}
    lines = prep_run(copied.config, **settings)
    words = {"config": str(copied.config), **{key: str(value) for key, value in settings.items()}}
    planner, experiment = Planner(load(words)), load(words)

    def stored(label: str) -> Any:
        return planner.plan(table_named(experiment, label)).stored

    kept, ranks, kept_ranks, qualified = set[str](), Counter[str](), Counter[str](), dict[str, str]()
    pairs = {label: [row for group in stored(label).row_groups() for row in group.to_pylist()] for label in ("pools.pairs", "pool_scores")}
    logit = {
        (pair["query_id"], pair["candidate_id"]): score["logit"]
        for pair, score in zip(pairs["pools.pairs"], pairs["pool_scores"], strict=True)
    }
    for group in stored("pools.ranked").row_groups():
        for row in group.to_pylist():
            scores = dict(zip(row["ranked_ids"], row["ranked_scores"], strict=True))
            scores |= dict(zip(row["positive_ids"], row["positive_scores"], strict=True))
            logits = {doc_id: logit[row["query_id"], doc_id] for doc_id in scores}
            student, teacher = plainly(scores, logits, set(row["positive_ids"]), depth=20)
            ranks[f"{band(student)} / {band(teacher)}"] += 1
            if kept_plainly(student, teacher, rule):
                kept.add(row["query_id"])
                qualified[row["query_id"]] = max(sorted(row["positive_ids"]), key=lambda doc_id: scores[doc_id])
                kept_ranks[f"{band(student)} / {band(teacher)}"] += 1
    counts = stored("hard_negatives").manifest.counts
    assert counts["kept"] == len(kept) == counts["in"] - sum(counts["dropped"].values()) and counts["in"] == 14
    assert counts[RANKS] == dict(ranks) and counts[KEPT_RANKS] == dict(kept_ranks) and 0 < len(kept) < 14
    assert any(f"keeps {len(kept)} of 14 queries" in line for line in lines)
    rows = [row for group in stored("hard_negatives").row_groups() for row in group.to_pylist()]
    assert {row["query_id"] for row in rows} == kept
    pools = {row["query_id"]: row["ranked_ids"] for group in stored("pools.ranked").row_groups() for row in group.to_pylist()}
    assert all(row["negative_ids"] == [pools[row["query_id"]][:3]] for row in rows)  # the student's hardest, in order
    training = open_training_shards(stored("shards").folder, tokenizer=_metadata(stored("shards").paths()[0])["tokenizer"])
    trained = {row.query_id: row.candidate_ids[0] for row in rows_of_epoch(training, seed=0, epoch=0)}
    assert trained == qualified and trained.keys() == kept

    write_report(experiment, tmp_path / "report.html")
    page = html.unescape((tmp_path / "report.html").read_text())
    assert "Selection of queries" in page and all(reason in page for reason in counts["dropped"])
    scored = sum(count_scored)
    prep_run(copied.config, **{**settings, "hard_negatives.select": "prod" if rule == "prod_nq" else "prod_nq"})
    assert sum(count_scored) == scored


def test_nothing_left_to_learn_is_no_failure(copied: Any, prep_run: Prep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a ladder of rounds that ends with a wrong hint at the collection, or in the code of a broken command."""
    monkeypatch.setattr(hard_negatives, "why_dropped", lambda ranks, rule: "the student is right")
    select = {**FROM_STUDENT, "hard_negatives.select": "prod"}
    for stage in (None, None, "dark_examples"):  # as it is built, when it is found, and by who would read it
        with pytest.raises(NothingLeft, match=r"select keeps none of 14 queries, nothing is left to learn: .*student is right") as ended:
            prep_run(copied.config, **({"stage": stage} if stage else {}), **select)
        assert ended.value.exit_code == 3


def test_lists_without_any_positive_are_a_failure(copied: Any, prep_run: Prep) -> None:
    """Prevents: a wrong retriever that passes for a student that has learnt everything."""
    alone = {"hard_negatives.select": "prod", "hard_negatives.depth": 1, "hard_negatives.range_max": 1}
    with pytest.raises(UserError, match=r"hard_negatives has no rows .*not in the student's list.* belong to this collection") as ended:
        prep_run(copied.config, **FROM_STUDENT, **alone)
    assert ended.value.exit_code == 2


def _metadata(path: Path) -> dict[str, Any]:
    return json.loads((pq.read_schema(path).metadata or {})[b"training"])


def test_shards_without_a_teacher(copied: Any, prep_run: Prep, count_scored: list[int]) -> None:
    """Prevents: zeros that pass for logits, a teacher that must exist before there is one to train, shards that claim one."""
    settings = {**FROM_STUDENT, "teacher.backend": "none", "teacher.model": "nowhere/yet"}
    prep_run(copied.config, **settings)
    experiment = load({"config": str(copied.config), **{key: str(value) for key, value in settings.items()}})
    shards = Planner(experiment).plan(table_named(experiment, "shards")).stored
    metadata = _metadata(shards.paths()[0])
    assert metadata["teachers"] == [] and not count_scored
    training = open_training_shards(shards.folder, tokenizer=metadata["tokenizer"])
    rows = list(rows_of_epoch(training, seed=0, epoch=0))
    assert len(rows) == 14 and all(len(row.kinds) == 4 for row in rows)
    assert all(np.isnan(row.teacher_logits).all() and np.isnan(row.confidence) for row in rows)
    for wrong in ({"stage": "teacher_scores"}, {"hard_negatives.score_pools": True}, {"dark_examples.reinforced": True}):
        with pytest.raises(UserError, match=r"teacher\.backend=none"):
            prep_run(copied.config, **{**settings, **wrong})


def test_ranks_need_the_student(copied: Any, prep_run: Prep) -> None:
    """Prevents: a selection by BM25's ranks."""
    with pytest.raises(UserError, match="needs student among the sources"):
        prep_run(copied.config, **{"hard_negatives.select": "prod", "hard_negatives.source": "bm25"})
