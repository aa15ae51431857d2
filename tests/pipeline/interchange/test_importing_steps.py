"""The steps of an import, each against a reference that is slow and plain."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.scored_lists import List, write_lists

from data.errors import UserError
from data.logits.declared import DeclaredTeacher
from data.logits.store import LogitStore
from pipeline.interchange import importing
from pipeline.interchange.lists_in import identities
from pipeline.interchange.lists_in.spill import Spill, bucket_ranges

LISTS: list[List] = [(f"q{number}", f"query {number}", [(None, None, f"text {number}", 1, 0.5 * number)]) for number in range(30)]


def chunked(values: list[str | None]) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, pa.string())])


@pytest.mark.medium
def test_white_space_is_what_python_strips() -> None:
    """Prevents: texts that lose other characters here than where `ingest` reads them, so that their logits are never found."""
    every = [chr(code) for code in range(sys.maxunicode + 1) if not 0xD800 <= code < 0xE000]
    assert identities.stripped(chunked([f"{one}x{one}" for one in every])).to_pylist() == [f"{one}x{one}".strip() for one in every]


@pytest.mark.medium
@given(st.lists(st.tuples(st.one_of(st.none(), st.text()), st.text()), min_size=1))
def test_titles_stand_in_front_as_a_collections_reader_puts_them(records: list[tuple[str | None, str]]) -> None:
    """Prevents: a passage's text that is another one when `ingest` reads the collection that was written."""
    plain = [(text if title is None else f"{title.strip()} {text.strip()}").strip() for title, text in records]
    titles, texts = chunked([title for title, _ in records]), chunked([text for _, text in records])
    assert identities.titled(titles, texts).to_pylist() == plain


def test_texts_far_apart_have_one_id() -> None:
    """Prevents: an id that depends on what came lately, where two texts share a place in the table of recent ones."""
    made = identities.TextIds(4)
    texts = pa.array([f"text {number % 37}" for number in range(500)])
    nothing = pa.nulls(500, pa.string())
    parts = [
        made.filled(nothing.slice(at, 50), texts.slice(at, 50), identities.text_hashes(texts.slice(at, 50))) for at in range(0, 500, 50)
    ]
    ids = [one for part in parts for one in part.to_pylist()]
    assert len(set(ids)) == 37 and all(
        len({one for one, text in zip(ids, texts.to_pylist(), strict=True) if text == each}) == 1 for each in texts.to_pylist()[:37]
    )


@pytest.mark.medium
@given(st.lists(st.integers(0, 2**64 - 1), max_size=40), st.sampled_from([1, 2, 64]), st.integers(1, 400), st.integers(1, 400))
def test_a_spill_gives_each_row_back_once(hashes: list[int], buckets: int, chunk: int, read: int) -> None:
    """Prevents: rows lost or moved between buckets, and rows of one hash that come back in another order or in two pieces."""
    import tempfile
    from unittest import mock

    from pipeline.interchange.lists_in import spill as module

    schema = pa.schema([("hash", pa.uint64()), ("row", pa.int64())])
    with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(module, CHUNK_BYTES=chunk, READ_BYTES=read):
        spill = Spill(Path(folder) / "rows", schema, buckets=buckets)
        for row, one in enumerate(hashes):
            spill.add(pa.table([[one], [row]], schema=schema), np.array([one], np.uint64))
        pieces = [spill.read(part).to_pydict() for part in bucket_ranges(spill)]
    assert sorted(row for piece in pieces for row in piece["row"]) == list(range(len(hashes)))
    for one in set(hashes):
        found = [[row for row, own in zip(piece["row"], piece["hash"], strict=True) if own == one] for piece in pieces]
        assert [rows for rows in found if rows] == [[row for row, own in enumerate(hashes) if own == one]]


@pytest.mark.usefixtures("plain_reader")
def test_what_stops_at_the_end_is_repeated_by_the_same_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: half an import that is taken for one, its leftovers, and logits stored twice when it is started again."""
    words = [f"path={write_lists(tmp_path / 'lists.jsonl', LISTS)}", "teacher=theirs", f"store={tmp_path / 'store'}"]
    importing.run_import([*words, f"out={tmp_path / 'unbroken'}"], say=lambda line: None)
    (tmp_path / "store").rename(tmp_path / "unbroken-store")

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(importing, "_appear", stop)
        with pytest.raises(KeyboardInterrupt):
            importing.run_import([*words, f"out={tmp_path / 'out'}"], say=lambda line: None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lists.jsonl", "store", "unbroken", "unbroken-store"]
    said: list[str] = []
    importing.run_import([*words, f"out={tmp_path / 'out'}"], say=said.append)
    assert "note: 30 logits that were in the store already" in said
    namespace = DeclaredTeacher("theirs", "1").namespace
    assert LogitStore(tmp_path / "store", namespace).size()[:2] == LogitStore(tmp_path / "unbroken-store", namespace).size()[:2] == (30, 1)
    for path in (tmp_path / "unbroken").rglob("*"):
        if path.is_file() and path.suffix in (".jsonl", ".tsv", ".trec"):
            assert (tmp_path / "out" / path.relative_to(tmp_path / "unbroken")).read_bytes() == path.read_bytes()


@pytest.mark.usefixtures("plain_reader")
def test_what_comes_to_lie_there_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a folder of somebody else, made while the import ran, that is deleted or mixed with it."""
    words = [f"path={write_lists(tmp_path / 'lists.jsonl', LISTS)}", "teacher=theirs", f"store={tmp_path / 'store'}"]
    real = importing._appear

    def late(folder: Path, out: Path) -> None:
        out.mkdir()
        (out / "mine").touch()
        real(folder, out)

    monkeypatch.setattr(importing, "_appear", late)
    with pytest.raises(UserError, match="has come to hold something since the import began"):
        importing.run_import([*words, f"out={tmp_path / 'out'}"], say=lambda line: None)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
