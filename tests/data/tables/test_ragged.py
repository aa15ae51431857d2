"""Lists in flat arrays against plain lists."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tables.ragged import Ragged, RaggedBuilder, spans

LISTS = st.lists(st.lists(st.integers(-(2**31), 2**31 - 1), max_size=6), max_size=12)


def built(lists: list[list[int]]) -> Ragged:
    builder = RaggedBuilder()
    for start in range(0, len(lists), 5):
        builder.extend(lists[start : start + 5])
    return builder.finish()


@given(LISTS, st.data())
def test_as_plain_lists(lists: list[list[int]], data: st.DataObject) -> None:
    """Prevents: tokens under the text of a neighbour, from bounds that are off by one or by an empty list."""
    ragged = built(lists)
    assert len(ragged) == len(lists) and ragged.lengths.tolist() == [len(one) for one in lists]
    assert ragged.arrow().to_pylist() == lists and ragged.arrow().type == pa.list_(pa.int32())
    start, stop = sorted(data.draw(st.tuples(st.integers(0, len(lists)), st.integers(0, len(lists)))))
    assert [one.tolist() for one in ragged.part(start, stop)] == lists[start:stop]
    rows = data.draw(st.lists(st.integers(0, len(lists) - 1), max_size=15)) if lists else []
    assert ragged.take(np.array(rows, np.int64)).arrow().to_pylist() == [lists[row] for row in rows]


@given(LISTS, LISTS, st.integers(0, 12))
def test_of_a_column(first: list[list[int]], second: list[list[int]], skip: int) -> None:
    """Prevents: a slice or a second chunk of a column that is read from the start of its buffer."""
    kind = pa.list_(pa.int32())
    column = pa.chunked_array([pa.array(first, kind).slice(skip), pa.array(second, kind)])
    assert Ragged.of_lists(column.combine_chunks()).arrow().to_pylist() == column.to_pylist()


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9)), max_size=20))
def test_spans(pairs: list[tuple[int, int]]) -> None:
    """Prevents: gathered values that run into the next list."""
    starts, lengths = (np.array([pair[side] for pair in pairs], np.int64) for side in (0, 1))
    assert spans(starts, lengths).tolist() == [place for start, length in pairs for place in range(start, start + length)]


def test_more_than_32_bits_are_refused() -> None:
    """Prevents: offsets that wrap around, and tokens cut to 32 bits."""
    with pytest.raises(OverflowError):
        RaggedBuilder().extend([[2**31]])
    with pytest.raises(pa.ArrowInvalid):
        Ragged(np.empty(0, np.int32), np.array([0, 2**31])).arrow()
