"""docs/model-table.md is what is measured: each row a tiny checkpoint in a public model's layout, against the library that it is from.

MODEL_TABLE=write writes the lines of the rows that are run, instead of comparing with them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.layouts import page
from support.layouts.measure import Outcome, marks_of, student_outcome, teacher_outcome
from support.layouts.student_rows import KEYS, MARKS, STUDENTS, StudentRow
from support.layouts.teacher_rows import TEACHERS, TeacherRow
from support.layouts.weights import shared
from typer.testing import CliRunner

from data.tables.shards import read_shard
from retrieval.cli import app
from retrieval.search.embedding_table import table_paths

MODE = os.environ.get("MODEL_TABLE", "")
TEXT = "ba cedi fogu zaxe"


def rows_of(groups: dict[str, list]) -> list:
    return [pytest.param(row, id=row.name.replace(" ", "-")) for rows in groups.values() for row in rows]


@pytest.fixture(scope="module")
def measured() -> Iterator[dict[str, str]]:
    """Lines by the ids of their rows; written into the page where that is asked for."""
    lines: dict[str, str] = {}
    yield lines
    if MODE == "write":
        page.PAGE.write_text(page.page_of({**page.lines_of(page.text()), **lines}), encoding="utf-8")


def check_line(name: str, text: str, measured: dict[str, str]) -> None:
    """The page has this line."""
    measured[name] = text
    if not MODE:
        written = page.lines_of(page.text()).get(name, "no such line")
        assert page.agrees(written, text), f"the page says\n{written}\nmeasured was\n{text}\n{page.WRITE}\nwrites it anew"


def check(outcome: Outcome | None, *, works: bool, says: str, tolerance: float) -> None:
    """A row is what it must be."""
    if outcome is None:
        return
    if outcome.fault:
        raise outcome.fault
    if works:
        assert outcome.difference is not None, f"refused: {outcome.message}"
        assert outcome.difference <= tolerance, f"off by {outcome.difference:.1e}"
    else:
        assert outcome.difference is None, "works, but is to be refused"
        assert re.search(says, outcome.message), f"refused in other words: {outcome.message}"


@pytest.mark.parametrize("row", rows_of(TEACHERS))
def test_a_teacher_is_exact_or_refused(row: TeacherRow, measured: dict[str, str], tmp_path: Path) -> None:
    """Prevents: logits of other tokens, templates, labels or weights than the checkpoint's, and a crash in place of a sentence."""
    if row.skipped:
        pytest.skip(row.skipped)
    found = teacher_outcome(row, tmp_path)
    check_line(f"teacher: {row.name}", page.teacher_line(row, found), measured)
    check(found.plain, works=row.reference is not None, says=row.says, tolerance=row.tolerance)
    check(found.trained, works=True, says="", tolerance=row.tolerance)


@pytest.mark.parametrize("row", rows_of(STUDENTS))
def test_a_student_is_exact_or_refused(row: StudentRow, measured: dict[str, str], tmp_path: Path) -> None:
    """Prevents: vectors of another pooling, prompt, module or length than the checkpoint's; a trained student that opens as another."""
    if row.skipped:
        pytest.skip(row.skipped)
    found = student_outcome(row, tmp_path)
    check_line(f"student: {row.name}", page.student_line(row, found), measured)
    check(found.plain, works=row.works, says=row.says, tolerance=row.tolerance)
    check(found.trained, works=True, says="", tolerance=row.tolerance)
    check(found.layers, works=row.layers == "works", says=row.layers or "", tolerance=row.tolerance)


@pytest.mark.parametrize("row", rows_of({"": KEYS}))
def test_a_key_is_honoured_or_refused(row: StudentRow, measured: dict[str, str], tmp_path: Path) -> None:
    """Prevents: what a folder says of its vectors read over."""
    found = student_outcome(row, tmp_path)
    check_line(f"key: {row.name}", page.key_line(row, found), measured)
    check(found.plain, works=row.works, says=row.says, tolerance=row.tolerance)


@pytest.mark.parametrize("tokenizer", MARKS)
def test_a_tokenizer_has_marks(tokenizer: str, measured: dict[str, str], tmp_path: Path) -> None:
    """Prevents: dark examples refused for a tokenizer without the token, or marks read as a text's own words."""
    cells = marks_of(tokenizer, tmp_path)
    check_line(f"marks: {tokenizer}", page.mark_line(tokenizer, cells), measured)
    assert not any(cell.startswith("refused") for cell in cells), cells


SEARCHED = ("Qwen3-Embedding-0.6B", "EmbeddingGemma-300m", "e5-mistral-7b-instruct")


@pytest.mark.parametrize("row", [param for param in rows_of(STUDENTS) if param.values[0].name in SEARCHED])
def test_a_query_finds_what_sentence_transformers_finds(row: StudentRow, finished: Any, tmp_path: Path) -> None:
    """Prevents: `retrieve encode` and `retrieve query` that leave out a prompt or module which the encoder honours."""
    folder, texts = shared(row.layout), next((finished.store / "ingest").glob("corpus-*"))
    lengths = ["query_tokens=200", "passage_tokens=400", "threads=1"]
    encode = [f"model={folder}", f"texts={texts}", "kind=corpus", f"out={tmp_path / 'corpus'}", "precision=fp32", *lengths]
    output_of("encode", *encode)
    lines = output_of("query", TEXT, f"model={folder}", f"corpus={tmp_path / 'corpus'}", f"texts={texts}", "k=60", *lengths)
    passages = {entry["doc_id"]: entry["text"] for path in table_paths(texts) for entry in read_shard(path).to_pylist()}
    model = row.peer.open(folder)
    query, vectors = row.peer.vectors(model, [TEXT], list(passages.values()))
    expected = dict(zip(passages, (vectors @ query[0]).tolist(), strict=True))
    shown = {line.split()[2]: float(line.split()[1]) for line in lines}
    assert shown == pytest.approx(expected, abs=2e-3)  # vectors are stored in fp16


def output_of(*words: str) -> list[str]:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, done.output
    return done.stdout.strip().splitlines()


def test_the_page_is_of_these_rows() -> None:
    """Prevents: rows taken away or added, or the page's text changed, on one side alone."""
    assert len(set(page.ids())) == len(page.ids())
    if MODE:
        pytest.skip("the page is being written")
    written = page.text()
    assert written == page.page_of(page.lines_of(written)), f"{page.WRITE}\nwrites it anew"
