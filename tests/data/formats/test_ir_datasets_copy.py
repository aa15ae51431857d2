"""`irds:ID`: which rows become the BEIR folder, whole or not at all, and what is refused before anything is copied."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.data_sets import DataSet, Query, registered

from data.errors import RunFailed, UserError
from data.formats import readers
from data.formats.collection import find_collection
from data.formats.ir_datasets_copy import local_copy

SPLITS: dict[str, str | None] = {"toy": None, "toy/train": "train", "toy/dev/small": "dev", "other/test": "test"}


class Titled(NamedTuple):
    """A passage as ir_datasets has those of BEIR."""

    doc_id: str
    text: str
    title: str

    def default_text(self) -> str:
        return f"{self.title} {self.text}"


class Document(NamedTuple):
    """One whose text has other names."""

    doc_id: str
    body: str

    def default_text(self) -> str:
        return self.body


@pytest.fixture
def data_sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, DataSet]:
    folder = tmp_path / "source"
    (folder / "qrels").mkdir(parents=True)
    (folder / "corpus.jsonl").write_text('{"_id": "d1", "text": "a"}\n{"_id": "d2", "text": "b"}\n')
    (folder / "queries.jsonl").write_text('{"_id": "q1", "text": "x"}\n{"_id": "q2", "text": "y"}\n')
    for split in ("train", "dev", "test"):
        (folder / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\nq1\td1\t2\n")
    monkeypatch.setenv("ADAM_REMOTE_CACHE", str(tmp_path / "cache"))
    return registered(monkeypatch, SPLITS, folder)


def records(found: Any) -> list[Any]:
    return [record for _, record in found]


def test_passages_queries_and_splits(data_sets: dict[str, DataSet], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a title that is lost or stands twice, a query counted once a split, `dev/small` and `train` under one name."""
    monkeypatch.setattr(
        data_sets["toy/train"], "docs_iter", lambda: iter([Titled("d1", "jump ", "Fleas"), Document("d2", "They\tbite\n.")])
    )
    found = find_collection("irds:toy/train+toy/dev/small")
    assert (found.format, list(found.qrels)) == ("beir", ["dev.small", "train"])
    assert records(readers.read_corpus(found)) == [("d1", "Fleas jump"), ("d2", "They\tbite\n.")]
    assert records(readers.read_queries(found)) == [("q1", "x"), ("q2", "y")]
    assert records(readers.read_qrels(found, split="dev.small")) == [("dev.small", "q1", "d1", 2)]
    assert find_collection("irds:toy/train,irds:toy/dev/small").folder == found.folder
    assert list(find_collection("irds:other/test").qrels) == ["test"]


def test_a_copy_is_used_again(data_sets: dict[str, DataSet], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: 8.8 M passages written by every plan; a copy of an older ir_datasets taken for one of this."""
    first = local_copy("irds:toy/train")
    monkeypatch.setattr(sys.modules["ir_datasets"], "load", None)
    assert local_copy("irds:toy/train") == first
    monkeypatch.setattr(sys.modules["ir_datasets"], "load", data_sets.__getitem__)
    monkeypatch.setattr(sys.modules["ir_datasets"], "__version__", "0.7")
    assert local_copy("irds:toy/train") != first


def test_a_copy_is_whole_or_not_there(data_sets: dict[str, DataSet], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Prevents: half a corpus after a broken download, which the next command takes for all of it."""

    def broken() -> Any:
        yield Titled("d1", "a", "b")
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(data_sets["toy/train"], "docs_iter", broken)
    with pytest.raises(RunFailed, match=r"irds:toy/train: ir_datasets could not read it \(ConnectionError: no route to host\)"):
        local_copy("irds:toy/train")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() or path.suffix == ".tmp"]


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("irds:", "expected irds:ID"),
        ("irds:toy/train+", "expected irds:ID"),
        ("irds:toy/train+toy/train", "different ids joined by +"),
        ("irds:toy/nope", "has no data set of this id; it has toy, toy/train, toy/dev/small"),
        ("irds:nope", "https://ir-datasets.com lists"),
        ("irds:toy", "has no queries and no qrels; those that have all are toy/train, toy/dev/small"),
        ("irds:toy/train+other/test", r"several corpora \(toy/train of toy, other/test of other\)"),
    ],
)
def test_what_is_no_data_set_is_told(data_sets: dict[str, DataSet], path: str, words: str, tmp_path: Path) -> None:
    """Prevents: a KeyError for a misspelt id; passages of two corpora in one; hours of copying before either."""
    with pytest.raises(UserError, match=words.replace("+", r"\+")):
        find_collection(path)
    assert not (tmp_path / "cache").exists()


def test_one_query_with_two_texts_is_told(data_sets: dict[str, DataSet], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: the texts of one split under the judgements of another, where ids begin anew."""
    monkeypatch.setattr(data_sets["toy/dev/small"], "queries_iter", lambda: iter([Query("q1", "another")]))
    with pytest.raises(UserError, match=r"query q1 of split dev\.small has another text"):
        local_copy("irds:toy/train+toy/dev/small")


def test_another_layout_cannot_be_asked_for(data_sets: dict[str, DataSet]) -> None:
    """Prevents: `ingest.format=msmarco` that is passed over without a word."""
    with pytest.raises(UserError, match=r"ingest\.format=msmarco: irds:toy/train is read by ir_datasets"):
        find_collection("irds:toy/train", format="msmarco")


def test_the_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an ImportError where the extra is not installed."""
    monkeypatch.setitem(sys.modules, "ir_datasets", None)
    with pytest.raises(UserError, match=r"needs the package ir_datasets, .*\[irds\]"):
        local_copy("irds:toy/train")


def test_the_package_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Prevents: a stand-in that has other names than ir_datasets has: here its own registry, TSV and TREC readers are at work."""
    monkeypatch.setenv("IR_DATASETS_HOME", str(tmp_path / "home"))
    ir_datasets: Any = pytest.importorskip("ir_datasets")
    (tmp_path / "docs.tsv").write_text("d1\tThey jump.\nd2\tThey bite.\n")
    (tmp_path / "queries.tsv").write_text("1\tdo fleas jump\n")
    (tmp_path / "qrels").write_text("1 0 d1 1\n1 0 d2 0\n")
    data_set = ir_datasets.create_dataset(
        docs_tsv=str(tmp_path / "docs.tsv"), queries_tsv=str(tmp_path / "queries.tsv"), qrels_trec=str(tmp_path / "qrels")
    )
    ir_datasets.registry.register("toy-of-a-test/train", data_set)
    monkeypatch.setenv("ADAM_REMOTE_CACHE", str(tmp_path / "cache"))
    try:
        found = find_collection("irds:toy-of-a-test/train")
    finally:
        del ir_datasets.registry._registered["toy-of-a-test/train"]
    assert records(readers.read_corpus(found)) == [("d1", "They jump."), ("d2", "They bite.")]
    assert records(readers.read_queries(found)) == [("1", "do fleas jump")]
    assert records(readers.read_qrels(found, split="train")) == [("train", "1", "d1", 1), ("train", "1", "d2", 0)]
    with pytest.raises(UserError, match=r"irds:beir/nope: ir_datasets has no data set of this id; it has .*beir"):
        find_collection("irds:beir/nope")
    with pytest.raises(UserError, match=r"irds:msmarco-passage has no queries and no qrels; those that have all are .*msmarco-passage/dev"):
        find_collection("irds:msmarco-passage")
