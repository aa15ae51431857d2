"""Ingest: where records go, what is dropped and why, and that the same input gives the same bytes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config.settings import Ingest
from data.digests import text_hash
from data.errors import UserError
from data.formats.collection import Collection, find_collection
from data.formats.record_counts import RecordCounts
from data.tables import shards as data_shards
from data.tables.schemas import CORPUS, QRELS, QUARANTINE, QUERIES
from data.tables.shards import open_shard, read_shard, shard_name
from pipeline.stages import ingest
from pipeline.stages.ingest import check_bad_fraction, ingest_corpus, ingest_qrels, ingest_queries


class Rows:
    """A sink that keeps the rows."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema, self.rows = schema, list[tuple[Any, ...]]()

    def add(self, row: Sequence[Any]) -> None:
        self.rows.append(tuple(row))

    def column(self, name: str) -> list[Any]:
        return [row[self.schema.names.index(name)] for row in self.rows]


def options(folder: Path, **values: Any) -> Ingest:
    return Ingest(**{"path": str(folder), "corpus_shards": 4, "query_shards": 3, **values})


def jsonl(records: Sequence[tuple[str, str]]) -> str:
    return "".join(json.dumps({"_id": identifier, "text": text}) + "\n" for identifier, text in records)


PASSAGES = [(f"d{i}", f"passage {i}") for i in range(40)]
ASKED = [(f"q{i}", f"question {i % 20}") for i in range(30)]
JUDGED = [(f"q{i}", f"d{i}", i % 2) for i in range(30)]


def collection_in(
    folder: Path,
    *,
    corpus: Sequence[tuple[str, str]] = PASSAGES,
    queries: Sequence[tuple[str, str]] = ASKED,
    **qrels: Sequence[tuple[str, str, int]],
) -> Collection:
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    (folder / "corpus.jsonl").write_text(jsonl(corpus))
    (folder / "queries.jsonl").write_text(jsonl(queries))
    for split, judgements in (qrels or {"train": JUDGED}).items():
        lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, judgement)) for judgement in judgements)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return find_collection(folder)


def corpus_rows(collection: Collection, **values: Any) -> tuple[RecordCounts, list[Rows]]:
    section = options(collection.folder, **values)
    sinks = [Rows(CORPUS) for _ in range(section.corpus_shards)]
    return ingest_corpus(collection, sinks), sinks


def query_rows(collection: Collection, **values: Any) -> tuple[RecordCounts, list[Rows]]:
    section = options(collection.folder, **values)
    sinks = [Rows(QUERIES) for _ in range(section.query_shards)]
    return ingest_queries(collection, sinks), sinks


def write_shards(
    ingest_table: Callable[..., RecordCounts],
    collection: Collection,
    folder: Path,
    *,
    schema: pa.Schema,
    count: int,
    only: int | None = None,
) -> tuple[RecordCounts, list[Path]]:
    """The real shards of a table, or just one of them."""
    paths = [folder / shard_name(index, count) for index in range(count)]
    with contextlib.ExitStack() as stack:
        sinks = [
            stack.enter_context(open_shard(path, schema, {})) if only is None or index == only else None for index, path in enumerate(paths)
        ]
        report = ingest_table(collection, sinks)
    return report, paths


def qrels_rows(collection: Collection, store: Path, **values: Any) -> tuple[RecordCounts, Rows]:
    _, corpus = write_shards(ingest_corpus, collection, store / "corpus", schema=CORPUS, count=4)
    _, queries = write_shards(ingest_queries, collection, store / "queries", schema=QUERIES, count=3)
    sink = Rows(QRELS)
    section = options(collection.folder, **values)
    return ingest_qrels(collection, [sink], settings=section, corpus=corpus, queries=queries), sink


def reasons(report: RecordCounts) -> list[tuple[str, int, str]]:
    return [(row["file"], row["line"], row["reason"]) for row in report.faults.to_pylist()]


def test_corpus(tmp_path: Path) -> None:
    """A passage lost between reader and shard is never retrieved, and nobody notices."""
    report, sinks = corpus_rows(collection_in(tmp_path))
    assert report.counts == {"in": 40, "kept": 40, "dropped": {}}
    assert report.faults.schema == QUARANTINE
    rows = [row for sink in sinks for row in zip(sink.column("doc_id"), sink.column("text"), sink.column("text_hash"), strict=True)]
    assert sorted(rows) == sorted((doc_id, text, text_hash(text)) for doc_id, text in PASSAGES)


def test_file_order_within_a_shard(tmp_path: Path) -> None:
    """Embeddings are stored in the row order of their shard: an order that varied would give passages each other's vectors."""
    _, sinks = corpus_rows(collection_in(tmp_path))
    order = {doc_id: place for place, (doc_id, _) in enumerate(PASSAGES)}
    for sink in sinks:
        places = [order[doc_id] for doc_id in sink.column("doc_id")]
        assert places == sorted(places)


def test_duplicate_ids(tmp_path: Path) -> None:
    """Two texts under one id: which one a positive means would depend on who reads last."""
    report, sinks = corpus_rows(collection_in(tmp_path, corpus=[("a", "first"), ("b", "x"), ("a", "second"), ("a", "third")]))
    assert report.counts == {"in": 4, "kept": 2, "dropped": {"duplicate id": 2}}
    assert reasons(report) == [("corpus.jsonl", 3, "duplicate id"), ("corpus.jsonl", 4, "duplicate id")]
    assert "first" in [text for sink in sinks for text in sink.column("text")]


@settings(max_examples=30)
@given(
    passages=st.dictionaries(st.text("abcd", min_size=1), st.text("xyz", min_size=1), min_size=1), shuffle=st.randoms(use_true_random=False)
)
def test_shards_independent_of_order(tmp_path_factory: pytest.TempPathFactory, passages: dict[str, str], shuffle: Any) -> None:
    """A shard that depended on the place in the file would go stale as a whole when one line is added."""
    folder = tmp_path_factory.getbasetemp() / "order"
    forward = list(passages.items())
    mixed = [*forward, ("one more", "passage")]
    shuffle.shuffle(mixed)
    shards = []
    for corpus in (forward, mixed):
        _, sinks = corpus_rows(collection_in(folder, corpus=corpus))
        shards.append({doc_id: index for index, sink in enumerate(sinks) for doc_id in sink.column("doc_id")})
    assert shards[0] == {doc_id: shards[1][doc_id] for doc_id in passages}


@pytest.mark.parametrize(("ingest_table", "schema", "count"), [(ingest_corpus, CORPUS, 4), (ingest_queries, QUERIES, 3)])
def test_one_shard_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ingest_table: Callable[..., RecordCounts], schema: pa.Schema, count: int
) -> None:
    """A deleted shard, built anew, must be the old file: else all that was made from it is silently another experiment's."""
    monkeypatch.setattr(data_shards, "BLOCK_ROWS", 3)
    collection = collection_in(tmp_path / "c", corpus=[*PASSAGES, ("d3", "again"), ("", "no id")])
    report, all_paths = write_shards(ingest_table, collection, tmp_path / "all", schema=schema, count=count)
    for index in range(count):
        again, paths = write_shards(ingest_table, collection, tmp_path / f"only{index}", schema=schema, count=count, only=index)
        assert [path.exists() for path in paths] == [other == index for other in range(count)]
        assert paths[index].read_bytes() == all_paths[index].read_bytes()
        assert again.counts == report.counts
        assert again.faults.equals(report.faults)


@pytest.mark.parametrize("rows", [1, 7, 1024])
def test_blocks_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    """Rows of a last, unfilled block are the ones that get lost."""
    monkeypatch.setattr(data_shards, "BLOCK_ROWS", rows)
    _, paths = write_shards(ingest_corpus, collection_in(tmp_path / "c"), tmp_path / "s", schema=CORPUS, count=2)
    assert sorted(name for path in paths for name in read_shard(path).column("doc_id").to_pylist()) == sorted(name for name, _ in PASSAGES)


def test_queries(tmp_path: Path) -> None:
    """Unjudged queries are no faults, and are counted: MS MARCO has 300,000 of them."""
    collection = collection_in(tmp_path, queries=[*ASKED, ("u1", "x"), ("u2", "y")], train=JUDGED[:20], test=JUDGED[20:])
    report, sinks = query_rows(collection)
    assert report.counts == {"in": 32, "kept": 30, "dropped": {"unjudged": 2}}
    assert report.bad == report.faults.num_rows == 0
    assert sorted(identifier for sink in sinks for identifier in sink.column("query_id")) == sorted(identifier for identifier, _ in ASKED)


def test_equal_query_texts_share_a_shard(tmp_path: Path) -> None:
    """Equal texts in two shards: two workers would both pay the teacher for the same pairs."""
    _, sinks = query_rows(collection_in(tmp_path))
    texts = [set(sink.column("text")) for sink in sinks]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 20


def test_duplicate_queries(tmp_path: Path) -> None:
    """One id with two texts is broken; which text is meant cannot be known."""
    collection = collection_in(tmp_path, queries=[("q1", "a"), ("q1", "b"), ("q2", "a"), ("q2", "a")])
    report, _ = query_rows(collection)
    assert report.counts == {"in": 4, "kept": 2, "dropped": {"duplicate id": 2}}
    assert reasons(report) == [("queries.jsonl", 2, "duplicate id"), ("queries.jsonl", 4, "duplicate id")]


def test_queries_repeated_in_another_file(tmp_path: Path) -> None:
    """MS MARCO lists its small dev set twice: as faults these would stop the ingest of the standard collection."""
    files = {"collection.tsv": "7\ta\n", "queries.dev.tsv": "1\tx\n2\ty\n", "queries.dev.small.tsv": "1\tx\n2\tz\n"}
    for name, content in {**files, "qrels.dev.tsv": "1 0 7 1\n2 0 7 1\n"}.items():
        (tmp_path / name).write_text(content)
    report, _ = query_rows(find_collection(tmp_path))
    assert report.counts == {"in": 4, "kept": 2, "dropped": {"duplicate id": 1, "repeated in another file": 1}}
    assert reasons(report) == [("queries.dev.tsv", 2, "duplicate id")]


def test_qrels(tmp_path: Path) -> None:
    """Unknown ids, found hours later, fail a join or drop positives; relevance 0 is a judgement that evaluation needs."""
    train = [("q2", "d1", 0), ("q1", "d9", 1), ("q1", "d10", 2), ("nobody", "d1", 1), ("q1", "nothing", 1), ("q1", "d9", 0)]
    report, sink = qrels_rows(collection_in(tmp_path / "c", train=train, dev=[("q3", "d1", 1), ("q1", "d9", 1)]), tmp_path / "store")
    assert sink.rows == [
        ("dev", "q1", "d9", 1),
        ("dev", "q3", "d1", 1),
        ("train", "q1", "d10", 2),
        ("train", "q1", "d9", 1),
        ("train", "q2", "d1", 0),
    ]
    assert report.counts["in"] == 8
    assert reasons(report) == [
        ("qrels/train.tsv", 5, "unknown query id"),
        ("qrels/train.tsv", 6, "unknown doc id"),
        ("qrels/train.tsv", 7, "duplicate judgement"),
    ]


def test_qrels_without_sink(tmp_path: Path) -> None:
    """The report must not depend on which shards were there already."""
    collection = collection_in(tmp_path / "c", train=[*JUDGED, ("q1", "nothing", 1)])
    report, _ = qrels_rows(collection, tmp_path / "store")
    shards = {name: sorted((tmp_path / "store" / name).iterdir()) for name in ("corpus", "queries")}
    again = ingest_qrels(collection, [None], settings=options(collection.folder), **shards)
    assert again.counts == report.counts
    assert again.faults.equals(report.faults)


def test_qrels_of_another_collection(tmp_path: Path) -> None:
    """Qrels that match nothing would leave a split without judgements, and its metric a mean over no query."""
    collection = collection_in(tmp_path / "c", train=JUDGED, test=[("q1", "other1", 1), ("q2", "other2", 1)])
    with pytest.raises(UserError, match=r"qrels/test\.tsv has no judgement of a known query and a known passage.*2 unknown doc id"):
        qrels_rows(collection, tmp_path / "store")


def test_no_train_split(tmp_path: Path) -> None:
    """A misspelt split must be named before hours of work, with the splits that are there."""
    collection = collection_in(tmp_path / "c", dev=JUDGED, test=JUDGED)
    with pytest.raises(UserError, match=r"split 'train' \(ingest\.train_split\); splits found: dev, test"):
        qrels_rows(collection, tmp_path / "store")
    report, _ = qrels_rows(collection, tmp_path / "store", train_split="dev")
    assert report.counts["kept"] == 60


def test_empty_tables(tmp_path: Path) -> None:
    """An empty file would otherwise become an empty, complete table."""
    with pytest.raises(UserError, match=r"corpus\.jsonl holds no record"):
        corpus_rows(collection_in(tmp_path, corpus=[]))
    with pytest.raises(UserError, match=r"none of the 30 queries .* is judged"):
        query_rows(collection_in(tmp_path, train=[("stranger", "d1", 1)]))


@pytest.mark.parametrize(("allowed", "fails"), [(0.0, True), (0.19, True), (0.2, False), (1.0, False)])
def test_bad_fraction(tmp_path: Path, allowed: float, fails: bool) -> None:
    """Thousands of broken records must stop the run, with enough to find them and the option that lets them pass."""
    collection = collection_in(tmp_path, corpus=[*PASSAGES, *[("d1", "again")] * 10])
    report, _ = corpus_rows(collection)
    section = options(tmp_path, max_bad_fraction=allowed)
    if not fails:
        check_bad_fraction(report, settings=section, quarantine=tmp_path)
        return
    with pytest.raises(UserError) as error:
        check_bad_fraction(report, settings=section, quarantine=tmp_path / "quarantine")
    message = str(error.value)
    assert "10 of 50 records are broken, 20.00% " in message
    assert "10 duplicate id" in message
    assert [f"  corpus.jsonl:{line}: duplicate id" for line in range(41, 51)] == message.splitlines()[1:11]
    assert "ingest.max_bad_fraction" in message and str(tmp_path / "quarantine") in message


def test_unjudged_is_not_bad(tmp_path: Path) -> None:
    """Unjudged queries counted as broken would stop every ingest of MS MARCO."""
    report, _ = query_rows(collection_in(tmp_path, queries=[*ASKED, *((f"u{i}", "x") for i in range(100))]))
    check_bad_fraction(report, settings=options(tmp_path, max_bad_fraction=0.0), quarantine=tmp_path)


def test_quarantine_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading the wrong file must not fill the memory with faults, and the counts must stay true."""
    monkeypatch.setattr("data.formats.record_counts.MAX_QUARANTINED", 3)
    report, _ = corpus_rows(collection_in(tmp_path, corpus=[*PASSAGES, *[("d1", "again")] * 10]))
    assert (report.faults.num_rows, report.bad, report.counts["dropped"]) == (3, 10, {"duplicate id": 10})


def files_in(folder: Path, *, qrels: dict[str, str]) -> Collection:
    collection = collection_in(folder)
    for split, content in qrels.items():
        (folder / "qrels" / f"{split}.tsv").write_text(content)
    return find_collection(folder) if qrels else collection


@pytest.mark.parametrize("separator", [" ", "\t"])
def test_trec_qrels_in_a_beir_folder(tmp_path: Path, separator: str) -> None:
    """Prevents: a split of TREC's four columns that no reader of BEIR folders takes, though the others do."""
    content = "".join(separator.join((query, "0", doc, str(label))) + "\n" for query, doc, label in JUDGED)
    report, sink = qrels_rows(files_in(tmp_path / "c", qrels={"train": content}), tmp_path / "store")
    assert report.counts == {"in": 30, "kept": 30, "dropped": {}}
    assert sum(sink.column("relevance")) == 15


@pytest.mark.parametrize(
    ("qrels", "words"),
    [
        ({"train": "q1,d1,1\nq2,d2,1\n"}, r"train\.tsv holds no judgement.*2 too few columns.*train\.tsv:1: .*found 'q1,d1,1'"),
        ({"train": "q1\td1\t0.5\n"}, r"train\.tsv:1: relevance is not an integer: expected .*found 'q1\\td1\\t0.5'"),
        ({"train": ""}, r"train\.tsv holds no judgement: it is empty, or a header alone"),
        ({"dev": "query-id\tcorpus-id\tscore\n"}, r"dev\.tsv holds no judgement: it is empty, or a header alone"),
        ({"dev": '{"q1": {"d1": 1}}\n'}, r"dev\.tsv holds no judgement.*dev\.tsv:1: .*found '{\"q1\""),
        (
            {"train": "q1\td1\t0\nq2\td1\t-1\nbad\n"},
            r"train\.tsv has no label above 0 among its 2 judgements: .*\(ingest\.train_split\) .*tsv:3: too few",
        ),
    ],
)
def test_qrels_that_say_nothing_are_told_before_the_corpus_is_read(tmp_path: Path, qrels: dict[str, str], words: str) -> None:
    """Prevents: 'do they belong together?' for lines of another form, or labels of 0 that show after the corpus is embedded."""
    collection = files_in(tmp_path, qrels=qrels)
    with pytest.raises(UserError, match=f"(?s){words}"):
        ingest.check_splits(collection, settings=options(tmp_path))


def test_a_judgement_that_stands_twice(tmp_path: Path) -> None:
    """Prevents: a run that stops for a line that says the same again, or that trains on one of two labels without a word."""
    train = [*JUDGED, ("q1", "d1", 1), ("q3", "d3", 0)]
    report, _ = qrels_rows(collection_in(tmp_path / "c", train=train), tmp_path / "store")
    assert report.counts["dropped"] == {"duplicate judgement": 2}
    assert report.bad == 1 and report.said.splitlines()[1:] == ["  qrels/train.tsv:33: duplicate judgement: labelled 1 in line 5, 0 here"]


def test_strange_ids_are_shown(tmp_path: Path) -> None:
    """Prevents: ids in quotes, or numbers written as floats, that look alike in every message."""
    with pytest.raises(UserError, match=r"Ids of queries are 'q0', 'q1', 'q2', of judgements '\"q1\"'"):
        query_rows(collection_in(tmp_path / "a", train=[('"q1"', "d1", 1)]))
    with pytest.raises(UserError, match=r"train\.tsv:2: unknown doc id: no passage is called '1\.0'"):
        qrels_rows(collection_in(tmp_path / "b", train=[("q1", "1.0", 1)]), tmp_path / "store")


def test_a_training_split_whose_positives_are_all_unknown(tmp_path: Path) -> None:
    """Prevents: a corpus embedded for pools that have no row."""
    with pytest.raises(UserError, match=r"no label above 0 of split 'train'.* is usable: 1 unknown doc id"):
        qrels_rows(collection_in(tmp_path / "c", train=[("q1", "none", 1), ("q2", "d1", 0)]), tmp_path / "store")
