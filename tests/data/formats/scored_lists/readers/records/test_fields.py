"""Values of fields in one type, from every type that files have."""

from __future__ import annotations

import datetime
import decimal
from typing import Any

import pyarrow as pa
import pytest

from data.formats.scored_lists.readers.records.fields import TYPES, Kind, canonical, is_list_type

NAN = float("nan")


@pytest.mark.parametrize(
    "kind, values, expected",
    [
        ("id", [12, "a b", 12.0, -3, None, ""], ["12", "a b", "12", "-3", None, ""]),
        ("number", [1, 2.5, NAN, None, -0.0], [1.0, 2.5, None, None, -0.0]),
        ("label", [1, True, 0.0, NAN, None], [1, 1, 0, None, None]),
        ("texts", ["a", ["b", None], '["c"]', "['d']", "[]", None, "[e"], [["a"], ["b", None], ["c"], ["d"], [], None, ["[e"]]),
        ("ids", [7, ["7", 8], "[9, 10]", 1.0], [["7"], ["7", "8"], ["9", "10"], ["1"]]),
        ("numbers", [1, [2, NAN, None], "[0.5, NaN]", "[1, -2e3]"], [[1.0], [2.0, None, None], [0.5, None], [1.0, -2000.0]]),
        ("labels", ["[1, 0]", [True, False]], [[1, 0], [1, 0]]),
    ],
)
def test_python_values(kind: Kind, values: list[Any], expected: list[Any]) -> None:
    """Prevents: an id, a score or a list of another writer that is read as another one."""
    found, problems = canonical(values, kind, name="x")
    assert found.type == TYPES[kind] and found.to_pylist() == expected and not problems


@pytest.mark.parametrize(
    "kind, value, reason",
    [
        ("text", 7, "x is not a string"), ("text", ["a"], "x is not a string"), ("text", {"a": 1}, "x is not a string"),
        ("id", 7.5, "x is no id"), ("id", True, "x is no id"), ("id", 1e300, "x is no id"), ("id", ["a"], "x is no id"),
        ("number", "1.5", "x is not a number"), ("number", True, "x is not a number"), ("number", 10**400, "x is not a number"),
        ("label", 0.5, "x is not a whole number"), ("label", 1 << 31, "x is not a whole number"),
        ("label", float("inf"), "x is not a whole number"),
        ("texts", ["a", 1], "x holds no strings"), ("texts", ["a", ["b"]], "x holds no strings"), ("texts", "['a' 'b']", "x is no list"),
        ("ids", [[1]], "x is no id"), ("numbers", ["1"], "x is not a number"), ("numbers", "high", "x is not a number"),
        ("passages", ["p"], "x holds no passages"), ("passages", [{"text": 1}], "text is not a string"),
        ("passages", {"docid": ["1"], "text": ["a", "b"]}, "x has fields of unequal lengths"),
    ],
)  # fmt: skip
def test_values_that_are_none_of_the_kind(kind: Kind, value: Any, reason: str) -> None:
    """Prevents: a value that is read as what it is not, or that takes the records around it along."""
    good = {"text": "a", "id": "a", "number": 1.5, "label": 1, "passages": [{"text": "a"}]}.get(kind, [])
    found, problems = canonical([good, value, good], kind, name="x")
    assert {row: problem.reason for row, problem in problems.items()} == {1: reason}
    assert found.is_valid().to_pylist() == [True, False, True]


@pytest.mark.parametrize(
    "kind, column, expected",
    [
        ("id", pa.array([12.0, None, 3.0]), ["12", None, "3"]),
        ("id", pa.array([7, 8], pa.uint64()), ["7", "8"]),
        ("ids", pa.array([[7, 8], []], pa.large_list(pa.int32())), [["7", "8"], []]),
        ("ids", pa.array([[1.0], None]), [["1"], None]),
        ("number", pa.array([1, 2], pa.int8()), [1.0, 2.0]),
        ("number", pa.array([0.5, NAN], pa.float16()), [0.5, None]),
        ("numbers", pa.array([[0.5, NAN], None], pa.list_(pa.float32(), 2)), [[0.5, None], None]),
        ("labels", pa.array([[True], [False, None]]), [[1], [0, None]]),
        ("texts", pa.array(["a", None]), [["a"], None]),
        ("text", pa.nulls(2), [None, None]),
        ("texts", pa.array([[None], None], pa.list_(pa.null())), [[None], None]),
    ],
)
def test_arrow_columns(kind: Kind, column: pa.Array, expected: list[Any]) -> None:
    """Prevents: ids of a column with gaps that end in .0, and scores of small types that are refused."""
    found, problems = canonical(column, kind, name="x")
    assert found.type == TYPES[kind] and found.to_pylist() == expected and not problems


def test_arrow_types_that_do_not_fit() -> None:
    """Prevents: dates as texts, truths as scores, and a large label that ends the import."""
    when = datetime.datetime(2020, 1, 1)
    cases: list[tuple[Kind, pa.Array]] = [
        ("text", pa.array([when])), ("number", pa.array([True])), ("number", pa.array([decimal.Decimal("1.5")])),
        ("text", pa.array([b"raw"])), ("label", pa.array([1 << 40])), ("id", pa.array([{"a": 1}])), ("texts", pa.array([[1.5]])),
    ]  # fmt: skip
    for kind, column in cases:
        found, problems = canonical(column, kind, name="x")
        assert list(problems) == [0] and found.to_pylist() == [None], column.type


def test_what_is_a_list() -> None:
    """Prevents: a column of texts taken for lists since one of them begins with a bracket, or the other way round."""
    assert is_list_type([None, "[1] Smith"]) is False and is_list_type(["[1, 2]"]) is True and is_list_type([[]]) is True
    assert is_list_type([None]) is None and is_list_type(pa.nulls(3)) is None and is_list_type(pa.array([1.5])) is False
    assert is_list_type(pa.array(["['a']"])) is True and is_list_type(pa.array([[1]], pa.list_view(pa.int8()))) is True
