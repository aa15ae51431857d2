"""FlagEmbedding's JSONL."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.read_lists import jsonl, parquet, read, scored

from data.errors import UserError
from data.formats.scored_lists.readers.flagembedding import FlagEmbedding

READER = FlagEmbedding()
RECORD = {
    "query": "q",
    "pos": ["p1", "p2"],
    "neg": ["n"],
    "pos_scores": [9.0, 8.0],
    "neg_scores": [-1.5],
    "prompt": "find",
    "type": "normal",
}
EXPECTED = [("q", [("p1", 1, 9.0), ("p2", 1, 8.0), ("n", 0, -1.5)])]


def test_both_kinds_of_files(tmp_path: Path) -> None:
    """Prevents: scores of the positives that go to the negatives."""
    for path in (jsonl(tmp_path / "x.jsonl", [RECORD]), parquet(tmp_path / "x.parquet", [RECORD])):
        assert scored(read(READER, path)) == EXPECTED


def test_byte_order_mark_and_carriage_returns(tmp_path: Path) -> None:
    """Prevents: a file of another system whose first record is lost."""
    path = jsonl(tmp_path / "x.jsonl", [RECORD, RECORD], end="\r\n")
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert scored(read(READER, path)) == EXPECTED * 2


def test_strings_for_lists(tmp_path: Path) -> None:
    """Prevents: a string read as single characters, and a text in brackets that is taken for a list."""
    texts = ["p", "['p']", '["p"]', "[1] Smith et al.", "[sic]"]
    found = read(READER, jsonl(tmp_path / "x.jsonl", [{"query": "q", "pos": text, "neg": [], "pos_scores": 1} for text in texts]))
    assert [candidates[0] for _, candidates in scored(found)] == [
        ("p", 1, 1.0), ("p", 1, 1.0), ("p", 1, 1.0), ("[1] Smith et al.", 1, 1.0), ("[sic]", 1, 1.0)
    ]  # fmt: skip
    joined = read(READER, jsonl(tmp_path / "x.jsonl", [RECORD | {"neg": "['a' 'b']"}]))
    assert not joined.lists and "neg is no list" in joined.faults[0]


def test_odd_records(tmp_path: Path) -> None:
    """Prevents: candidates lost without a word, or scores that move up where one lacks."""
    records = [
        RECORD | {"neg": ["a", None, "b"], "neg_scores": [1.0, 2.0, 3.0]},
        RECORD | {"neg": None, "neg_scores": None},
        RECORD | {"neg_scores": None},
        RECORD | {"neg_scores": [None]},
        RECORD | {"neg_scores": [1.0, 2.0]},
        RECORD | {"pos": [], "neg": [], "pos_scores": [], "neg_scores": []},
        RECORD | {"neg": [{"text": "n"}]},
        RECORD | {"pos": ["p1", "p1"]},
        RECORD | {"neg_scores": [float("nan")]},
    ]
    found = read(READER, jsonl(tmp_path / "x.jsonl", records))
    positives = EXPECTED[0][1][:2]
    assert [one.line for one in found.lists] == [1, 2, 3, 4, 8, 9]
    assert [candidates for _, candidates in scored(found)] == [
        [*positives, ("a", 0, 1.0), ("b", 0, 3.0)],
        positives,
        [*positives, ("n", 0, None)],
        [*positives, ("n", 0, None)],
        [("p1", 1, 9.0), ("p1", 1, 8.0), ("n", 0, -1.5)],
        [*positives, ("n", 0, None)],
    ]
    assert found.faults == [
        "x.jsonl:5: lists of unequal lengths: 2 in neg_scores for 1 candidates",
        "x.jsonl:6: no candidate",
        'x.jsonl:7: neg holds no strings: found \'{"text": "n"}\'',
    ]
    assert found.left_out == {"candidates without text and id": 1}


def test_ids(tmp_path: Path) -> None:
    """Prevents: ids as numbers, or as numbers with a point, that name other passages."""
    record = RECORD | {"pos_id": [7, 8.0], "neg_id": ["n 1"], "query_id": 12}
    found = read(READER, jsonl(tmp_path / "x.jsonl", [record, record | {"pos_id": [7.5, 8]}, record | {"pos_id": [7]}]))
    assert [(one.query_id, [candidate[0] for candidate in one.candidates]) for one in found.lists] == [("12", ["7", "8", "n 1"])]
    assert [fault.split(": ")[1] for fault in found.faults] == ["pos_id is no id", "lists of unequal lengths"]


def test_an_array_is_refused(tmp_path: Path) -> None:
    """Prevents: a file of one array that is read whole, or as one broken line."""
    path = tmp_path / "x.json"
    path.write_text("[\n{}\n]")
    with pytest.raises(UserError, match=r"x\.json is a JSON array; expected an object a line"):
        read(READER, path)
