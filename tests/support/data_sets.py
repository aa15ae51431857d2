"""A stand-in for the package ir_datasets with data sets of its own, made from a BEIR folder: nothing is downloaded."""

from __future__ import annotations

import json
import sys
import types
from collections import namedtuple
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

Doc = namedtuple("Doc", ["doc_id", "text"])
Query = namedtuple("Query", ["query_id", "text"])
Qrel = namedtuple("Qrel", ["query_id", "doc_id", "relevance", "iteration"])


class DataSet:
    """What is asked of a data set, with the names that ir_datasets has for it. Without a split it has passages alone."""

    def __init__(self, folder: Path, split: str | None) -> None:
        self._folder, self._split = folder, split

    def has_docs(self) -> bool:
        return True

    def has_queries(self) -> bool:
        return self._split is not None

    has_qrels = has_queries

    def docs_iter(self) -> Iterator[Any]:
        yield from (Doc(record["_id"], record["text"]) for record in self._records("corpus"))

    def queries_iter(self) -> Iterator[Any]:
        yield from (Query(record["_id"], record["text"]) for record in self._records("queries"))

    def qrels_iter(self) -> Iterator[Any]:
        for line in (self._folder / "qrels" / f"{self._split}.tsv").read_text().splitlines()[1:]:
            query_id, doc_id, label = line.split("\t")
            yield Qrel(query_id, doc_id, int(label), "0")

    def _records(self, part: str) -> Iterator[dict[str, str]]:
        yield from map(json.loads, (self._folder / f"{part}.jsonl").read_text().splitlines())


def registered(monkeypatch: pytest.MonkeyPatch, splits: Mapping[str, str | None], folder: Path) -> dict[str, DataSet]:
    """Put the stand-in in the package's place: an id for each split of the folder. Returns the data sets, to be changed."""
    package: Any = types.ModuleType("ir_datasets")
    package.registry = {name: DataSet(folder, split) for name, split in splits.items()}
    package.load = package.registry.__getitem__
    package.docs_parent_id = lambda name: name.split("/")[0]
    package.__version__ = "0.6"
    monkeypatch.setitem(sys.modules, "ir_datasets", package)
    registry: dict[str, DataSet] = package.registry
    return registry
