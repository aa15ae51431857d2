"""Collections in Parquet: which files they are, and that a row is read as a line of JSON with the same fields is."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.formats import readers
from data.formats.collection import Collection, find_collection
from data.formats.readers import Fault, Judgement, Passage, Query
from retrieval.evaluation.qrels import read_qrels

CORPUS = {"_id": ["d1", "d2"], "title": ["Fleas", ""], "text": ["They jump.", "They bite. "]}
QUERIES = {"_id": ["q1", "q2"], "text": ["do fleas jump", "do fleas bite"]}
LABELS = {"query-id": ["q1", "q2"], "corpus-id": ["d1", "d2"], "score": [1, 1]}
PASSAGES = [Passage("d1", "Fleas They jump."), Passage("d2", "They bite.")]


def put(path: Path, columns: Any, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path, **options)
    return path


def parquet(folder: Path, *, corpus: Any = CORPUS, queries: Any = QUERIES, qrels: Any = LABELS) -> Collection:
    put(folder / "corpus.parquet", corpus)
    put(folder / "queries.parquet", queries)
    put(folder / "qrels" / "train.parquet", qrels)
    return find_collection(folder)


def records(found: Any) -> list[Any]:
    return [record for _, record in found]


@pytest.mark.parametrize(
    ("corpus", "queries", "qrels", "split"),
    [
        ("corpus/corpus-00000-of-00001.parquet", "queries/queries-00000-of-00001.parquet", "default/test-00000-of-00001.parquet", "test"),
        ("corpus/corpus-00000-of-00001.parquet", "queries/queries-00000-of-00001.parquet", "data/test-00000-of-00001.parquet", "test"),
        ("corpus/train-00000-of-00001.parquet", "queries/train-00000-of-00001.parquet", "qrels/train-00000-of-00001.parquet", "train"),
        ("corpus/corpus/0000.parquet", "queries/queries/0000.parquet", "default/test/0000.parquet", "test"),
        ("corpus/0000.parquet", "queries/test.parquet", "qrels/test.parquet", "test"),
        ("corpus.parquet", "queries.parquet", "qrels/dev-of-mine.parquet", "dev-of-mine"),
        ("corpus-00000-of-00001.parquet", "queries-00000-of-00001.parquet", "qrels-00000-of-00001.parquet", "train"),
        ("corpus/a-00000-of-00001-0123456789abcdef.parquet", "queries.parquet", "data/val-00000-of-00001-0123456789abcdef.parquet", "val"),
    ],
)
def test_layouts(tmp_path: Path, corpus: str, queries: str, qrels: str, split: str) -> None:
    """Prevents: a data set of the hub that has to be moved about by hand, or a split that goes by another name than there."""
    put(tmp_path / corpus, CORPUS)
    put(tmp_path / queries, QUERIES)
    put(tmp_path / qrels, LABELS)
    (tmp_path / "README.md").write_text("# a card")
    found = find_collection(tmp_path)
    assert (found.format, list(found.qrels)) == ("parquet", [split])
    assert records(readers.read_corpus(found)) == PASSAGES
    assert records(readers.read_queries(found)) == [Query("q1", "do fleas jump"), Query("q2", "do fleas bite")]
    assert records(readers.read_qrels(found, split=split)) == [Judgement(split, "q1", "d1", 1), Judgement(split, "q2", "d2", 1)]


def test_several_files_of_a_part(tmp_path: Path) -> None:
    """Prevents: the first of many files read alone, or files in another order than their numbers."""
    for number in range(3):
        put(tmp_path / f"corpus/corpus-{number:05d}-of-00003.parquet", {"_id": [f"d{number}"], "text": ["a"]})
        put(tmp_path / f"qrels/test-{number:05d}-of-00003.parquet", {**LABELS, "score": [number, number]})
    put(tmp_path / "queries/test.parquet", {"_id": ["q1"], "text": ["a"]})
    put(tmp_path / "queries/train.parquet", {"_id": ["q2"], "text": ["b"]})
    (tmp_path / "corpus/.part.parquet").write_bytes(b"half a download")
    found = find_collection(tmp_path)
    assert [passage.doc_id for passage in records(readers.read_corpus(found))] == ["d0", "d1", "d2"]
    assert [query.query_id for query in records(readers.read_queries(found))] == ["q1", "q2"]
    assert [judgement.relevance for judgement in records(readers.read_qrels(found, split="test"))] == [0, 0, 1, 1, 2, 2]


def test_judgements_as_text_beside_parquet(tmp_path: Path) -> None:
    """Prevents: BEIR's own repositories, whose judgements are TSV, and mteb's older ones, whose are JSONL, left out."""
    parquet(tmp_path)
    (tmp_path / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\n")
    lines = [{"query-id": "q 1", "corpus-id": 7, "score": 1.0}, {"query-id": "q2", "corpus-id": "d2"}]
    (tmp_path / "qrels" / "dev.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "qrels" / "train.jsonl").write_text(json.dumps({**lines[0], "score": 5}) + "\n")
    found = find_collection(tmp_path)
    assert list(found.qrels) == ["dev", "test", "train"]
    assert records(readers.read_qrels(found, split="test")) == [Judgement("test", "q1", "d1", 2)]
    assert [judgement.relevance for judgement in records(readers.read_qrels(found, split="train"))] == [1, 1], "Parquet wins"
    good, fault = records(readers.read_qrels(found, split="dev"))
    assert good == Judgement("dev", "q 1", "7", 1)
    assert fault[:3] == ("qrels/dev.jsonl", 2, "relevance is not an integer")


def test_json_judgements_of_a_beir_folder(tmp_path: Path) -> None:
    """Prevents: a split that joins a collection which had TSV files alone, and so other keys; and JSONL that is never read."""
    (tmp_path / "qrels").mkdir()
    (tmp_path / "corpus.jsonl").write_text('{"_id": "d1", "text": "a"}\n')
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "a"}\n')
    (tmp_path / "qrels" / "test.jsonl").write_text('{"query-id": "q1", "corpus-id": "d1", "score": 1}\n')
    assert records(readers.read_qrels(find_collection(tmp_path), split="test")) == [Judgement("test", "q1", "d1", 1)]
    (tmp_path / "qrels" / "train.tsv").write_text("q1\td1\t1\n")
    assert list(find_collection(tmp_path).qrels) == ["train"]
    (tmp_path / "qrels" / "train.tsv").unlink()
    (tmp_path / "qrels" / "test.jsonl").unlink()
    put(tmp_path / "data" / "dev-00000-of-00001.parquet", LABELS)
    assert records(readers.read_qrels(find_collection(tmp_path), split="dev"))[0] == Judgement("dev", "q1", "d1", 1)


@pytest.mark.parametrize(
    ("qrels", "expected"),
    [
        ({"query-id": [1], "corpus-id": [2**63 - 1], "score": [1.0]}, ("1", str(2**63 - 1), 1)),
        ({"query-id": ["q"], "corpus-id": ["d"]}, ("q", "d", 1)),
        ({"query-id": ["q"], "corpus-id": ["d"], "score": [True]}, ("q", "d", 1)),
        ({"query-id": [" q "], "corpus-id": [b"d"], "score": ["-2"]}, ("q", "d", -2)),
        ({"qid": ["q"], "docid": ["d"], "relevance": pa.array([3], pa.uint8())}, ("q", "d", 3)),
        ({"query-id": pa.array(["q"]).dictionary_encode(), "corpus-id": pa.array(["d"], pa.large_string()), "score": [0]}, ("q", "d", 0)),
        ({"query-id": ["q"], "corpus-id": ["d"], "score": [0.5]}, "relevance is not an integer"),
        ({"query-id": ["q"], "corpus-id": ["d"], "score": [float("nan")]}, "relevance is not an integer"),
        ({"query-id": ["q"], "corpus-id": ["d"], "score": pa.array([None], pa.int64())}, "relevance is not an integer"),
        ({"query-id": ["q"], "corpus-id": ["d"], "score": [1 << 40]}, "relevance is not an integer"),
        ({"query-id": [1.0], "corpus-id": ["d"], "score": [1]}, "id is not a string"),
        ({"query-id": [True], "corpus-id": ["d"], "score": [1]}, "id is not a string"),
        ({"query-id": pa.array([None], pa.string()), "corpus-id": ["d"], "score": [1]}, "no id"),
        ({"query-id": ["  "], "corpus-id": ["d"], "score": [1]}, "empty id"),
        ({"query-id": [b"\xff"], "corpus-id": ["d"], "score": [1]}, "bad UTF-8"),
    ],
)
def test_types_of_judgements(tmp_path: Path, qrels: Any, expected: Any) -> None:
    """Prevents: ids that are numbers in one file and strings in the other, labels of odd types, and a guess where there is none."""
    [found] = records(readers.read_qrels(parquet(tmp_path, qrels=qrels), split="train"))
    if isinstance(expected, str):
        assert isinstance(found, Fault) and found[:3] == ("qrels/train.parquet", 1, expected)
    else:
        assert found == Judgement("train", *expected)


def test_text_that_is_no_utf8(tmp_path: Path) -> None:
    """Prevents: one bad byte in a column called `string` that ends the whole reading."""
    raw = pa.array([b"good", b"caf\xe9"], pa.binary())
    bad = pa.StringArray.from_buffers(2, *raw.buffers()[1:])
    good, fault = records(readers.read_corpus(parquet(tmp_path, corpus={"_id": ["d1", "d2"], "text": bad})))
    assert good == Passage("d1", "good") and fault[:3] == ("corpus.parquet", 2, "bad UTF-8")


def test_files_that_are_no_whole_parquet_are_told(tmp_path: Path) -> None:
    """Prevents: a traceback of the Parquet library, where a download was cut short or git-lfs left a pointer."""
    whole = (parquet(tmp_path).corpus[0]).read_bytes()
    path = tmp_path / "corpus.parquet"
    for content, words in (
        (whole[:-20], "cut short or damaged, fetch it again"), (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
        (b"", "is no Parquet file"), (b'{"_id": 1}\n', "is no Parquet file"),
    ):  # fmt: skip
        path.write_bytes(content)
        with pytest.raises(UserError, match=words):
            list(readers.read_corpus(find_collection(tmp_path)))
    flipped = bytearray(whole)
    flipped[whole.index(b"They bite")] ^= 1
    path.write_bytes(flipped)
    found = records(readers.read_corpus(find_collection(tmp_path)))  # written without checksums: nobody can see it
    assert len(found) == 2
    pq.write_table(pa.table(CORPUS), path, write_page_checksum=True, compression="none")
    flipped = bytearray(path.read_bytes())
    flipped[flipped.index(b"They bite")] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(UserError, match=r"corpus\.parquet is not a whole Parquet file"):
        list(readers.read_corpus(find_collection(tmp_path)))


@pytest.mark.parametrize(
    ("part", "columns", "words"),
    [
        ("corpus", {"_id": ["d"], "body": ["a"]}, r"corpus\.parquet has no column text; its columns are _id, body"),
        ("queries", {"text": ["d"]}, r"queries\.parquet has no column _id or id or .*; its columns are text"),
        ("qrels", {"query-id": ["q"], "score": [1]}, r"train\.parquet has no column corpus-id or"),
    ],
)
def test_missing_columns_are_told(tmp_path: Path, part: str, columns: Any, words: str) -> None:
    """Prevents: a fault for each of a million rows, where the file has other columns."""
    found = parquet(tmp_path, **{part: columns})
    with pytest.raises(UserError, match=words):
        list(readers.read_corpus(found)), list(readers.read_queries(found)), list(readers.read_qrels(found, split="train"))


def test_two_collections_in_a_folder_are_told(tmp_path: Path) -> None:
    """Prevents: a guess between JSONL and Parquet, and a corpus that is read twice."""
    parquet(tmp_path)
    (tmp_path / "corpus.jsonl").write_text("{}")
    with pytest.raises(UserError, match=r"ingest\.format=beir or ingest\.format=parquet"):
        find_collection(tmp_path)
    assert find_collection(tmp_path, format="parquet").format == "parquet"
    put(tmp_path / "corpus/0000.parquet", CORPUS)
    with pytest.raises(UserError, match=r"corpus\.parquet and corpus/0000\.parquet, which are both its corpus"):
        find_collection(tmp_path, format="parquet")


@pytest.mark.parametrize("gone", ["queries.parquet", "qrels/train.parquet"])
def test_missing_parts_are_told(tmp_path: Path, gone: str) -> None:
    """Prevents: a folder that lacks a part, without a word of what is looked for."""
    parquet(tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(UserError, match=r"looked for (queries\.parquet|judgements: qrels/<split>\.parquet)"):
        find_collection(tmp_path)


@pytest.mark.medium
def test_one_large_row_group_is_streamed(tmp_path: Path) -> None:
    """Prevents: a corpus written as one row group, as many tools do, that lies in memory whole."""
    count = 40_000
    corpus = {"_id": [f"d{number}" for number in range(count)], "text": ["fleas jump " * 40 + str(number) for number in range(count)]}
    size = sum(map(len, corpus["text"]))
    found = parquet(tmp_path)
    put(tmp_path / "corpus.parquet", corpus, row_group_size=count, compression="none")
    del corpus
    before, peak = pa.total_allocated_bytes(), 0
    tracemalloc.start()
    for place, _ in readers.read_corpus(found):
        if place.number % 5_000 == 0:
            peak = max(peak, pa.total_allocated_bytes() - before + tracemalloc.get_traced_memory()[1])
    tracemalloc.stop()
    assert peak < size / 2


def test_qrels_of_an_evaluation(tmp_path: Path) -> None:
    """Prevents: `retrieve evaluate qrels=test.parquet` that reads bytes as lines; broken rows that pass silently."""
    path = put(tmp_path / "labels", LABELS)  # by its bytes, not its name
    assert read_qrels(path, split="test") == {"q1": {"d1": 1}, "q2": {"d2": 1}}
    text = tmp_path / "text"
    text.write_text("PAR100 d1 1\nq2 d2 1\n")
    assert read_qrels(text, split="test") == {"PAR100": {"d1": 1}, "q2": {"d2": 1}}
    put(path, {**LABELS, "score": [1, None]})
    with pytest.raises(UserError, match=r"labels:2: relevance is not an integer"):
        read_qrels(path, split="test")


TEXT = st.one_of(st.none(), st.text(st.characters(exclude_categories=["Cs"]), max_size=8), st.sampled_from([" ", "⟦MASK⟧", "\ta\n"]))
ROWS = st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(rows=ROWS)
def test_a_row_is_read_as_a_line_of_json_is(rows: list[tuple[str | None, str | None, str | None]], tmp_path_factory: Any) -> None:
    """Prevents: a collection that loses, keeps, strips or joins other records as Parquet than as JSONL."""
    folder = tmp_path_factory.mktemp("both")
    names = ("_id", "title", "text")
    as_lines = "".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows)
    (folder / "lines" / "qrels").mkdir(parents=True)
    (folder / "lines" / "corpus.jsonl").write_text(as_lines)
    (folder / "lines" / "queries.jsonl").write_text(as_lines)
    (folder / "lines" / "qrels" / "train.tsv").write_text("q\td\t1\n")
    table = {name: pa.array(list(column), pa.string()) for name, column in zip(names, zip(*rows, strict=True), strict=True)}
    ours, theirs = parquet(folder / "rows", corpus=table, queries=table), find_collection(folder / "lines")

    def read(found: Collection) -> list[Any]:
        everything = [*readers.read_corpus(found), *readers.read_queries(found)]
        return [(place.number, record[1:3] if isinstance(record, Fault) else record) for place, record in everything]

    assert read(ours) == read(theirs)
