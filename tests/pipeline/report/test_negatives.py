"""What the report says of positives, from tables alone."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pyarrow as pa

from data.config.settings import Experiment
from pipeline.report.negatives import _positives


def table_of(lists: list[list[str]], **counts: Any) -> Any:
    """A complete table with these lists of positives, in two row groups."""
    groups = [pa.table({"positive_ids": pa.array(part, pa.list_(pa.string()))}) for part in (lists[:1], lists[1:])]
    return SimpleNamespace(row_groups=lambda columns: iter(groups), manifest=SimpleNamespace(rows=len(lists), counts=counts))


def test_labels_of_queries_that_were_left_out_are_in_no_list() -> None:
    """Prevents: labels of queries without negatives, or that were not selected, which nobody counts; other counts for one positive a query
    than for several."""
    pools = table_of([["a", "b"], ["c"], ["d", "e", "f"]])
    experiment = Experiment.model_validate({"store": "s", "student": {"model": "m"}, "teacher": {"model": "t"}})
    assert _positives(experiment, table_of([["a", "b"], ["c"]]), pools) == (6, 4, None, [])
    counted = table_of([["a", "b"], ["c"]], positives={"labelled": 6, "in no list": 3, "promoted": 0})
    assert _positives(experiment, counted, pools) == (6, 3, None, [])
