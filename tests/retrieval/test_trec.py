"""TREC runs and relevance labels: what is written is read again, and every bad line is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import UserError
from data.trec import Run, read_run, write_run
from retrieval.qrels import read_qrels


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
        ("q Q0 a 1 nan t", "expected `query_id Q0"),
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


def test_labels_from_beir_and_trec_files(tmp_path: Path) -> None:
    """Prevents: the header taken for a label, or the second column of TREC for the passage."""
    (tmp_path / "beir.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\nq1\td2\t0\n")
    (tmp_path / "trec.txt").write_text("q1 0 d1 2\nq1 0 d2 0\n")
    expected = {"q1": {"d1": 2, "d2": 0}}
    assert read_qrels(tmp_path / "beir.tsv", split="test") == read_qrels(tmp_path / "trec.txt", split="test") == expected


@pytest.mark.parametrize("line", ["q1 d1", "q1 d1 relevant", "q1 d1 0.5", "q 0 d 1 x"])
def test_a_bad_label_is_named(tmp_path: Path, line: str) -> None:
    """Prevents: a fraction cut down to 0, a run file taken for labels."""
    (tmp_path / "q.tsv").write_text(f"q1 d9 1\n{line}\n")
    with pytest.raises(UserError, match=r"q\.tsv:2: expected"):
        read_qrels(tmp_path / "q.tsv", split="test")
