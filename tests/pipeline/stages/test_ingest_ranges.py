"""A corpus read in ranges: however it is cut, the tables, the quarantine and what is said are those of one pass."""

from __future__ import annotations

import gzip
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from data.config.settings import load
from data.errors import UserError
from data.files.text_lines import line_ranges, numbered_lines
from data.formats import record_counts
from pipeline.stage import Cutting, StageContext, WorkerCache
from pipeline.stages import ingest_ranges
from pipeline.stages.ingest_tables import CORPUS

LINES = [
    *(json.dumps({"_id": f"d{number}", "text": f"text {number} é"}, ensure_ascii=False) for number in (1, 2, 3, 4, 5, 6, 7)),
    json.dumps({"_id": "d8", "title": "a title", "text": "x" * 90}), json.dumps({"_id": "d1", "text": "again"}),
    json.dumps({"_id": "", "text": "no id"}), json.dumps({"_id": "d9"}), "{", "", "   ", "[1]",
]  # fmt: skip
TAB_LINES = [*(f"d{number}\ttext {number} é" for number in range(1, 8)), "d1\tagain", "d2", "", " ", "\tno id", "d8\t" + "x" * 90]


def ingest(folder: Path, collection: Path, *, shards: int, allowed: float, format: str = "auto") -> tuple[dict[str, bytes], list[str]]:
    """What the table's rounds and tasks make of a collection: bytes by name, and what is said. An error is said last."""
    own = SimpleNamespace(collection=str(collection), format=format, corpus_shards=shards, train_split="train", max_bad_fraction=allowed)
    models: Any = SimpleNamespace(experiment=SimpleNamespace(ingest=own))
    said: list[str] = []

    def context(of: tuple[int, ...]) -> StageContext:
        return StageContext(models, CORPUS, folder, "f", of, shards, {}, WorkerCache(), lambda *_: None, said.append)

    def cutting(number: int) -> Cutting:
        return Cutting(models, {}, range(shards), folder, number, 2)

    try:
        for number, each in enumerate(CORPUS.rounds):
            for piece in each.cut(cutting(number)):
                each.build(context(tuple(range(shards))), piece)
        assert CORPUS.groups
        for of in CORPUS.groups(cutting(2)) or [tuple(range(shards))]:
            CORPUS.build(context(of))
    except UserError as error:
        said.append(str(error))
    shutil.rmtree(folder / "pieces", ignore_errors=True)
    files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.parquet")}
    return files, [line.replace(str(folder), "FOLDER") for line in said]


def both(folder: Path, collection: Path, *, size: int, most: int = 100_000, **words: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_ranges, "_GROUPS", 2)
        patch.setattr(record_counts, "MAX_QUARANTINED", most)
        patch.setattr(ingest_ranges, "MAX_QUARANTINED", most)
        patch.setattr(ingest_ranges, "_RANGE_BYTES", size)
        patch.setattr(ingest_ranges, "_LEAST_BYTES", 1 << 60)
        expected = ingest(folder / "whole", collection, **words)
        patch.setattr(ingest_ranges, "_LEAST_BYTES", 0)
        assert ingest(folder / "ranges", collection, **words) == expected


def write_judgements(folder: Path) -> None:
    (folder / "qrels").mkdir(parents=True)
    (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t1\n")
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "a query"}\n')


@pytest.mark.medium
@settings(max_examples=80)
@example(lines=[0, 0, 1, 2, 8, 3, 1], tabs=False, end="\n", start="", final=1, size=20, shards=2, allowed=1.0, most=100_000, packed=False)
@example(
    lines=[0, 12, 13, 12, 2, 0, 11], tabs=False, end="\n", start="\ufeff", final=3, size=1, shards=2, allowed=1.0, most=3, packed=False
)
@given(
    lines=st.lists(st.sampled_from(range(len(LINES))), max_size=30), tabs=st.booleans(), end=st.sampled_from(["\n", "\n", "\r\n", "\r"]),
    start=st.sampled_from(["", "\ufeff"]), final=st.integers(0, 4), size=st.sampled_from([1, 2, 5, 20, 60, 300]), shards=st.integers(1, 4),
    allowed=st.sampled_from([0.3, 1.0, 1.0]), most=st.sampled_from([3, 100_000]), packed=st.sampled_from([False, False, False, True]),
)  # fmt: skip
def test_any_cut_of_a_text_gives_what_one_pass_gives(
    tmp_path_factory: pytest.TempPathFactory,
    lines: list[int],
    tabs: bool,
    end: str,
    start: str,
    final: int,
    size: int,
    shards: int,
    allowed: float,
    most: int,
    packed: bool,
) -> None:
    """Prevents: a passage lost or read twice at a border of ranges, a fault of the wrong line, or other bytes on another machine."""
    folder = tmp_path_factory.mktemp("cut")
    collection = folder / "collection"
    write_judgements(collection)
    texts = TAB_LINES if tabs else LINES
    content = (start + end.join(texts[number % len(texts)] for number in lines) + end * final).encode()
    name = "collection.tsv" if tabs else "corpus.jsonl"
    if tabs:
        shutil.rmtree(collection / "qrels")
        (collection / "queries.jsonl").unlink()
        (collection / "qrels.train.tsv").write_text("q1\t0\td1\t1\n")
        (collection / "queries.train.tsv").write_text("q1\ta query\n")
    (collection / f"{name}{'.gz' * packed}").write_bytes(gzip.compress(content, mtime=0) if packed else content)
    both(folder, collection, size=size, most=most, shards=shards, allowed=allowed)
    shutil.rmtree(folder)


@pytest.mark.medium
@settings(max_examples=6)
@given(seed=st.integers(0, 1 << 20), groups=st.sampled_from([1024, 2048, 1000]), files=st.integers(1, 3))
def test_any_cut_of_parquet_gives_what_one_pass_gives(tmp_path_factory: pytest.TempPathFactory, seed: int, groups: int, files: int) -> None:
    """Prevents: rows of a row group that are numbered, shown or sorted in another way than in one pass over the files."""
    folder = tmp_path_factory.mktemp("cut")
    collection = folder / "collection"
    write_judgements(collection)
    (collection / "queries.jsonl").unlink()
    pq.write_table(pa.table({"_id": ["q1"], "text": ["a query"]}), collection / "queries.parquet")
    (collection / "corpus").mkdir()
    chance = random.Random(seed)
    for number in range(files):
        rows = chance.randrange(1, 4000)
        ids = [f"d{chance.randrange(9000)}" if chance.random() < 0.99 else "" for _ in range(rows)]
        texts = [b"\xff" if chance.random() < 0.0005 else f"text {row}".encode() for row in range(rows)]
        table = pa.table({"_id": ids, "text": pa.array(texts, pa.binary()).view(pa.string())})
        pq.write_table(table, collection / "corpus" / f"{number}.parquet", row_group_size=groups)
    both(folder, collection, size=1, shards=3, allowed=0.9)
    shutil.rmtree(folder)


@pytest.mark.medium
def test_pages_and_row_groups_are_those_of_one_pass(tmp_path: Path) -> None:
    """Prevents: the same rows in other pages, so that a large corpus has another digest than it had, and all after it is made again."""
    collection = tmp_path / "collection"
    write_judgements(collection)
    chance = random.Random(0)
    words = ["".join(chance.choices("abcdefgh ", k=64)) for _ in range(999)]  # a column of a row group is longer than a page
    with open(collection / "corpus.jsonl", "w") as file:
        for number in range(12_000):
            doc_id = number if chance.random() < 0.999 else chance.randrange(number + 1)
            print(json.dumps({"_id": f"d{doc_id}", "text": " ".join(chance.choices(words, k=chance.randrange(1, 16)))}), file=file)
    both(tmp_path, collection, size=1 << 17, shards=2, allowed=0.5)
    assert pq.read_metadata(tmp_path / "ranges" / "part-00000-of-00002.parquet").num_row_groups > 1


@pytest.mark.parametrize("content", [b"", b"\n", b"a", b"a\nb", b"a\n\n\nbb\n", b"\xef\xbb\xbfa\nb\n", b"a" * 99 + b"\nb\n"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 200])
def test_ranges_hold_each_line_once(tmp_path: Path, content: bytes, size: int) -> None:
    """Prevents: a line that two ranges read, or none."""
    path = tmp_path / "file"
    path.write_bytes(content)
    expected = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    ranges = line_ranges(path, size)
    lines = [line for start, stop in ranges for _, line in numbered_lines(path, start=start, stop=stop)]
    assert lines == (expected[:-1] if not expected[-1] else expected)
    assert size < len(content) or ranges == [(0, None)]


@pytest.mark.parametrize("content", [b"a\rb\rc\r" * 9, gzip.compress(b"a\nb\n" * 99, mtime=0)])
def test_what_cannot_be_cut_is_one_range(tmp_path: Path, content: bytes) -> None:
    """Prevents: bytes of an archive, or lines of another system, taken for lines from the middle on."""
    (tmp_path / "file").write_bytes(content)
    assert line_ranges(tmp_path / "file", 4) == [(0, None)]


@pytest.mark.medium
def test_a_run_reads_a_large_corpus_in_ranges(
    tmp_path: Path,
    finished: Any,
    tiny_experiment: Callable[..., Path],
    prep_run: Callable[..., list[str]],
    parquet_files: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents: rounds that the run never comes to, pieces left in the store, or a table of another key for how it was read."""
    monkeypatch.setattr(ingest_ranges, "_LEAST_BYTES", 0)
    monkeypatch.setattr(ingest_ranges, "_RANGE_BYTES", 1000)
    config = tiny_experiment(tmp_path / "run")
    assert load({"config": str(config)}).ingest.corpus_shards == 3
    prep_run(config, stage="ingest")
    store = config.parent / "store"
    expected = {name: content for name, content in parquet_files(finished.store).items() if name.startswith("ingest")}
    assert parquet_files(store) == expected
    (journal,) = store.glob("ingest/corpus-*/journal.jsonl")
    pieces = [line.get("piece") for line in map(json.loads, journal.read_text().splitlines())]
    assert pieces.count("records") == 1 and sum("rows-" in (piece or "") for piece in pieces) > 3
