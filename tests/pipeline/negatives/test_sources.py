"""Sources of one's own: lists in, rows out, and every wrong answer told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from data.errors import UserError
from pipeline.negatives.sources import PluginSource

OWN = """
asked = []
def plain(given):
    for query_id, text in zip(given.query_ids, given.query_texts):
        asked.append((query_id, text, given.depth, given.seed))
        yield {"q0": [("b", 2.5), ("a", 1.0)], "q1": [], "q2": ["c", "a", "b"]}[query_id]
def short(given): return [["a"]]
def long(given): return [["a"]] * 4
def unknown(given): return [["a", "nowhere"]] * 3
def twice(given): return [["a", "b", "a"]] * 3
"""
QUERIES = pa.table({"query_id": ["q0", "q1", "q2"], "text": ["t0", "t1", "t2"]})


class Corpus:
    """Three passages."""

    def rows_of(self, ids: Any) -> Any:
        return np.array(["abc".find(one) if len(one) == 1 else -1 for one in ids.to_pylist()], np.int64)


@pytest.fixture
def own(plugin_folder: Callable[..., Path]) -> Callable[[str], Any]:
    plugin_folder({"mylab/own.py": OWN})
    return lambda name: PluginSource(f"mylab.own:{name}", QUERIES, Corpus(), seed=7)  # type: ignore[arg-type]


def test_lists_are_asked_for_a_piece_at_a_time(own: Callable[[str], Any]) -> None:
    """Prevents: the lists of a second piece given to the queries of the first, all lists in memory at once, an order by scores."""
    import mylab.own

    source = own("plain")
    rows, scores = source.rank(0, 2, k=2)
    assert rows.tolist() == [[1, 0], [-1, -1]] and scores.tolist() == [[2.5, 1.0], [0.0, 0.0]]
    assert mylab.own.asked == [("q0", "t0", 2, 7), ("q1", "t1", 2, 7)]
    rows, scores = source.rank(2, 3, k=2)
    assert rows.tolist() == [[2, 0]] and scores.tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("name", "words"),
    [("short", "gave 1 lists for 3 queries"), ("long", "more lists than the 3 queries"), ("unknown", "passage nowhere for query q0"),
     ("twice", "passage a for query q0")],
)  # fmt: skip
def test_a_wrong_answer_is_told(own: Callable[[str], Any], name: str, words: str) -> None:
    """Prevents: lists that slide to the next query, passages that vanish, a passage that counts twice."""
    with pytest.raises(UserError, match=f"mylab.own:{name} .*{words}"):
        own(name).rank(0, 3, k=5)
