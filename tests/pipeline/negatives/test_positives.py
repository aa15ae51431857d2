"""Which passages of a query are trained as p+, against plain readings of the rules."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from data.config.settings import HardNegatives
from pipeline.negatives.drawing import Logits
from pipeline.negatives.pool_pairs import PoolRow
from pipeline.negatives.positives import QueryLists, lists_of_query

POOL = [f"d{number}" for number in range(20)]
POSITIVES = [f"p{number}" for number in range(6)]
TABLE = st.lists(st.integers(-12, 12).map(lambda number: number / 2), min_size=26, max_size=26)


def settings_of(**given_settings: Any) -> HardNegatives:
    return HardNegatives(depth=20, range_max=20, **given_settings)


def lists(settings: HardNegatives, *, positives: int, table: list[float] | None = None, negatives: set[str] | None = None) -> QueryLists:
    """The lists of a query with so many labelled positives; its scores are the logits."""
    known = dict(zip([*POSITIVES, *POOL], table or [0.0] * 26, strict=True))
    ids = POSITIVES[:positives]
    scores = np.array([known[doc_id] for doc_id in ids], np.float32)
    row = PoolRow("q", ids, scores, POOL, np.array([known[doc_id] for doc_id in POOL], np.float32), np.zeros(20, np.int8))
    logits = Logits([known[doc_id] for doc_id in ids], {doc_id: known[doc_id] for doc_id in POOL})
    return lists_of_query(row, settings, seed=0, logits=logits, labelled_negatives=negatives or set())


@given(st.integers(1, 6), st.integers(2, 12), st.sampled_from(["top", "uniform"]))
def test_rotation_visits_every_positive(positives: int, draws: int, sampler: str) -> None:
    """Prevents: labels that no epoch trains on though there are draws enough; a rotation that does not begin with the best label."""
    found = lists(settings_of(positives="rotate", draws=draws, sampler=sampler), positives=positives).lists
    assert [one.draw for one in found] == list(range(draws))
    assert [one.positive for one in found] == [POSITIVES[draw % positives] for draw in range(draws)]
    if draws >= positives:
        assert {one.positive for one in found} == set(POSITIVES[:positives])


@given(st.integers(1, 6), st.integers(1, 3))
def test_each_positive_has_a_list_in_each_draw(positives: int, draws: int) -> None:
    """Prevents: a positive that is left out, trained twice, or drawn as a negative of another."""
    found = lists(settings_of(positives="each", draws=draws), positives=positives).lists
    assert [(one.draw, one.positive) for one in found] == [(draw, doc_id) for draw in range(draws) for doc_id in POSITIVES[:positives]]
    assert all(len(one.negatives) == 10 and set(one.negatives) <= set(POOL) for one in found)


@given(TABLE, st.integers(1, 6), st.sampled_from(["rotate", "each"]), st.sampled_from([0.0, 1.0, 3.0]))
def test_rules_go_by_the_positive_of_the_list(table: list[float], positives: int, kind: Any, margin: float) -> None:
    """Prevents: negatives above the p+ of their own list, since the margin was taken from another positive of the query."""
    rules = {"absolute_margin": margin, "student_relative_margin": 0.5}
    settings = settings_of(positives=kind, draws=6, num_negatives=20, false_negatives=rules)
    known = dict(zip([*POSITIVES, *POOL], table, strict=True))
    found = lists(settings, positives=positives, table=table)
    right = {
        p: [d for d in POOL if known[d] <= known[p] - margin and known[d] <= known[p] - abs(known[p]) / 2] for p in POSITIVES[:positives]
    }
    assert {one.positive: one.negatives for one in found.lists} == {p: listed for p, listed in right.items() if listed}
    assert {p: set(drawn.dropped) for p, drawn in found.drawn.items()} == {p: set(POOL) - set(listed) for p, listed in right.items()}


@given(TABLE, st.integers(1, 6), st.sets(st.sampled_from(POOL)), st.sampled_from([0.0, 0.5, 4.0]), st.sampled_from(["rotate", "each"]))
def test_promotion_never_promotes_a_labelled_negative(
    table: list[float], positives: int, negatives: set[str], margin: float, kind: Any
) -> None:
    """Prevents: a passage that people judged irrelevant trained as relevant; a promoted one that is a negative of another list; one that is
    above some labelled positive, but not above the best."""
    settings = settings_of(positives=kind, draws=9, num_negatives=20, promote_margin=margin, false_negatives={"max_score": 5.5})
    known = dict(zip([*POSITIVES, *POOL], table, strict=True))
    found = lists(settings, positives=positives, table=table, negatives=negatives)
    limit = max(known[doc_id] for doc_id in POSITIVES[:positives]) + margin
    expected = sorted((d for d in POOL if known[d] > limit and d not in negatives), key=lambda d: (-known[d], d))
    assert [one.positive.id for one in found.promoted] == expected and not negatives & set(expected)
    assert all(one.positive.logit == known[one.positive.id] > one.limit == limit for one in found.promoted)
    every = [*POSITIVES[:positives], *expected]
    used = every if kind == "each" else every[:9]
    drawable = [doc_id for doc_id in POOL if doc_id not in expected and known[doc_id] <= 5.5]
    assert {one.positive for one in found.lists} == (set(used) if drawable else set())
    assert all(one.negatives == drawable for one in found.lists)
    assert not any(set(expected) & set(drawn.dropped) for drawn in found.drawn.values()), "promoted in place of being dropped"


def test_a_rule_of_the_student_wants_its_score_of_p_plus() -> None:
    """Prevents: a margin below a score that is no number, which drops nothing, for a promoted passage of another source."""
    row = PoolRow("q", ["p0"], np.array([1.0], np.float32), ["a", "b", "c"], np.zeros(3, np.float32), np.array([0, 1, 1], np.int8))
    logits = Logits([0.0], {"a": 5.0, "b": 9.0, "c": -1.0})
    base = {"source": "student,bm25", "positives": "each", "promote_margin": 1.0}
    for rules, expected in (({}, ["b", "a"]), ({"student_margin": 0.5}, ["a"])):
        found = lists_of_query(row, settings_of(**base, false_negatives=rules), seed=0, logits=logits)
        assert [one.positive.id for one in found.promoted] == expected


@pytest.mark.parametrize(("settings", "said"), [
    ({"positives": "rotate"}, "takes the next positive in each draw, and there is one: set draws, as many as train.epochs"),
    ({"positives": "each", "select": "prod"}, "trains the positive by which a query qualifies: leave positives=each out"),
    ({"promote_margin": 1}, "positives=one trains one labelled alone: set positives=rotate or each"),
    ({"positives": "each", "draws": 2, "sampler": "top"}, "chooses the same negatives in every draw"),
    ({"positives": "all"}, "'one', 'rotate' or 'each'"),
])  # fmt: skip
def test_settings_without_effect_are_refused(settings: dict[str, Any], said: str) -> None:
    """Prevents: a rotation that never turns, promotions that no list is trained with."""
    with pytest.raises(ValidationError, match=said):
        settings_of(**settings)
