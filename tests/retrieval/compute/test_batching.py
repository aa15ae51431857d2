"""Work shared out among workers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from retrieval.compute.batching import lpt_schedule


@given(sizes=st.lists(st.integers(0, 50), max_size=20), count=st.integers(1, 5))
def test_each_piece_is_scheduled_once(sizes: list[int], count: int) -> None:
    """Prevents: a micro-batch that nobody computes leaves its queries out of the gradient; one worker with all the work gains nothing."""
    shares = lpt_schedule(sizes, count)
    assert sorted(number for share in shares for number in share) == list(range(len(sizes)))
    loads = [sum(sizes[number] for number in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes, default=0)
