"""TREC runs and relevance labels: what is written is read again, and every bad line is named."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from data.formats.trec import Run, check_run, read_entries, read_run, write_run
from retrieval.evaluation.qrels import read_qrels


@st.composite
def runs(draw: st.DrawFn) -> Run:
    ids = st.text(st.characters(min_codepoint=33, max_codepoint=0x24F, exclude_categories=("Z", "C")), min_size=1, max_size=8)
    scores = st.floats(width=32, allow_nan=False, allow_infinity=False)
    lists = draw(st.dictionaries(ids, st.dictionaries(ids, scores, min_size=1, max_size=12), max_size=5))
    return {query: sorted(entries.items(), key=lambda entry: (-entry[1], entry[0])) for query, entries in lists.items()}


@given(run=runs())
def test_a_run_survives_its_file(run: Run, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prevents: scores rounded in the file become ties, and the ranking that is evaluated is not the one that was found."""
    path = tmp_path_factory.mktemp("run") / "a.trec"
    write_run(path, run, tag="t")
    again = read_run(path)
    assert {query: [doc for doc, _ in entries] for query, entries in again.items()} == {
        query: [doc for doc, _ in entries] for query, entries in run.items()
    }
    for query, entries in run.items():
        assert [np.float32(score) for _, score in again[query]] == [np.float32(score) for _, score in entries]


def test_near_scores_keep_their_order(tmp_path: Path) -> None:
    """Prevents: six decimals, at which these two cosines are equal and `a` would come first."""
    higher, lower = float(np.float32(0.83214577)), float(np.nextafter(np.float32(0.83214577), np.float32(0)))
    write_run(tmp_path / "r", {"q": [("b", higher), ("a", lower)]}, tag="t")
    assert [doc for doc, _ in read_run(tmp_path / "r")["q"]] == ["b", "a"]


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    """Prevents: a file that depends on the order in which queries were searched, or a temporary file left behind."""
    write_run(tmp_path / "1", {"q2": [("a", 1.0)], "q1": [("a", 2.0)]}, tag="t")
    write_run(tmp_path / "2", {"q1": [("a", 2.0)], "q2": [("a", 1.0)]}, tag="t")
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes() == b"q1 Q0 a 1 2 t\nq2 Q0 a 1 1 t\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_ties_are_read_by_id(tmp_path: Path) -> None:
    """Prevents: the order of lines, which tools write as they please, decides among equal scores."""
    (tmp_path / "r").write_text("q Q0 b 1 0.5 t\nq Q0 c 2 0.7 t\nq Q0 a 3 0.5 t\n")
    assert read_run(tmp_path / "r") == {"q": [("c", 0.7), ("a", 0.5), ("b", 0.5)]}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("q Q0 a 1 0.5", "expected `query_id Q0"),
        ("q Q0 a b 1 0.5 t", "expected `query_id Q0"),
        ("q Q0 a 1 high t", "expected `query_id Q0"),
        ("q Q0 a 1 nan t", "the score 'nan'"),
        ("q Q0 a 1 -inf t", "the score '-inf'"),
        ("q Q0 a 1 1_0 t", "the score '1_0'"),
        ("q Q0 a 1 \u0661 t", "the score"),
        ("q\tQ0\t\t1\t0.5\tt", "an empty id"),
        ("q a 1", "got 3 columns"),
        ('{"q": {"a": 0.5}}', "JSON"),
        ("q Q0 ok 2 0.1 t", "second time"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    """Prevents: a NaN that breaks the sort, a passage counted twice, a line skipped in silence."""
    (tmp_path / "r").write_text(f"q Q0 ok 1 0.9 t\n\n{line}\n")
    with pytest.raises(UserError, match=rf"r:3: .*{words}"):
        read_run(tmp_path / "r")


def test_ids_with_spaces_are_not_written(tmp_path: Path) -> None:
    """Prevents: a run file that no tool can read again."""
    for bad in ("two words", "", "tab\tbed"):
        with pytest.raises(UserError, match="cannot hold"):
            write_run(tmp_path / "r", {"q": [(bad, 1.0)]}, tag="t")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_no_run_file(tmp_path: Path, content: bytes | None) -> None:
    """Prevents: a traceback for a wrong path or a binary file."""
    if content:
        (tmp_path / "r").write_bytes(content)
    with pytest.raises(UserError, match="r"):
        read_run(tmp_path / "r")


def test_a_file_that_is_no_run_says_so_whatever_its_queries(tmp_path: Path) -> None:
    """Prevents: a JSON file as run of which every line is passed over, since none is of a query that is asked for."""
    (tmp_path / "r").write_text('{"other": {"a": 0.5}}\nq Q0 a 1 1 t\n')
    with pytest.raises(UserError, match=r"r:1: expected `query_id Q0 doc_id rank score tag` .*JSON"):
        list(read_entries(tmp_path / "r", {"q"}))


def test_lines_of_other_queries_are_passed_over_by_their_beginning(tmp_path: Path) -> None:
    """Prevents: an id with spaces taken for its first word's, or lines of the queries asked for lost with those of others."""
    (tmp_path / "r").write_text("x Q0 a 1 1 t\nq\tQ0\ta\t1\t1\tt\nq r\tQ0\tb\t1\t1\tt\n q Q0 c 2 0.5 t\n \n\ny broken\nq r Q0 d 1 1\n")
    found = {query: [entry.doc_id for entry in read_entries(tmp_path / "r", {query})] for query in ("q r", "x", "z")}
    assert found == {"q r": ["b"], "x": ["a"], "z": []}
    (tmp_path / "r").write_text("x Q0 a 1 1 t\nq\tQ0\ta\t1\t1\tt\nq r\tQ0\tb\t1\t1\tt\n q Q0 c 2 0.5 t\n \n\ny broken\n")
    assert [entry.doc_id for entry in read_entries(tmp_path / "r", {"q"})] == ["a", "c"]


@pytest.mark.parametrize(
    ("content", "words"),
    [("", "has no entry"), ("\n\n", "has no entry"), ("qid Q0 docid rank score tag\n", "has no entry"), ("q 0 a 1\n", "r:1: .*qrels?"),
     ('{"q": 1}', "r:1: .*JSON"), (None, "no such run file")],
)  # fmt: skip
def test_what_is_no_run_is_told_by_its_first_lines(tmp_path: Path, content: str | None, words: str) -> None:
    """Prevents: a corpus embedded before the run of its negatives is found to be none."""
    if content is not None:
        (tmp_path / "r").write_text(content)
    with pytest.raises(UserError, match=words):
        check_run(tmp_path / "r", option="hard_negatives.run_file")


def test_scores_that_rise_with_the_rank_are_told(tmp_path: Path) -> None:
    """Prevents: a run of distances judged upside down without a word."""
    notes: list[str] = []
    (tmp_path / "r").write_text("q Q0 a 1 0.1 t\nq Q0 b 2 0.9 t\np Q0 a 2 5 t\np Q0 b 1 3 t\n")
    assert [doc for doc, _ in read_run(tmp_path / "r", note=notes.append)["q"]] == ["b", "a"]
    assert len(notes) == 1 and "scores rise with the rank for 2 of 2 queries" in notes[0]
    for fine in (
        "q Q0 a 1 0.9 t\nq Q0 b 2 0.1 t\np Q0 a 2 5 t\np Q0 b 1 3 t\n",
        "q Q0 a 0 1 t\nq Q0 b 0 2 t\n",
        "q Q0 a - 1 t\nq Q0 b - 2 t\n",
    ):
        (tmp_path / "r").write_text(fine)
        read_run(tmp_path / "r", note=notes.append)
    assert len(notes) == 1


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("header", [[], [b"query_id Q0 doc_id rank score tag"]])
def test_runs_of_other_systems(tmp_path: Path, mark: bytes, newline: bytes, packed: bool, header: list[bytes]) -> None:
    """Prevents: a first query with a byte-order mark in its id, which then has no results; a gzip that is no text."""
    content = mark + newline.join([*header, b"q Q0 a 1 1e-3 t", b"my query\tQ0\tmy passage\t2\t.5\tmy tag", b""])
    (tmp_path / "r").write_bytes(gzip.compress(content) if packed else content)
    assert read_run(tmp_path / "r") == {"q": [("a", 0.001)], "my query": [("my passage", 0.5)]}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("header", [[], [b"query-id\tcorpus-id\tscore"], [b"query_id passage_id label"]])
def test_labels_of_other_systems(tmp_path: Path, mark: bytes, newline: bytes, packed: bool, header: list[bytes]) -> None:
    """Prevents: qrels that `prep` takes and `retrieve evaluate` refuses."""
    content = mark + newline.join([*header, b"q1\td1\t1.0", b"q1 0 d2 +2", b"my query\td1\t0\t", b""])
    (tmp_path / "q").write_bytes(gzip.compress(content) if packed else content)
    assert read_qrels(tmp_path / "q", split="test") == {"q1": {"d1": 1, "d2": 2}, "my query": {"d1": 0}}


def test_a_pair_with_two_labels_is_refused_and_one_told_twice_is_not(tmp_path: Path) -> None:
    """Prevents: the last label winning without a word, so that a query leaves the mean."""
    (tmp_path / "q").write_text("q0 0 p0 1\nq1 0 p1 1\nq0 0 p0 0\n")
    with pytest.raises(UserError, match=r"q:3: query q0 and passage p0 are judged 1 in line 1 and 0 here"):
        read_qrels(tmp_path / "q", split="test")
    notes: list[str] = []
    (tmp_path / "q").write_text("q0 0 p0 1\nq1 0 p1 1\nq0 0 p0 1\n")
    assert read_qrels(tmp_path / "q", split="test", note=notes.append) == {"q0": {"p0": 1}, "q1": {"p1": 1}}
    assert "1 judgements stand there a second time" in notes[0]


@pytest.mark.parametrize("content", ["", "query-id\tcorpus-id\tscore\n", "\n\n"])
def test_a_file_without_labels_is_refused(tmp_path: Path, content: str) -> None:
    """Prevents: a mean over no query."""
    (tmp_path / "q").write_text(content)
    with pytest.raises(UserError, match=r"holds no relevance labels; expected lines of"):
        read_qrels(tmp_path / "q", split="test")


def test_labels_from_beir_and_trec_files(tmp_path: Path) -> None:
    """Prevents: the header taken for a label, or the second column of TREC for the passage."""
    (tmp_path / "beir.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n")
    (tmp_path / "trec.txt").write_text("q1 0 d1 2\nq1 0 d2 0\n")
    expected = {"q1": {"d1": 2, "d2": 0}}
    assert read_qrels(tmp_path / "beir.tsv", split="test") == read_qrels(tmp_path / "trec.txt", split="test") == expected


@pytest.mark.parametrize("line", ["q1 d1", "q1 d1 relevant", "q1 d1 0.5", "q 0 d 1 x", "q1 d1 1_0", "q1 d1 \u0661", "q1,d1,1"])
def test_a_bad_label_is_named(tmp_path: Path, line: str) -> None:
    """Prevents: a fraction cut down to 0, a run file taken for labels."""
    (tmp_path / "q.tsv").write_text(f"q1 d9 1\n{line}\n")
    with pytest.raises(UserError, match=r"q\.tsv:2: .*expected .*, found"):
        read_qrels(tmp_path / "q.tsv", split="test")
