from __future__ import annotations

from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from data.formats.scored_lists.writers.lists import Lists, WriteOptions, Written
from data.formats.scored_lists.writers.rectangles import companion, most_kept, rows_of, width

Labels = list[list[bool]]  # of each list the candidates: whether each is a positive


def lists_of(labels: Labels, *, first: int = 0) -> Lists:
    """Candidate c of list l is called `l.c`."""
    flat = [(number, place, label) for number, listed in enumerate(labels) for place, label in enumerate(listed)]
    names = pa.array([f"{first + number}.{place}" for number, place, _ in flat], pa.string())
    count = len(flat)
    return Lists(
        pa.array([f"q{first + number}" for number in range(len(labels))], pa.string()), pa.array(["?"] * len(labels), pa.string()),
        np.zeros(len(labels), np.int8), np.full(len(labels), -0.5, np.float32), np.array([number for number, _, _ in flat], np.int64),
        np.arange(count), names, names, np.array([0 if label else 1 for *_, label in flat], np.int8),
        np.array([label for *_, label in flat], np.bool_), np.arange(count, dtype=np.float32),
    )  # fmt: skip


class Source:
    """Each list is a piece of its own."""

    def __init__(self, labels: Labels) -> None:
        self.labels = labels

    def read(self, *, texts: bool = True):
        yield from (lists_of([listed], first=number) for number, listed in enumerate(self.labels))


some_lists = st.lists(st.lists(st.booleans(), max_size=6), max_size=6)


@given(some_lists, st.integers(1, 4))
def test_a_row_is_the_first_positive_and_the_first_negatives_of_its_list(labels: Labels, negatives: int) -> None:
    """Prevents: candidates that slip into the row of another list, and candidates lost without being counted."""
    written = Written()
    kept, candidates = rows_of(lists_of(labels), negatives, written)
    expected, lost = [], Counter()
    for number, listed in enumerate(labels):
        names = {label: [f"{number}.{place}" for place, found in enumerate(listed) if found is label] for label in (True, False)}
        if not names[True]:
            lost["no positive"] += 1
        elif len(names[False]) < negatives:
            lost["short"] += 1
        else:
            expected.append([names[True][0], *names[False][:negatives]])
            lost.update({"positives": len(names[True]) - 1, "negatives": len(names[False]) - negatives})
    assert [kept.ids_of(row).to_pylist() for row in candidates] == expected
    assert kept.query_ids.to_pylist() == [f"q{row[0].partition('.')[0]}" for row in expected]
    assert companion(kept, candidates).column("candidate_ids").to_pylist() == expected
    assert list(written.left_out.values()) == [lost[name] for name in ("no positive", "short", "positives", "negatives")]
    assert written.counts == {"lists": len(expected), "candidates": len(expected) * (1 + negatives)}


@given(st.dictionaries(st.integers(1, 9), st.integers(1, 9), min_size=1))
def test_the_width_keeps_most_candidates(lists: dict[int, int]) -> None:
    """Prevents: one short list that cuts all others, or one long list for which all others are thrown away."""
    chosen = most_kept(Counter(lists))
    kept = [m * sum(count for length, count in lists.items() if length >= m) for m in range(max(lists) + 1)]
    assert kept[chosen] == max(kept)


def test_what_is_asked_for_is_had_or_refused() -> None:
    """Prevents: `negatives=` that is passed over, and an empty export."""
    source = Source([[True, False, False], [True, False], [False, False, False, False]])
    assert width(source, WriteOptions(True)) == 1 or width(source, WriteOptions(True)) == 2
    assert width(source, WriteOptions(True, negatives=2)) == 2
    with pytest.raises(UserError, match="longest list has 2"):
        width(source, WriteOptions(True, negatives=3))
    with pytest.raises(UserError, match="no list has a labelled positive and a negative"):
        width(Source([[False, False], [True], []]), WriteOptions(True))
