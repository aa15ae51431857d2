"""Data sets of sentence-transformers and of the hub in their form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.read_lists import by_id, jsonl, parquet, read, saved, scored

from data.errors import UserError
from data.formats.scored_lists.readers.sentence_transformers import SentenceTransformers

READER = SentenceTransformers()
WRITERS: dict[str, Callable[[Path, Any], Path]] = {
    "parquet": lambda folder, records: parquet(folder / "train.parquet", records),
    "jsonl": lambda folder, records: jsonl(folder / "train.jsonl", records),
    "arrow": lambda folder, records: saved(folder / "saved", records),
}
each_file = pytest.mark.parametrize("kind", WRITERS)


def files(tmp_path: Path, kind: str, records: list[dict[str, Any]]) -> Path:
    return WRITERS[kind](tmp_path, records)


@each_file
def test_tuples_with_scores(tmp_path: Path, kind: str) -> None:
    """Prevents: scores that slip to the next candidate, negatives in the order of text (negative_10 before negative_2), lost ids."""
    record: dict[str, Any] = {"anchor": "q", "positive": "p"} | {f"negative_{n}": f"n{n}" for n in range(1, 12)}
    record["scores"] = [9.5] + [-float(n) for n in range(1, 12)]
    found = read(READER, files(tmp_path, kind, [record, record | {"anchor": "r"}]))
    expected = [("p", 1, 9.5)] + [(f"n{n}", 0, -float(n)) for n in range(1, 12)]
    assert scored(found) == [("q", expected), ("r", expected)] and not found.faults
    assert [one.line for one in found.lists] == [1, 2]


@each_file
def test_label_of_distillation_is_the_list_of_scores(tmp_path: Path, kind: str) -> None:
    """Prevents: an export for DistillKLDivLoss that cannot be read back."""
    found = read(READER, files(tmp_path, kind, [{"query": "q", "positive": "p", "negative": "n", "label": [2.5, -1.0]}]))
    assert scored(found) == [("q", [("p", 1, 2.5), ("n", 0, -1.0)])]


@each_file
def test_margins_are_refused(tmp_path: Path, kind: str) -> None:
    """Prevents: differences of two scores that are stored as logits of a pair."""
    for name, value in (("label", 3.5), ("score", 3.5), ("label", [3.5])):
        record = {"query": "q", "positive": "p", "negative": "n", name: value}
        with pytest.raises(UserError, match="margin"):
            read(READER, files(tmp_path, kind, [record] * 3))
        found = read(READER, files(tmp_path, kind, [record]), columns={name: "-"})
        assert scored(found) == [("q", [("p", 1, None), ("n", 0, None)])]


@each_file
def test_padded_negatives_and_scores(tmp_path: Path, kind: str) -> None:
    """Prevents: a row with fewer negatives whose scores, with or without a place for what lacks, go to others."""
    base = {"query": "q", "positive": "p", "negative_1": "a", "negative_2": None, "negative_3": "c"}
    records = [
        base | {"scores": [1.0, 2.0, 3.0, 4.0]},
        base | {"scores": [1.0, 2.0, 4.0]},
        base | {"scores": [1.0, 2.0]},
        base | {"scores": None},
    ]
    found = read(READER, files(tmp_path, kind, records))
    expected = [("p", 1, 1.0), ("a", 0, 2.0), ("c", 0, 4.0)]
    assert [candidates for _, candidates in scored(found)] == [expected, expected, [(text, label, None) for text, label, _ in expected]]
    assert len(found.faults) == 1 and ":3: scores of another length: 2 scores for 3 candidates" in found.faults[0]
    assert not found.left_out


@each_file
def test_list_of_negatives(tmp_path: Path, kind: str) -> None:
    """Prevents: a column of lists read as one text, or empty lists that shift the next record."""
    records = [
        {"question": "q", "positive": "p", "negatives": ["a", "b"], "scores": [3.0, 1.0, 2.0]},
        {"question": "r", "positive": "p2", "negatives": [], "scores": [0.5]},
        {"question": "s", "positive": "p3", "negatives": ["c"], "scores": [0.25, float("nan")]},
    ]
    found = read(READER, files(tmp_path, kind, records))
    assert scored(found) == [
        ("q", [("p", 1, 3.0), ("a", 0, 1.0), ("b", 0, 2.0)]),
        ("r", [("p2", 1, 0.5)]),
        ("s", [("p3", 1, 0.25), ("c", 0, None)]),
    ]


@each_file
def test_labelled_lists(tmp_path: Path, kind: str) -> None:
    """Prevents: labels that become scores, or a list whose positive is called so by its column alone."""
    records = [
        {"query": "q", "docs": ["a", "b"], "labels": [0, 1], "scores": [1.5, 2.5]},
        {"query": "r", "docs": ["c"], "labels": [2], "scores": [0.0]},
    ]
    assert scored(read(READER, files(tmp_path, kind, records))) == [("q", [("a", 0, 1.5), ("b", 1, 2.5)]), ("r", [("c", 2, 0.0)])]
    mined = [{"anchor": "q", "positive": ["p", "n"], "labels": [1, 0]}]  # mine_hard_negatives(output_format="labeled-list")
    assert scored(read(READER, files(tmp_path, kind, mined))) == [("q", [("p", 1, None), ("n", 0, None)])]


@each_file
def test_pairs(tmp_path: Path, kind: str) -> None:
    """Prevents: a list a row where the rows of a query follow each other, and scores taken for labels or the other way round."""
    rows = [("q", "a", 1.25), ("q", "b", -3.5), ("r", "a", 0.5)]
    ettin = [{"query": query, "document": text, "label": score} for query, text, score in rows]
    found = read(READER, files(tmp_path, kind, ettin))
    assert scored(found) == [("q", [("a", None, 1.25), ("b", None, -3.5)]), ("r", [("a", None, 0.5)])]
    assert [one.line for one in found.lists] == [1, 3]
    labelled = [{"anchor": "q", "positive": "a", "label": 1}, {"anchor": "q", "positive": "b", "label": 0}]
    assert scored(read(READER, files(tmp_path, kind, labelled))) == [("q", [("a", 1, None), ("b", 0, None)])]
    both = [{"query": "q", "passage": "a", "score": 2.0, "label": 1}]
    assert scored(read(READER, files(tmp_path, kind, both))) == [("q", [("a", 1, 2.0)])]


@each_file
def test_what_a_column_alone_does_not_say(tmp_path: Path, kind: str) -> None:
    """Prevents: mined negatives that count as positives, and zeros and ones that are taken for logits."""
    mined = files(tmp_path, kind, [{"query": "q", "positive": "a", "score": 0.9}, {"query": "q", "positive": "b", "score": 0.1}])
    with pytest.raises(UserError, match=r"columns=positive:positive"):
        read(READER, mined)
    assert scored(read(READER, mined, columns={"positive": "positive"})) == [("q", [("a", 1, 0.9), ("b", 1, 0.1)])]
    assert scored(read(READER, mined, columns={"passage": "positive"})) == [("q", [("a", None, 0.9), ("b", None, 0.1)])]
    zeros = files(tmp_path, kind, [{"query": "q", "document": "a", "label": 1.0}, {"query": "q", "document": "b", "label": 0.0}])
    with pytest.raises(UserError, match=r"columns=label:label .*columns=score:label"):
        read(READER, zeros)
    assert scored(read(READER, zeros, columns={"label": "label"})) == [("q", [("a", 1, None), ("b", 0, None)])]
    assert scored(read(READER, zeros, columns={"score": "label"})) == [("q", [("a", None, 1.0), ("b", None, 0.0)])]


@each_file
def test_lists_of_ids(tmp_path: Path, kind: str) -> None:
    """Prevents: MS MARCO's ids that are stored as texts, since OpenSearch calls them query and docs."""
    opensearch = [{"query": "1185869", "docs": ["0", "16"], "scores": [11.5, 3.25]}]
    assert by_id(read(READER, files(tmp_path, kind, opensearch))) == [("1185869", [("0", None, 11.5), ("16", None, 3.25)])]
    labelled = [{"query_id": 3, "doc_ids": [7, 8], "labels": [1, 0]}]
    assert by_id(read(READER, files(tmp_path, kind, labelled))) == [("3", [("7", 1, None), ("8", 0, None)])]
    pairs = [{"query_id": "3", "passage_id": "7", "score": 0.5}, {"query_id": "3", "passage_id": "9", "score": 1.5}]
    assert by_id(read(READER, files(tmp_path, kind, pairs))) == [("3", [("7", None, 0.5), ("9", None, 1.5)])]


@each_file
def test_several_teachers(tmp_path: Path, kind: str) -> None:
    """Prevents: one teacher of several taken without a word."""
    path = files(tmp_path, kind, [{"query": "q", "docs": ["a b", "c"], "scores": {"minilm": [1.0, 2.0], "monot5": [3.0, 4.0]}}])
    with pytest.raises(UserError, match=r"minilm, monot5.*columns=score:scores\.NAME"):
        read(READER, path)
    assert scored(read(READER, path, columns={"score": "scores.monot5"})) == [("q", [("a b", None, 3.0), ("c", None, 4.0)])]


@each_file
def test_shapes_that_nobody_foresaw(tmp_path: Path, kind: str) -> None:
    """Prevents: a traceback where a label is an object, and a judgement that is taken for a score though it is told what it is."""
    for odd in ([{"a": 1}], {"a": 1}, [[1]], "high", 0.5):
        path = files(tmp_path, kind, [{"query": "q", "document": "d", "label": odd}])
        try:
            found = read(READER, path, columns={"label": "label"})
        except UserError as refused:
            assert "several scores (a)" in str(refused)
        else:
            assert not found.lists and "label is not a whole number" in found.faults[0]
    struct = files(tmp_path, kind, [{"query": "q", "positive": "p", "negative": "n", "scores": {"a": [1.0, 2.0]}}])
    with pytest.raises(UserError, match=r"has several scores \(a\)"):
        read(READER, struct)
    assert scored(read(READER, struct, columns={"score": "scores.a"})) == [("q", [("p", 1, 1.0), ("n", 0, 2.0)])]
    listed = files(tmp_path, kind, [{"query": "q", "document": ["a", "b"], "score": [1.0, 2.0]}])
    assert scored(read(READER, listed)) == [("q", [("a", None, 1.0), ("b", None, 2.0)])]


def test_broken_records_by_line(tmp_path: Path) -> None:
    """Prevents: one strange record that ends an import, or that is lost without file and line."""
    good = {"query": "q", "positive": "p", "negative": "n", "scores": [1, 2.5]}
    records: list[Any] = [
        good, "", "no json", '["a", "list"]', good | {"query": None}, good | {"query": 7}, good | {"scores": [True, 1.0]},
        good | {"scores": ["1", "2"]}, good | {"scores": [1.0]}, good | {"positive": {"text": "p"}}, good | {"query": "\ud800"},
        good | {"scores": "[1, 2.5]"}, {"query": "q"}, good | {"extra": [{"x": None}]}, good | {"scores": [10**400, 1]},
    ]  # fmt: skip
    path = tmp_path / "lists.jsonl"
    path.write_bytes("".join(f"{one if isinstance(one, str) else __import__('json').dumps(one)}\r\n" for one in records).encode())
    found = read(READER, path)
    assert [one.line for one in found.lists] == [1, 12, 14]
    assert {candidates == [("p", 1, 1.0), ("n", 0, 2.5)] for _, candidates in scored(found)} == {True}
    reasons = [fault.removeprefix("lists.jsonl:").split(": ")[:2] for fault in found.faults]
    assert reasons == [
        ["3", "not JSON"], ["4", "not a JSON object"], ["5", "no query"], ["6", "query is not a string"], ["7", "scores is not a number"],
        ["8", "scores is not a number"], ["9", "scores of another length"], ["10", "positive is not a string"], ["11", "lone surrogate"],
        ["13", "no candidate"], ["15", "scores is not a number"],
    ]  # fmt: skip


def test_several_problems_in_one_piece(tmp_path: Path) -> None:
    """Prevents: a record whose fault hides that of the next one, whose scores would then go to others."""
    records = [
        {"query": "a", "docs": ["x"], "doc_ids": ["1", "2"], "scores": [1.0]},
        {"query": "b", "docs": ["x", "y"], "doc_ids": ["1", "2"], "scores": [1.0]},
        {"query": "c", "docs": ["x", "y"], "doc_ids": ["1", "2"], "scores": [5.0, 6.0]},
    ]
    found = read(READER, parquet(tmp_path / "x.parquet", records))
    assert len(found.faults) == 2 and scored(found) == [("c", [("x", None, 5.0), ("y", None, 6.0)])]


def test_columns_by_name(tmp_path: Path) -> None:
    """Prevents: a column that is told wrongly and then guessed."""
    path = jsonl(tmp_path / "x.jsonl", [{"q": "frage", "gut": "p", "schlecht": "n", "punkte": [1.0, 0.5]}])
    columns = {"query": "q", "positive": "gut", "negative": "schlecht", "score": "punkte"}
    assert scored(read(READER, path, columns=columns)) == [("frage", [("p", 1, 1.0), ("n", 0, 0.5)])]
    with pytest.raises(UserError, match="no column nichts; it has q, gut, schlecht, punkte"):
        read(READER, path, columns=columns | {"score": "nichts"})
    with pytest.raises(UserError, match="has no scroe; it has query, "):
        read(READER, path, columns={"scroe": "punkte"})
    with pytest.raises(UserError, match="no query; it has q, gut"):
        read(READER, path)


def test_fields_that_come_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: scores that only later records of a JSONL file have, and that are then passed over."""
    monkeypatch.setattr("data.formats.scored_lists.readers.records.rows._MAX_ROWS", 2)
    records = [{"query": "q", "positive": "p", "negative": "n"}] * 2 + [
        {"query": "q", "positive": "p", "negative": "n", "scores": [1.0, 2.0]}
    ]
    found = read(READER, jsonl(tmp_path / "x.jsonl", records))
    assert [candidates[0][2] for _, candidates in scored(found)] == [None, None, 1.0]


def test_files_of_different_columns(tmp_path: Path) -> None:
    """Prevents: a folder that is read by the columns of its first file."""
    parquet(tmp_path / "part-0.parquet", [{"query": "q", "positive": "p", "negative": "n", "scores": [1.0, 2.0]}])
    parquet(tmp_path / "part-1.parquet", [{"query": "r", "passage": "p", "score": 4.0}])
    assert scored(read(READER, tmp_path)) == [("q", [("p", 1, 1.0), ("n", 0, 2.0)]), ("r", [("p", None, 4.0)])]


def test_nothing_there(tmp_path: Path) -> None:
    """Prevents: an import of nothing that looks finished."""
    for path in (
        jsonl(tmp_path / "x.jsonl", []),
        parquet(tmp_path / "x.parquet", [], pa.schema([("query", pa.string()), ("positive", pa.string())])),
    ):
        with pytest.raises(UserError, match="has no record"):
            read(READER, path)


TYPES = st.sampled_from([pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())])
LISTS = st.sampled_from([pa.list_, pa.large_list, pa.list_view])
FLOATS = st.floats(width=32, allow_infinity=False)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lists=st.lists(st.lists(st.tuples(st.text(max_size=6), FLOATS), min_size=1, max_size=5), min_size=1, max_size=12),
    text_type=TYPES,
    list_type=LISTS,
    rows=st.integers(1, 5),
)
def test_every_arrow_type_gives_the_same_lists(
    tmp_path: Path, lists: list[list[tuple[str, float]]], text_type: pa.DataType, list_type: Any, rows: int
) -> None:
    """Prevents: texts or scores lost or shifted by offsets, views, dictionaries, NaN, or the pieces that a file is read in."""
    texts = [[text for text, _ in one] for one in lists]
    scores = [[score for _, score in one] for one in lists]
    columns = {
        "query": pa.array([f"q{place}" for place in range(len(lists))]),
        "docs": pa.array(texts, pa.list_(pa.string())).cast(pa.list_(text_type)) if list_type is not pa.list_view
        else pa.array(texts, pa.list_view(pa.string())),
        "scores": pa.array(scores, list_type(pa.float32())),
    }  # fmt: skip
    path = tmp_path / "x.arrow"
    table = pa.table(columns)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    expected = [(f"q{place}", [(text, None, None if score != score else score) for text, score in one]) for place, one in enumerate(lists)]
    assert scored(read(READER, path)) == expected
