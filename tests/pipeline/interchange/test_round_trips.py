"""What is exported is imported again: the same logits, lists, kinds and order, in every format as far as it holds them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import Finished

from data.config.arguments import Args
from data.config.experiment_file import read_yaml
from data.config.settings import load
from data.digests import pair_key
from data.formats.trec import read_entries
from data.logits.declared import DeclaredTeacher
from data.logits.segment import as_keys
from data.logits.store import LogitStore
from pipeline.interchange.exporting import OPTIONS, run_export
from pipeline.interchange.importing import run_import

POSITIVE, DARK = 0, (2, 3)
KEEPS_IDS = {"lists", "tevatron", "pylate", "trec", "tsv"}  # the others have texts alone
KEEPS_ORDER = {"lists", "sentence-transformers", "flagembedding", "tevatron", "pylate", "tsv"}  # a run has the order of its scores
NEEDS_TEXTS = {"trec", "tsv"}


@dataclass(frozen=True)
class Scored:
    """A plain candidate of the store."""

    query: str
    id: str
    text: str
    kind: int
    logit: np.float32


def stored(store: Path) -> dict[str, list[Scored]]:
    """The lists of draw 0 by the query's id, without dark examples, read with plain pyarrow."""
    lists: dict[str, list[Scored]] = {}
    paths = (sorted(store.glob(f"{stage}/*/*.parquet")) for stage in ("dark_examples", "teacher_scores"))
    for candidates, scores in zip(*paths, strict=True):
        for row, score in zip(pq.read_table(candidates).to_pylist(), pq.read_table(scores).to_pylist(), strict=True):
            if row["draw"] == 0 and row["candidate_kind"] not in DARK:
                one = Scored(row["query"], row["candidate_id"], row["text"], row["candidate_kind"], np.float32(score["logit"]))
                lists.setdefault(row["query_id"], []).append(one)
    return lists


def texts(folder: Path, name: str) -> dict[str, str]:
    """id -> text of a file of a collection."""
    rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text(encoding="utf-8").split("\n") if line]
    return {row["_id"]: row["text"] for row in rows}


def note_of(export: Path) -> dict[str, Any]:
    """What an export says of itself."""
    note: dict[str, Any] = json.loads((export / "export.json").read_text())
    return note


@pytest.mark.medium
@pytest.mark.parametrize("format", ["lists", "sentence-transformers", "flagembedding", "tevatron", "pylate", "trec", "tsv"])
@pytest.mark.parametrize("named", [True, False], ids=["format is named", "format is found"])
def test_what_goes_out_comes_in_again(finished: Finished, tmp_path: Path, format: str, named: bool) -> None:
    """Prevents: a logit that comes back rounded or for another pair, a list in another order, a negative that comes back as a positive;
    settings that train another student than the store of the lists."""

    def export(name: str) -> Path:
        args = Args({**OPTIONS, "format": name, "out": str(tmp_path / name)})
        run_export(load({"config": str(finished.config)}), args, say=lambda line: None)
        return tmp_path / name

    given = {"trec": "trec/lists.trec", "tsv": "tsv/scores.tsv"}.get(format, format)
    export(format)
    own = [f"path={tmp_path / given}", f"out={tmp_path / 'in'}", "teacher=again", f"store={tmp_path / 'store'}"]
    own += [f"format={format}"] if named else []
    own += [f"collection={export('beir')}"] if format in NEEDS_TEXTS else []
    run_import(own, say=lambda line: None)

    lists = stored(finished.store)
    pairs = {pair_key(one.query, one.text): one.logit for listed in lists.values() for one in listed}
    store = LogitStore(tmp_path / "store", DeclaredTeacher("again", "1").namespace)
    assert store.lookup(as_keys(list(pairs))).logits.tolist() == [float(logit) for logit in pairs.values()]
    assert store.size()[0] == len(pairs)

    collection = tmp_path / ("beir" if format in NEEDS_TEXTS else "in")
    queries, passages = texts(collection, "queries"), texts(collection, "corpus")
    run: dict[str, list[str]] = {}
    for entry in read_entries(tmp_path / "in" / "lists.trec"):
        run.setdefault(entry.query_id, []).append(entry.doc_id)
    expected = {listed[0].query: [one.text for one in listed if one.kind != POSITIVE] for listed in lists.values()}
    if format not in KEEPS_ORDER:
        logits = {(one.query, one.text): one.logit for listed in lists.values() for one in listed}
        expected = {query: sorted(listed, key=lambda text: -logits[query, text]) for query, listed in expected.items()}
    assert {queries[query_id]: [passages[doc_id] for doc_id in ids] for query_id, ids in run.items()} == expected
    assert [queries[query_id] for query_id in run] == list(expected), "queries in the order of the store"
    judged = [line.split("\t") for line in (collection / "qrels" / "train.tsv").read_text().splitlines()[1:]]
    assert {(queries[query_id], passages[doc_id]) for query_id, doc_id, _ in judged} == {
        (one.query, one.text) for listed in lists.values() for one in listed if one.kind == POSITIVE
    }
    if format in KEEPS_IDS:
        assert set(run) == set(lists)
        assert {doc_id for ids in run.values() for doc_id in ids} <= {one.id for listed in lists.values() for one in listed}
    if format == "lists":
        started = read_yaml(tmp_path / "in" / "experiment.yaml")
        shards, order = (sorted((tmp_path / "lists" / "lists").iterdir()), note_of(tmp_path / "lists")["training"]["order"])
        assert started["ingest"]["query_shards"] == str(len(shards)) and started["train"]["order"] == order
        assert started["hard_negatives"]["num_negatives"] == str(max(len(listed) for listed in lists.values()) - 1)
