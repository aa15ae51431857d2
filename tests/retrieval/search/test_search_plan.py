"""How a search is fitted into its memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from retrieval.search.searcher import GROUP_QUERIES, plan_search


@given(
    queries=st.one_of(st.integers(1, 300), st.integers(1, 20_000)),
    rows=st.integers(1, 10_000_000),
    size=st.sampled_from([32, 384, 1024]),
    k=st.integers(1, 3000),
    beyond=st.one_of(st.integers(0, 1 << 26), st.integers(0, 1 << 36)),
)
def test_groups_are_whole_and_fit_their_memory(queries: int, rows: int, size: int, k: int, beyond: int) -> None:
    """Prevents: fewer than 256 queries, in hardly more memory than they need, searched one at a time: a pass over the corpus each, and
    lists that do not come in the parts that a run is written in; and a plan above its memory."""
    given = {"queries": queries, "rows": rows, "size": size, "k": k, "threads": 2}
    memory = least_memory(given) + beyond
    plan = plan_search(**given, memory=memory)
    assert plan.bytes <= memory
    assert plan.queries_at_once == queries or (0 < plan.queries_at_once < queries and plan.queries_at_once % GROUP_QUERIES == 0)


def least_memory(given: dict[str, int]) -> int:
    """Bytes below which the search is refused, by bisection."""
    low, high = 0, 1 << 50
    while high - low > 1:
        middle = (low + high) // 2
        try:
            plan_search(**given, memory=middle)
            high = middle
        except UserError:
            low = middle
    return high
