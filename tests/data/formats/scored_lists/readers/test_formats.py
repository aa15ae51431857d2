"""Which layout a file has, by itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.read_lists import jsonl, parquet, saved

from data.errors import UserError
from data.formats.scored_lists.batches import ReadOptions
from data.formats.scored_lists.readers.formats import FORMATS, reader_of

PASSAGES = [{"docid": "1", "text": "t"}]
RECORDS: list[tuple[str, dict[str, Any]]] = [
    ("sentence-transformers", {"anchor": "q", "positive": "p", "negative": "n"}),
    ("sentence-transformers", {"query": "q", "positive": "p", "negative_1": "n", "scores": [1.0, 2.0]}),
    ("sentence-transformers", {"query": "q", "docs": ["a"], "scores": [1.0]}),
    ("sentence-transformers", {"query": "q", "document": "a", "label": 1.5}),
    ("sentence-transformers", {"query_id": "q", "doc_ids": ["a"], "labels": [1]}),
    ("msmarco-hard-negatives", {"qid": 1, "pos": [2], "neg": {"bm25": [3]}}),
    ("flagembedding", {"query": "q", "pos": ["p"], "neg": ["n"]}),
    ("flagembedding", {"query": "q", "pos": ["p"], "neg": ["n"], "pos_scores": [1.0], "neg_scores": [0.5], "query_id": "1"}),
    ("tevatron", {"query_id": "1", "query": "q", "positive_passages": PASSAGES, "negative_passages": PASSAGES}),
    ("tevatron", {"query_id": "1", "query_text": "q", "positive_document_ids": ["1"], "negative_document_ids": ["2"]}),
    ("pylate", {"query_id": 1, "document_ids": [2], "scores": [0.5]}),
    ("pylate", {"query_id": 1, "document_ids": "[2]", "scores": "[0.5]", "positive_ids": [2]}),
]


@pytest.mark.parametrize("name, record", RECORDS)
@pytest.mark.parametrize(
    "write",
    [
        lambda folder, record: jsonl(folder / "x.jsonl", [record]),
        lambda folder, record: parquet(folder / "data" / "train-00000-of-00001.parquet", [record]).parents[1],
        lambda folder, record: saved(folder / "saved", [record]),
    ],
)
def test_tables(tmp_path: Path, name: str, record: dict[str, Any], write: Callable[[Path, dict[str, Any]], Path]) -> None:
    """Prevents: a layout that is not known by itself, or that two readers claim."""
    assert reader_of("auto", write(tmp_path, record)) is FORMATS[name]


def test_names(tmp_path: Path) -> None:
    """Prevents: a registry whose names are not those of its readers, and a slip that is answered by a traceback."""
    assert {name: reader.name for name, reader in FORMATS.items()} == {name: name for name in FORMATS}
    assert list(FORMATS) == [
        "sentence-transformers",
        "msmarco-hard-negatives",
        "flagembedding",
        "tevatron",
        "pylate",
        "trec",
        "tsv",
        "lists",
    ]
    assert reader_of("tevatron", tmp_path) is FORMATS["tevatron"]
    with pytest.raises(UserError, match=r"format=sentence_transformers: there are auto, .*nearest: sentence-transformers"):
        reader_of("sentence_transformers", tmp_path)


def test_what_is_told_of_unknown_files(tmp_path: Path) -> None:
    """Prevents: a guess, or an error that does not say what was found."""
    with pytest.raises(UserError, match="its fields are frage, antwort; give format=NAME and columns="):
        reader_of("auto", jsonl(tmp_path / "x.jsonl", [{"frage": "q", "antwort": "a"}]))
    with pytest.raises(UserError, match="no such file or folder"):
        reader_of("auto", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    (tmp_path / "qrels.tsv").write_text("1 0 7 1\n")
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=r"broken.parquet is not a whole Parquet file .*: fetch it again"):
        reader_of("auto", tmp_path / "broken.parquet")
    (tmp_path / "array.json").write_text('[{"query": "q", "pos": ["p"]}]')
    with pytest.raises(UserError, match=r"array.json is a JSON array; expected an object a line"):
        reader_of("auto", tmp_path / "array.json")
    (tmp_path / "blank.jsonl").write_text("\n\n")
    for name, found in (("empty", "an empty folder"), ("qrels.tsv", "TREC qrels"), ("blank.jsonl", "an empty file")):
        with pytest.raises(UserError, match=f"it is {found}; expected one of sentence-transformers"):
            reader_of("auto", tmp_path / name)
    both = jsonl(tmp_path / "both.jsonl", [{"query": "q", "pos": ["p"], "positive": "p", "negative": "n"}])
    with pytest.raises(UserError, match="may be sentence-transformers or flagembedding: say which"):
        reader_of("auto", both)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "msmarco-hard-negatives"])
def test_scores_of_their_own(tmp_path: Path, name: str) -> None:
    """Prevents: a file of scores that is given and passed over."""
    with pytest.raises(UserError, match=f"score_file=.*format {name} has its scores in the lists"):
        next(FORMATS[name].read(tmp_path, ReadOptions(score_file=tmp_path / "s.pkl")))


def test_labels_of_a_collection_are_no_scores(tmp_path: Path) -> None:
    """Prevents: the 1 of a judgement imported as a teacher's score, and a collection asked for where one was given."""
    labels = {"query-id": "q", "corpus-id": "d", "score": 1}
    (tmp_path / "train.tsv").write_text("query-id\tcorpus-id\tscore\nq\td\t1\n")
    parquet(tmp_path / "hub" / "default" / "test-00000-of-00001.parquet", [labels])
    (tmp_path / "beir").mkdir()
    jsonl(tmp_path / "beir" / "corpus.jsonl", [{"_id": "d", "title": "", "text": "a"}])
    jsonl(tmp_path / "beir" / "queries.jsonl", [{"_id": "q", "text": "who"}])
    for path in (tmp_path / "train.tsv", tmp_path / "hub", tmp_path / "beir", jsonl(tmp_path / "train.jsonl", [labels])):
        with pytest.raises(UserError, match=r"is a collection, or its labels.*: ingest.path=FOLDER reads"):
            reader_of("auto", path)
    assert reader_of("tsv", tmp_path / "train.tsv") is FORMATS["tsv"]
