"""C(q) and the diagnostics against formulas written a second time."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tables.shards import read_shard
from pipeline.stages.confidence import confidence, describe_list, entropy

LOGITS = st.floats(-25, 25, width=32)


def log_softmax_of_the_positive(positive: float, negatives: list[float]) -> float:
    """ADAM, Eq. 7, in extended precision: minus log(1 + the sum of e^(t- - t+))."""
    return -float(np.log1p(np.longdouble(math.fsum(math.exp(negative - positive) for negative in negatives))))


@given(LOGITS, st.lists(LOGITS, min_size=1, max_size=15))
def test_confidence_is_equation_7(positive: float, negatives: list[float]) -> None:
    """Prevents: a wrong sign, dark examples in the sum, or digits lost where the teacher is sure."""
    stored = np.float32(confidence(positive, np.array(negatives)))
    assert stored == pytest.approx(log_softmax_of_the_positive(positive, negatives), rel=1e-6)


@pytest.mark.parametrize(
    ("positive", "negatives", "expected"),
    [
        (0.0, [0.0], -math.log(2)),  # a single negative, tied
        (1.5, [1.5] * 9, -math.log(10)),
        (50.0, [-50.0], -math.exp(-100)),
        (-50.0, [50.0], -100.0),
        (-50.0, [50.0, 50.0], -100.0 - math.log(2)),
        (0.0, [-50.0, 50.0], -50.0),
    ],
)  # fmt: skip
def test_confidence_at_the_edges(positive: float, negatives: list[float], expected: float) -> None:
    """Prevents: overflow, and a C(q) of exactly 0 for all queries the teacher is sure of, whose order then is chance."""
    assert np.float32(confidence(positive, np.array(negatives))) == pytest.approx(expected, rel=1e-6)


def test_sure_queries_keep_their_order() -> None:
    """Prevents: ties among the surest queries after the float32 store, which Eq. 8 would then select by id."""
    values = [np.float32(confidence(gap, np.zeros(1))) for gap in (10.0, 20.0, 30.0, 60.0)]
    assert values == sorted(values) and len(set(values)) == 4 and values[-1] < 0


def test_entropy() -> None:
    """Prevents: a diagnostic in bits, or NaN where a probability is 0."""
    assert entropy(np.zeros(8)) == pytest.approx(math.log(8))
    assert entropy(np.array([0.0, -800.0])) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize(("positive", "rank"), [(3.0, 1), (2.0, 2), (1.5, 2), (1.0, 3), (0.0, 4)])
def test_rank_counts_ties_against_the_positive(positive: float, rank: int) -> None:
    """Prevents: a teacher that cannot tell the passages apart, shown as one that ranks the positive first."""
    kinds, logits = np.array([1, 0, 1, 1, 2, 3], dtype=np.int8), np.array([2.0, positive, 1.0, 0.0, 9.0, 9.0])
    assert describe_list(kinds, logits)["positive_rank"] == rank


def test_dark_examples_enter_the_entropy_only() -> None:
    """Prevents: N_rein or N_mask in C(q), which Eq. 7 leaves out, or p+ in the soft label, which Eq. 9 leaves out."""
    kinds = np.array([0, 1, 1, 2, 3], dtype=np.int8)
    plain = describe_list(kinds, np.array([1.0, 0.5, -2.0, 0.3, 0.7]))
    other_dark = describe_list(kinds, np.array([1.0, 0.5, -2.0, 5.3, 9.7]))
    other_positive = describe_list(kinds, np.array([4.0, 0.5, -2.0, 0.3, 0.7]))
    same = ("confidence", "positive_logit", "negative_mean", "negative_max", "positive_rank")
    assert [plain[name] for name in same] == [other_dark[name] for name in same] and plain["label_entropy"] != other_dark["label_entropy"]
    assert plain["label_entropy"] == other_positive["label_entropy"] and plain["confidence"] != other_positive["confidence"]
    assert (plain["negative_mean"], plain["negative_max"]) == (-0.75, 0.5)


def rows_of(store: Path, stage: str) -> list[dict[str, Any]]:
    return [row for path in sorted((store / stage).rglob("*.parquet")) for row in read_shard(path).to_pylist()]


def test_every_stored_row(finished: Any) -> None:
    """Prevents: C(q) of another query, or training rows whose logits and confidence do not belong together."""
    kinds = {(row["query_id"], row["position"]): row["candidate_kind"] for row in rows_of(finished.store, "dark_examples")}
    lists: dict[str, dict[int, list[float]]] = {}
    for row in rows_of(finished.store, "teacher_scores"):
        lists.setdefault(row["query_id"], {}).setdefault(kinds[row["query_id"], row["position"]], []).append(row["logit"])
    stored = {row["query_id"]: row["confidence"] for row in rows_of(finished.store, "confidence")}
    assert stored.keys() == lists.keys() and len(stored) == 14
    for query_id, logits in lists.items():
        assert stored[query_id] == pytest.approx(log_softmax_of_the_positive(logits[0][0], logits[1]), rel=1e-6)
    for row in rows_of(finished.store, "shards"):
        assert row["confidence"] == stored[row["query_id"]] and len(row["teacher_logits"]) == len(row["candidate_tokens"]) == 12
        assert row["teacher_logits"][:1] == lists[row["query_id"]][0] and row["teacher_logits"][1:4] == lists[row["query_id"]][1]
