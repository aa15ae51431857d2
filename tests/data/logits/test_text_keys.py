"""Keys of pairs from Arrow: to the byte those of each pair alone."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.digests import pair_key
from data.logits.text_keys import pair_keys, runs_of

QUERIES = st.one_of(st.sampled_from(["", "q", "how é", "how"]), st.text(max_size=9))
KINDS = st.sampled_from([pa.string(), pa.large_string()])  # the second of windows of several row groups


@pytest.mark.medium
@given(lists=st.lists(st.tuples(QUERIES, st.lists(st.text(), max_size=3)), max_size=6), before=st.integers(0, 2), kind=KINDS)
def test_keys_are_those_of_the_store(lists: list[tuple[str, list[str]]], before: int, kind: pa.DataType) -> None:
    """Prevents: logits stored under keys that no stage asks for; those of a slice that are the keys of what lies before it."""
    texts = pa.array([*["x"] * before, *(text for _, listed in lists for text in listed)], kind).slice(before)
    queries = pa.array([*["y"] * before, *(query for query, _ in lists)], kind).slice(before)
    keys = pair_keys(queries, np.array([len(listed) for _, listed in lists], np.int64), texts)
    assert keys == b"".join(pair_key(query, text) for query, listed in lists for text in listed)


@given(queries=st.lists(QUERIES, max_size=12), before=st.integers(0, 2), kind=KINDS)
def test_runs_are_the_rows_again(queries: list[str], before: int, kind: pa.DataType) -> None:
    """Prevents: a query's beginning that stays for the next query, by which stored logits are another pair's."""
    values, counts = runs_of(pa.array(["a"] * before + queries, kind).slice(before))
    assert [query for query, count in zip(values.to_pylist(), counts.tolist(), strict=True) for _ in range(count)] == queries
