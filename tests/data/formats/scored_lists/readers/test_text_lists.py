"""TREC runs and tables of ids with scores."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.read_lists import by_id, read

from data.errors import UserError
from data.formats.scored_lists.batches import ReadOptions
from data.formats.scored_lists.readers.text_lists import TextLists

TREC, TSV = TextLists("trec"), TextLists("tsv")


def write(tmp_path: Path, text: str, name: str = "scores.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(text.encode())
    return path


def test_runs(tmp_path: Path) -> None:
    """Prevents: the rank read as the score, another order of the list, and a query's later lines that join an earlier list."""
    lines = "7 Q0 d1 1 -1.5 t\r\n7 Q0 d2 2 3e0 t\r\n\r\n8 Q0 d1 1 nan t\n7 Q0 d3 3 0 t\n"
    path = write(tmp_path, lines)
    assert TREC.recognises(path) and not TSV.recognises(path)
    found = read(TREC, path)
    assert by_id(found) == [("7", [("d1", None, -1.5), ("d2", None, 3.0)]), ("8", [("d1", None, None)]), ("7", [("d3", None, 0.0)])]
    assert [one.line for one in found.lists] == [1, 4, 5] and not found.faults


@pytest.mark.parametrize(
    "text",
    [
        "q1\td1\t1.5\nq1\td2\t-2\n",
        "q1 d1 1.5\nq1  d2  -2\n",
        "qid\tdocid\tscore\nq1\td1\t1.5\nq1\td2\t-2\n",
        "score docid query-id\n1.5 d1 q1\n-2 d2 q1\n",
        "\ufeffquery_id\tdoc_id\tscore\textra\r\nq1\td1\t1.5\tx\r\nq1\td2\t-2\ty\r\n",
        "#qid pid ce-score\nq1 d1 1.5\nq1 d2 -2",
        "query document points\nq1 d1 1.5\nq1 d2 -2\n",
    ],
)
def test_tables(tmp_path: Path, text: str) -> None:
    """Prevents: a header read as a candidate, or columns taken by place where the header says otherwise."""
    path = write(tmp_path, text)
    assert TSV.recognises(path) and not TREC.recognises(path)
    found = read(TSV, path)
    assert by_id(found) == [("q1", [("d1", None, 1.5), ("d2", None, -2.0)])] and not found.faults


def test_labels_and_ids_with_spaces(tmp_path: Path) -> None:
    """Prevents: a label read as the score, and ids cut at a space."""
    assert by_id(read(TSV, write(tmp_path, "q1 d1 1.5 1\nq1 d2 0.5 0\n"))) == [("q1", [("d1", 1, 1.5), ("d2", 0, 0.5)])]
    assert by_id(read(TSV, write(tmp_path, "q 1\td/1\t1.5\nq 1\td 2\tNone\n"))) == [("q 1", [("d/1", None, 1.5), ("d 2", None, None)])]


def test_broken_lines(tmp_path: Path) -> None:
    """Prevents: one bad line of ten million that ends the import, or is lost."""
    lines = ["q d 1", "q d", "q d 1 2 3", "q d high", "q d 1_0", "q d ٣", "q e 2", "\t\t1", "q d 1.5 x"]
    path = tmp_path / "x.tsv"
    path.write_bytes("\n".join(lines).encode() + b"\nq \xff 1\n")
    found = read(TSV, path)
    assert by_id(found) == [("q", [("d", None, 1.0), ("e", None, 2.0)])]
    assert [":".join(fault.split(":")[1:3]) for fault in found.faults] == [
        "2: too few columns", "3: too many columns", "4: score is not a number", "5: score is not a number", "6: score is not a number",
        "8: empty id", "9: too many columns", "10: bad UTF-8",
    ]  # fmt: skip


def test_other_files(tmp_path: Path) -> None:
    """Prevents: qrels read as lists whose labels are the teacher's scores, and other files read as anything."""
    for text in ("1 0 7 1\n1 0 8 0\n", "1\tQ0\t7\t1\n"):
        path = write(tmp_path, text)
        assert not TSV.recognises(path) and not TREC.recognises(path)
        with pytest.raises(UserError, match="not in format tsv"):
            read(TSV, path)
    for text in ('{"query": "q"}\n', "just some words that are longer than six\n"):
        assert not TSV.recognises(write(tmp_path, text)) and not TREC.recognises(write(tmp_path, text))
    with pytest.raises(UserError, match="has no line"):
        read(TSV, write(tmp_path, "\n\n"))
    with pytest.raises(UserError, match="expected a file"):
        read(TSV, tmp_path)
    with pytest.raises(UserError, match="columns=: format tsv"):
        read(TSV, write(tmp_path, "a b 1"), columns={"score": "x"})


def test_batches_hold_whole_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: batches that grow with the file, and a query cut in two at the end of one."""
    monkeypatch.setattr("data.formats.scored_lists.readers.text_lists.BATCH_CANDIDATES", 5)
    path = write(tmp_path, "".join(f"q{place // 4} d{place} {place}\n" for place in range(20)))
    batches = list(TSV.read(path, ReadOptions()))
    assert [batch.candidates.num_rows for batch in batches] == [8, 8, 4]
    assert [row for batch in batches for row in batch.candidates.column("score").to_pylist()] == [float(place) for place in range(20)]
