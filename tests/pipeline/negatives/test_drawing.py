"""What is drawn for one query and p+: lists that rules leave short and that deeper ranks fill."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from data.config.settings import HardNegatives
from pipeline.negatives.drawing import Drawn, Logits, Positive, Windows
from pipeline.negatives.pool_pairs import PoolRow

SOURCES = ("student", "bm25")


def pool(lists: dict[str, list[str]]) -> PoolRow:
    """A pool of these sources' lists."""
    ids = [doc_id for listed in lists.values() for doc_id in listed]
    numbers = np.repeat(np.array([SOURCES.index(name) for name in lists], np.int8), [len(listed) for listed in lists.values()])
    return PoolRow("q", ["p"], np.array([1.0], np.float32), ids, np.zeros(len(ids), np.float32), numbers)


def drawn(lists: dict[str, list[str]], logits: dict[str, float], *, draws: int = 1, **own: Any) -> Drawn:
    given_settings = HardNegatives(source=",".join(lists), depth=40, range_max=10, draws=draws, **own)
    windows = Windows.of(pool(lists), given_settings, seed=0, logits=Logits([1.0], logits))
    return windows.draw(Positive("p", logit=1.0, score=1.0), range(draws))


def random_pool(seed: int) -> tuple[dict[str, list[str]], dict[str, float]]:
    """(the lists of two sources, some passages in both; a logit of each passage)."""
    chance = np.random.default_rng(seed)
    names = [f"d{number}" for number in range(45)]
    lists = {name: chance.permutation(names)[: chance.integers(0, 31)].tolist() for name in SOURCES}
    share = chance.random()  # of passages that the rule drops
    return lists, {doc_id: 2.0 if chance.random() < share else float(chance.integers(-3, 1)) for doc_id in names}


@settings(max_examples=60)
@given(st.integers(0, 10**6), st.sampled_from(["uniform", "top"]), st.integers(1, 25), st.integers(1, 25), st.integers(11, 30))
def test_short_lists_are_filled_from_deeper_ranks(seed: int, sampler: str, one: int, other: int, last: int) -> None:
    """Prevents: a list that stays short though there are passages below, one filled where its window has enough, one filled with what a
    rule drops or from beyond the stated rank, and a larger m that loses what a smaller one has."""
    lists, logits = random_pool(seed)
    small, large = sorted((one, other))
    rules = {"false_negatives": {"max_score": 1}, "sampler": sampler}
    right = {doc_id for doc_id, logit in logits.items() if logit <= 1}
    window = {doc_id for listed in lists.values() for doc_id in listed[:10]} & right
    deep = {doc_id for listed in lists.values() for doc_id in listed[:last]} & right
    few, many = (drawn(lists, logits, num_negatives=m, fill_to=last, **rules) for m in (small, large))
    for m, found in ((small, few), (large, many)):
        (negatives,) = found.negatives
        assert len(set(negatives)) == len(negatives) == min(m, max(len(window), len(deep)))
        assert set(negatives) <= deep and (window <= set(negatives) or len(window) > m)
        assert found.filled == max(0, len(negatives) - len(window))
        if len(window) >= m:
            assert found == drawn(lists, logits, num_negatives=m, **rules), "a full list is what it is without"
    assert set(few.negatives[0]) <= set(many.negatives[0])


def test_the_nearest_of_the_deeper_ranks_come_first_and_what_rules_drop_is_told() -> None:
    """Prevents: a list filled from the end, dropped passages of deeper ranks that no report shows, a percentile that moves with them."""
    ids = [f"d{number}" for number in range(20)]
    logits = {doc_id: 5.0 if number < 9 or number in (11, 13) else -float(number) for number, doc_id in enumerate(ids)}
    found = drawn({"student": ids}, logits, num_negatives=4, fill_to=16, draws=2, false_negatives={"max_score": 1})
    assert found.negatives == [["d9", "d10", "d12", "d14"]] * 2 and found.filled == 6
    assert set(found.dropped) == {*ids[:9], "d11", "d13"}
    halved = drawn({"student": ids}, logits, num_negatives=12, fill_to=20, false_negatives={"teacher_percentile": 5})
    assert halved.dropped["d11"].limit == halved.dropped["d0"].limit == float(np.percentile([5.0] * 9 + [-9.0], 5))


@pytest.mark.parametrize(("given_settings", "said"), [
    ({"fill_to": 101}, "fill_to=101 is beyond the 100 passages that pools keep: lower it, or raise depth"),
    ({"fill_to": 50, "range_max": 50}, "fill_to=50 is not beyond the last rank of any source"),
    ({"fill_to": 60, "source": "student@1-70,bm25@1-60"}, "fill_to=60 is not beyond the last rank of any source"),
])  # fmt: skip
def test_a_depth_that_fills_nothing_is_refused(given_settings: dict[str, Any], said: str) -> None:
    """Prevents: a setting without effect, or one that promises ranks that no pool has."""
    with pytest.raises(ValidationError, match=said):
        HardNegatives(**given_settings)


def test_only_rules_of_the_teacher_make_it_read_deeper() -> None:
    """Prevents: a bill for deeper ranks where the student's own scores decide; rules of the teacher that lack the logits."""
    of_student = HardNegatives(range_max=20, fill_to=60, false_negatives={"student_margin": 0}, sampler="stratified")
    of_teacher = HardNegatives(source="student,bm25@5-70", range_max=20, fill_to=60, false_negatives={"min_score": -3})
    assert [(source.first_rank, source.last_rank) for source in of_student.scored_sources] == [(1, 20)]
    assert [(source.first_rank, source.last_rank) for source in of_teacher.scored_sources] == [(1, 60), (5, 70)]
