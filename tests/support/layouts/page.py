"""docs/model-table.md: its text, and how a row becomes a line."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from support.layouts.measure import StudentOutcome, TeacherOutcome
from support.layouts.student_rows import KEYS, MARKS, STUDENTS, StudentRow
from support.layouts.teacher_rows import TEACHERS, TeacherRow

PAGE = Path(__file__).parents[3] / "docs" / "model-table.md"
WRITE = "MODEL_TABLE=write .venv/bin/pytest -m slow tests/slow/test_model_table.py"
NONE = "-"

_HEAD = f"""# Which models work

Each line was measured on a tiny checkpoint with random weights that has the layout of the model as it is published: fields of config.json,
tokenizer, templates, modules, files. A figure is the largest difference to transformers, sentence-transformers or ONNX Runtime in fp32;
token ids are equal, too. A refusal comes before the first stage works. `FOLDER` is the model's folder.

`{WRITE}`
writes this page anew.
"""
_TEACHERS = """## Teachers

The largest difference of 60 pairs' logits: short, long, empty, with umlauts and Chinese; of some, too, after three steps of
`train.task=cross_encoder`, saved and opened again. Pairs are cut to 160 tokens, those in a template not at all
(`teacher.max_tokens=1024`).
"""
_STUDENTS = """## Students

The largest difference of the vectors to `encode_query` and `encode_document`: as published, with lengths of the checkpoint; after three
steps of training, saved and opened again; and with `student.layers=1`.
"""
_KEYS = """## What a sentence-transformers folder says

Keys set in the folder of all-MiniLM-L6-v2, and the largest difference of the vectors to sentence-transformers with the same folder.
"""
_MARKS = """## Dark examples

What a tokenizer reads of `claim`, a masked word, `premium`; and of `claim`, the mark between two passages, `premium`.
"""


def settings_of(row: TeacherRow | StudentRow, section: str) -> str:
    """The settings besides the model, as on a command line."""
    given = [f"{section}.{name}={_value(value)}" for name, value in row.settings.items() if name != "max_tokens"]
    return " ".join(f"`{word}`" for word in given) or NONE


def _value(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    return f'"{value}"' if " " in str(value) else str(value)


def line(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def teacher_line(row: TeacherRow, outcome: TeacherOutcome) -> str:
    trained = outcome.trained.cell if outcome.trained else NONE
    return line(row.name, settings_of(row, "teacher"), outcome.plain.cell, trained)


def student_line(row: StudentRow, outcome: StudentOutcome) -> str:
    """A refusal has the first of three columns."""
    others = [NONE if found is None else found.cell for found in (outcome.trained, outcome.layers)]
    return line(row.name, settings_of(row, "student"), outcome.plain.cell, *others)


def key_line(row: StudentRow, outcome: StudentOutcome) -> str:
    return line(row.name, outcome.plain.cell)


def mark_line(tokenizer: str, cells: tuple[str, str]) -> str:
    return line(MARKS[tokenizer], *(cell if cell.startswith("refused") else f"`{cell}`" for cell in cells))


def page_of(lines: Mapping[str, str]) -> str:
    """The page, of lines by the ids of their rows (`ids`)."""
    parts = [_HEAD]

    def table(heads: Sequence[str], ids: Sequence[str]) -> str:
        return "\n".join([line(*heads), line(*["---"] * len(heads)), *(lines[name] for name in ids if name in lines)]) + "\n"

    parts.append(_TEACHERS)
    for title, teachers in TEACHERS.items():
        parts.append(f"### {title}\n" if title != "Refused" else "### Other teachers\n")
        parts.append(table(("model (layout)", "settings", "as published", "trained"), [f"teacher: {row.name}" for row in teachers]))
    parts.append(_STUDENTS)
    for title, students in STUDENTS.items():
        parts.append(f"### {title} as students\n" if title != "Refused" else "### Other students\n")
        names = [f"student: {row.name}" for row in students]
        parts.append(table(("model (layout)", "settings", "as published", "trained", "one layer"), names))
    parts += [_KEYS, table(("key", "here"), [f"key: {row.name}" for row in KEYS])]
    parts += [_MARKS, table(("tokenizer", "mask", "separator"), [f"marks: {name}" for name in MARKS])]
    return "\n".join(parts)


def text() -> str:
    """The page as it lies there."""
    return PAGE.read_text(encoding="utf-8") if PAGE.is_file() else ""


def ids() -> list[str]:
    """All rows in the page's order."""
    teachers = [f"teacher: {row.name}" for rows in TEACHERS.values() for row in rows]
    students = [f"student: {row.name}" for rows in STUDENTS.values() for row in rows]
    return [*teachers, *students, *(f"key: {row.name}" for row in KEYS), *(f"marks: {name}" for name in MARKS)]


def lines_of(page: str) -> dict[str, str]:
    """The lines of a page by the ids of the rows that should stand there."""
    found = [text for text in page.splitlines() if text.startswith("|") and not re.match(r"\| (---|model \(|key \||tokenizer \|)", text)]
    return dict(zip(ids(), found, strict=True)) if len(found) == len(ids()) else {}


def agrees(written: str, measured: str) -> bool:
    """Whether a line says what was measured: the same words, and a difference that is smaller by a power of ten at most."""
    figures = [[float(figure) for figure in re.findall(r"≤ (1e-\d)", text)] for text in (written, measured)]
    same = re.sub(r"≤ 1e-\d", "≤", written) == re.sub(r"≤ 1e-\d", "≤", measured)
    return same and all(there * 10.1 >= found for there, found in zip(*figures, strict=True))
