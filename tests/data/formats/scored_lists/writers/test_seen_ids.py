from __future__ import annotations

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from data.formats.scored_lists.writers.seen_ids import SeenIds


@given(st.lists(st.lists(st.text(max_size=2), max_size=8), max_size=12))
def test_it_is_a_set(batches: list[list[str]]) -> None:
    """Prevents: a passage that is written twice, or never, since runs of digests were merged wrongly."""
    seen, known = SeenIds(), set[str]()
    for ids in batches:
        expected = [place for place, one in enumerate(ids) if one not in known and one not in ids[:place]]
        assert seen.first_places(pa.array(ids, pa.string())).tolist() == expected
        known |= set(ids)
