"""Texts of rows, as they are keyed and as the teacher gets them."""

from __future__ import annotations

import pyarrow as pa
import pytest

from data.tables.schemas import MASK_MARK, SEPARATOR_MARK
from pipeline.scoring import requested_pairs
from pipeline.scoring.requested_pairs import pair_texts
from retrieval.models.marks import Marks


@pytest.mark.parametrize("cuts", [[], [2], [0, 1, 1, 3]])
def test_a_window_of_several_row_groups_is_its_rows(cuts: list[int]) -> None:
    """Prevents: a window of long documents that ends in an error after hours, since its bytes are more than 32 bits count; a mark that is
    read in one row group and not in the next."""
    queries, texts = ["", "a", "a", "é"], [f"x{SEPARATOR_MARK}y", "", f"{MASK_MARK}{MASK_MARK} z", "w"]
    bounds = [0, *cuts, 4]
    parts = [slice(*bounds[place : place + 2]) for place in range(len(bounds) - 1)]
    columns = {name: [pa.array(of[part], pa.string()) for part in parts] for name, of in (("query", queries), ("text", texts))}
    table = pa.table({name: pa.chunked_array(chunks, pa.string()) for name, chunks in columns.items()})
    marks = Marks(((MASK_MARK, "<m>"), (SEPARATOR_MARK, "</s>")))
    assert list(pair_texts(table, marks)) == list(zip(queries, ["x</s>y", "", "<m><m> z", "w"], strict=True))
    assert pa.types.is_large_string(requested_pairs._texts(table, "text").type) == bool(cuts)
