"""The cut of a batch: nothing lost, nothing twice, within the budget, the same shares for any number of processes."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.config.settings import Objective
from trainer.input.stream import TrainingRow
from trainer.objective.plan import BatchWork, plan_batch
from trainer.processes.distributed import Distributed
from trainer.steps.micro_batches import _relatives, _repeated, cut

# Of each query: the numbers of its three passages. Passage n has 2 + n % 7 tokens; equal numbers are equal passages.
QUERIES = st.lists(st.lists(st.integers(0, 30), min_size=3, max_size=3, unique=True), min_size=1, max_size=12)


def work_of(passages: list[list[int]], *, in_batch: str = "none") -> BatchWork:
    rows = [
        TrainingRow(
            query_id=f"q{place}",
            query_tokens=np.array([1, 100 + place], dtype=np.int32),
            candidate_tokens=tuple(np.full(2 + number % 7, 200 + number, dtype=np.int32) for number in numbers),
            kinds=(0, 1, 1),
            candidate_ids=tuple(f"d{number}" for number in numbers),
            teacher_logits=np.zeros(3, dtype=np.float32),
            confidence=-float(place),
        )
        for place, numbers in enumerate(passages)
    ]
    return plan_batch(rows, objective=Objective(in_batch=in_batch), share=Fraction(1))


@given(QUERIES, st.integers(8, 200))
def test_every_query_is_in_one_group_and_every_passage_is_encoded_once(passages: list[list[int]], budget: int) -> None:
    """A query lost between groups loses its gradient; a passage of two groups is paid for twice."""
    work = work_of(passages)
    parts = cut(work, budget=budget)
    assert sorted(place for group in parts.groups for place in group) == list(range(len(passages)))
    assert sorted(row for chunk in parts.chunks for row in chunk) == list(range(len(parts.shared)))
    encoded = Counter(parts.shared.tolist())
    for group in parts.groups:
        encoded.update(number for number in work.needed(group).tolist() if not parts.is_shared(work)[number])
    needed = {number for query in work.queries for number in query.sequences.tolist()}
    assert encoded == Counter(dict.fromkeys(needed, 1))


@given(QUERIES, st.integers(8, 200))
def test_groups_keep_to_the_budget(passages: list[list[int]], budget: int) -> None:
    """A micro-batch over the budget is memory that nobody has counted."""
    work = work_of(passages)
    parts = cut(work, budget=budget)
    for group in parts.groups:
        assert len(group) == 1 or work.tokens(work.needed(group)) <= budget
    for chunk in parts.chunks:
        lengths = work.token_counts[parts.shared[chunk]].tolist()
        assert len(chunk) == 1 or max(lengths) * len(lengths) <= budget


@given(QUERIES, st.integers(1, 9))
def test_processes_take_every_piece_once_and_like_amounts(passages: list[list[int]], size: int) -> None:
    """A piece that two processes take counts twice in the gradient, one that none takes never."""
    work = work_of(passages)
    parts = cut(work, budget=40)
    costs = [work.tokens(work.needed(group)) for group in parts.groups]
    shares = [Distributed(rank, size).mine(costs) for rank in range(size)]
    assert sorted(piece for share in shares for piece in share) == list(range(len(costs)))
    loads = [sum(costs[piece] for piece in share) for share in shares]
    assert max(loads) - min(loads) <= max(costs)


def test_queries_that_share_passages_come_together() -> None:
    """Neighbours torn apart for nothing: their passages would be encoded twice over, once for the vectors, once for the gradient."""
    parts = cut(work_of([[1, 2, 3], [4, 5, 6], [7, 8, 1], [9, 10, 4]]), budget=40)
    assert {tuple(group) for group in parts.groups} == {(0, 2), (1, 3)} and not len(parts.shared)


@pytest.mark.parametrize("count", [1, 2, 16, 64])
def test_shares_of_many_queries_are_equal(count: int) -> None:
    """A process with a group more than the others lets them wait at every step."""
    generator = np.random.default_rng(count)
    work = work_of([(100 * place + generator.permutation(30)[:3]).tolist() for place in range(count)])
    parts = cut(work, budget=64)
    costs = [work.tokens(work.needed(group)) for group in parts.groups]
    for size in (2, 4, 8):
        if len(costs) >= size:
            loads = [sum(costs[piece] for piece in Distributed(rank, size).mine(costs)) for rank in range(size)]
            assert max(loads) <= 1.25 * min(loads)


def test_in_batch_negatives_share_everything() -> None:
    """A passage outside of the pool is no negative of any other query."""
    work = work_of([[1, 2, 3], [4, 5, 6]], in_batch="both")
    parts = cut(work, budget=16)
    assert len(parts.shared) == 8 and len(parts.chunks) > 1
    assert parts.is_shared(work).all()


@given(QUERIES, st.integers(8, 200), st.integers(1, 9))
def test_pieces_are_a_multiple_and_lose_nothing(passages: list[list[int]], budget: int, pieces: int) -> None:
    """Prevents: a process without a group where there are queries for one, and a query that the finer cut leaves out."""
    work = work_of(passages)
    parts = cut(work, budget=budget, pieces=pieces)
    assert sorted(place for group in parts.groups for place in group) == list(range(len(passages)))
    assert sorted(row for chunk in parts.chunks for row in chunk) == list(range(len(parts.shared)))
    for group in parts.groups:
        assert len(group) == 1 or work.tokens(work.needed(group)) <= budget
    for chunk in parts.chunks:
        lengths = work.token_counts[parts.shared[chunk]].tolist()
        assert len(chunk) == 1 or max(lengths) * len(lengths) <= budget
    assert len(parts.chunks) >= min(pieces, len(parts.shared)) and len(parts.groups) >= min(pieces, len(passages))
    apart = work_of([[100 * place + number for number in row] for place, row in enumerate(passages)])  # nothing is shared
    groups = cut(apart, budget=budget, pieces=pieces).groups
    assert len(groups) % pieces == 0 or len(groups) == len(passages)


def test_pieces_divide_in_batch_work() -> None:
    """Prevents: all passages in one chunk, for one process, while the others wait."""
    passages = [[3 * place, 3 * place + 1, 3 * place + 2] for place in range(12)]
    assert len(cut(work_of(passages, in_batch="both"), budget=10_000).chunks) == 1
    work = work_of(passages, in_batch="both")
    parts = cut(work, budget=10_000, pieces=6)
    assert len(parts.groups) == 6 and 6 <= len(parts.chunks) <= 8
    tokens = [work.tokens(parts.shared[chunk]) for chunk in parts.chunks]
    assert max(tokens) < 1.3 * sum(tokens) / len(tokens)


@given(QUERIES)
def test_relatives_are_connected_components_in_the_order_of_their_latest_query(passages: list[list[int]]) -> None:
    """Prevents: queries that share a passage apart, and groups in another order, which draw other dropout masks than before."""
    components: list[list[int]] = []
    for place, numbers in enumerate(passages):
        touching = [one for one in components if any(set(numbers) & set(passages[other]) for other in one)]
        components = [one for one in components if one not in touching] + [sorted([place, *(other for one in touching for other in one)])]
    work = work_of(passages)
    assert _relatives(work, range(len(passages)), repeated=_repeated(work)) == components
