"""Ids and texts that a layout of lines can hold, or must refuse."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data.errors import UserError
from data.formats.scored_lists.writers.formats import FORMATS
from data.formats.scored_lists.writers.lists import Lists, WriteOptions, Written

ODD_TEXTS = [
    "",
    "two\nlines\r\nand\ttabs",
    "\u2028 and \u0085 and \x0b",
    '"quoted" \\ {}',
    "日本語 🙂 \U0001f469\u200d\U0001f680",
    "x" * 100_000,
]


class OneList:
    """A query with one positive, the first, and the others as negatives."""

    def __init__(self, ids: list[str], texts: list[str] | None = None, *, query_id: str = "q", logits: list[float] | None = None) -> None:
        self.query_id, self.ids, self.texts, self.logits = (
            query_id,
            ids,
            texts or ids,
            logits or [float(place) for place in range(len(ids))],
        )

    def read(self, *, texts: bool = True) -> Iterator[Lists]:
        count = len(self.ids)
        positive = np.arange(count) == 0
        yield Lists(
            pa.array([self.query_id]), pa.array(["a\nquery"]), np.zeros(1, np.int8), np.full(1, -1, np.float32), np.zeros(count, np.int64),
            np.arange(count), pa.array(self.ids), pa.array(self.texts), (~positive).astype(np.int8), positive,
            np.array(self.logits, np.float32),
        )  # fmt: skip


def write(format: str, folder: Path, source: OneList) -> Written:
    folder.mkdir()
    return FORMATS[format].write(folder, source, WriteOptions(scored=True))


def json_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_bytes().decode().removesuffix("\n").split("\n")]


@pytest.mark.parametrize("format", ["flagembedding", "tevatron", "beir"])
def test_any_text_is_one_line(tmp_path: Path, format: str) -> None:
    """Prevents: a text with a line break that is two records, or that comes back changed."""
    ids = [f"d {number}/ü" for number in range(len(ODD_TEXTS))]
    write(format, tmp_path / "out", OneList(ids, ODD_TEXTS))
    rows = json_lines(tmp_path / "out" / ("corpus.jsonl" if format == "beir" else "train.jsonl"))
    if format == "beir":
        assert [(row["_id"], row["text"]) for row in rows] == list(zip(ids, ODD_TEXTS, strict=True))
    else:
        names = ("pos", "neg") if format == "flagembedding" else ("positive_passages", "negative_passages")
        (row,) = rows
        found = [one if isinstance(one, str) else one["text"] for name in names for one in row[name]]
        assert found == ODD_TEXTS and row["query"] == "a\nquery"


@pytest.mark.parametrize("bad", ["a\tb", "a\nb", " a", ""])
@pytest.mark.parametrize("format", ["tsv", "beir", "trec"])
def test_an_id_that_would_be_two_columns_is_refused(tmp_path: Path, format: str, bad: str) -> None:
    """Prevents: a line that another reader cuts elsewhere: scores of other passages, or a file that nobody can read."""
    for number, source in enumerate((OneList(["d", bad]), OneList(["d", "e"], query_id=bad))):
        with pytest.raises(UserError, match="cannot be a column of a line"):
            write(format, tmp_path / str(number), source)


def test_ids_with_blanks_are_held_where_tabs_are(tmp_path: Path) -> None:
    """Prevents: a collection whose ids hold blanks that cannot leave as TSV, and one that leaves as a broken run."""
    write("tsv", tmp_path / "tsv", OneList(["d 1", "d 2"]))
    assert (tmp_path / "tsv" / "scores.tsv").read_text() == "q\td 1\t0\nq\td 2\t1\n"
    with pytest.raises(UserError, match=r"d 1.*format=tsv"):
        write("trec", tmp_path / "trec", OneList(["d 1", "d 2"]))


@pytest.mark.parametrize("format", ["sentence-transformers", "flagembedding", "tevatron", "pylate"])
def test_a_list_of_a_positive_alone_is_no_example(tmp_path: Path, format: str) -> None:
    """Prevents: an empty list of negatives, at which the peers' loaders end in a traceback in the middle of a training."""
    with pytest.raises(UserError, match="nothing to write"):
        write(format, tmp_path / "out", OneList(["d"]))


def test_equal_scores_of_a_run_go_by_id(tmp_path: Path) -> None:
    """Prevents: a run that two readers order in two ways."""
    write("trec", tmp_path / "out", OneList(["c", "a", "b"], logits=[1.0, 1.0, 2.0]))
    assert [line.split()[2] for line in (tmp_path / "out" / "lists.trec").read_text().splitlines()] == ["b", "a", "c"]
