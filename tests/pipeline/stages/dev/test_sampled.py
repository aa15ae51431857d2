"""The dev set: what is in it, against a plain version; and that it never holds a training query."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from data.config.settings import Experiment, load
from data.digests import hash64
from data.errors import UserError
from data.tables import schemas
from data.tables.manifest import Manifest
from data.tables.schemas import DevRole
from data.tables.shards import read_shard
from pipeline.cli import app
from pipeline.stages.dev.sampled import choose_queries, random_rows
from retrieval.models.tokenizer import Tokenizer
from retrieval.search import searcher as search
from retrieval.search.embedding_table import EmbeddingTable

Prep = Callable[..., list[str]]
Row = dict[str, Any]
LENGTHS = {"student.query_tokens": 6, "student.passage_tokens": 11, "student.query_prefix": "be: ", "student.passage_prefix": "bi: "}


def prep(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def made(store: Path) -> tuple[list[Row], Manifest, dict[bytes, bytes]]:
    """(rows, manifest, schema metadata) of the one dev set of a store."""
    (folder,) = (store / "dev").iterdir()
    manifest = Manifest.read(folder)
    assert manifest is not None and len(manifest.shards) == 1
    path = folder / manifest.shards[0].name
    return read_shard(path).to_pylist(), manifest, pq.read_schema(path).metadata


def texts(collection: Path, name: str) -> dict[str, str]:
    return {row["_id"]: row["text"] for row in map(json.loads, (collection / f"{name}.jsonl").read_text().splitlines())}


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Callable[..., Path], prep_run: Prep) -> Path:
    """A store with embeddings."""
    config = tiny_experiment(tmp_path_factory.mktemp("embedded"), **LENGTHS)
    for stage in ("ingest", "embed"):
        prep_run(config, stage=stage)
    return config.parent / "store"


@pytest.fixture
def config(embedded: Path, tmp_path: Path, tiny_experiment: Callable[..., Path]) -> Path:
    config = tiny_experiment(tmp_path / "tiny", **LENGTHS)
    shutil.copytree(embedded, config.parent / "store")
    return config


def plain(store: Path, collection: Path, student: Path, *, queries: int, depth: int, random: int) -> tuple[set[str], dict[str, str]]:
    """(the passages that must be there, the dev queries by id) from stored vectors, in float64."""
    ids, vectors = {}, {}
    for kind, name in (("corpus", "doc_id"), ("queries", "query_id")):
        (folder,) = (store / "embed").glob(f"{kind}-*")
        table = EmbeddingTable(folder, name)
        ids[kind], vectors[kind] = table.ids.to_pylist(), table.matrix().astype(np.float64)
    chosen = sorted((f"dev{number}" for number in range(4)), key=lambda query: hash64(0, "dev", query))[:queries]
    wanted = {f"d{14 + int(query[3:])}" for query in chosen}
    for query in chosen:
        scores = vectors["corpus"] @ vectors["queries"][ids["queries"].index(query)]
        wanted |= {ids["corpus"][row] for row in np.argsort(-scores)[:depth]}
    others = sorted(set(ids["corpus"]) - wanted, key=lambda doc_id: hash64(0, "dev passage", doc_id))
    return wanted | set(others[:random]), {query: texts(collection, "queries")[query] for query in sorted(chosen)}


@pytest.mark.parametrize(("queries", "depth", "random"), [(3, 5, 4), (1, 1, 0), (4, 60, 99)])
def test_what_is_in_it(config: Path, collection: Path, models: Any, prep_run: Prep, queries: int, depth: int, random: int) -> None:
    """Prevents: a passage of the student's list or a positive that is missing, so that the metric flatters; tokens of another text, or cut
    or prefixed otherwise than in training."""
    prep_run(config, stage="dev", **{"dev.queries": queries, "dev.depth": depth, "dev.random": random})
    rows, manifest, metadata = made(config.parent / "store")
    passages, chosen = plain(config.parent / "store", collection, models.student, queries=queries, depth=depth, random=random)
    tokenizer, text_of = Tokenizer(models.student), texts(collection, "corpus")
    expected = [
        {
            "role": DevRole.QUERY, "id": query, "tokens": tokenizer.encode([f"be: {text}"], max_tokens=6)[0],
            "judged_ids": [f"d{14 + int(query[3:])}"], "grades": [1],
        }
        for query, text in chosen.items()
    ] + [
        {
            "role": DevRole.PASSAGE, "id": doc_id, "tokens": tokenizer.encode([f"bi: {text_of[doc_id]}"], max_tokens=11)[0],
            "judged_ids": [], "grades": [],
        }
        for doc_id in sorted(passages)
    ]  # fmt: skip
    assert rows == expected
    told = json.loads(metadata[b"dev"])
    assert told == {
        "schema_version": schemas.SCHEMA_VERSION, "tokenizer": tokenizer.digest, "split": "dev", "depth": depth, "random": random,
    }  # fmt: skip
    counts = manifest.counts
    assert (counts["in"], counts["kept"]) == (4, queries) and sum(counts["dropped"].values()) == 4 - queries
    assert sum(counts["passages"].values()) == len(passages) and counts["passages"]["positives"] == queries


def test_an_approximate_index_is_not_used(config: Path, prep_run: Prep, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a dev set that lacks what the index of the mining overlooked, from a search that a worker has kept."""
    searched: list[bool] = []
    searcher_for = search.searcher_for

    def noted(corpus: Any, settings: Any, *, index: Path | None = None, **more: Any) -> Any:
        searched.append(index is not None)
        return searcher_for(corpus, settings, index=index, **more)

    monkeypatch.setattr(search, "searcher_for", noted)
    words = {"dev.queries": 4, "dev.depth": 9, "dev.random": 0}
    prep_run(config, stage="dev", **words)
    exact, _, _ = made(config.parent / "store")
    shutil.rmtree(config.parent / "store" / "dev")
    prep_run(config, **words, **{"search.index": "ivf"})
    assert searched == [False, True, False]  # the dev set's, the pools', the dev set's again
    assert made(config.parent / "store")[0] == exact


def test_only_where_asked_for(config: Path, prep_run: Prep) -> None:
    """Prevents: work and folders for those who want no dev set, one that `prep run` forgets, or a `path` of several lines."""
    code, output = prep("plan", f"config={config}")
    assert code == 0 and "dev" not in output.split()
    code, output = prep("run", f"config={config}", "stage=dev")
    assert code == 2 and "set dev.queries=" in output
    code, output = prep("path", f"config={config}", "stage=dev", "dev.queries=2")
    assert code == 2 and "prep run stage=dev" in output
    assert any(line.startswith("dev ") and "built 1 of 1" in line for line in prep_run(config, **{"dev.queries": 2}))
    code, output = prep("path", f"config={config}", "stage=dev", "dev.queries=2")
    assert code == 0 and Manifest.read(Path(output.strip())) is not None
    assert any(line.startswith("dev ") and "complete" in line for line in prep_run(config, **{"dev.queries": 2}))


def test_what_makes_it_anew(config: Path, prep_run: Prep) -> None:
    """Prevents: curves that cannot be compared, because a setting of the training has made another dev set; or one of other settings."""
    prep_run(config, stage="dev", **{"dev.queries": 2})

    def state(word: str) -> str:
        code, output = prep("plan", f"config={config}", "stage=dev", "dev.queries=2", word)
        assert code == 0, output
        return output

    for word in ("hard_negatives.queries=3", "hard_negatives.num_negatives=2", "train.epochs=9", "search.memory_gb=2"):
        assert "complete" in state(word), word
    for word in ("dev.queries=3", "dev.depth=9", "dev.random=2", "dev.split=test", "seed=1"):
        assert f"changed: {word.removeprefix('dev.').split('=')[0]} " in state(word), word


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"dev.split": "valid"}, "splits that are not trained on: dev, test"),
        ({"dev.split": "train"}, "the split that is trained on.*choose another: dev, test"),
    ],
)
def test_splits_that_cannot_be_meant(config: Path, prep_run: Prep, words: dict[str, str], message: str) -> None:
    """Prevents: a dev set of training queries, or hours of work before a misspelt split is found."""
    with pytest.raises(UserError, match=message):
        prep_run(config, **{"dev.queries": 2, **words})


def test_fewer_than_asked_is_a_note(config: Path, prep_run: Prep) -> None:
    """Prevents: a run that stops for want of queries, or says nothing of it."""
    lines = prep_run(config, stage="dev", **{"dev.queries": 50})
    assert "warning: dev.queries asks for 50 queries, dev.split has 4; all of them are taken" in lines


class Table:
    """A stored table, in memory."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def row_groups(self) -> list[pa.Table]:
        return [self._table.slice(start, 3) for start in range(0, self._table.num_rows, 3)]


@pytest.fixture(scope="module")
def experiment(embedded: Path) -> Experiment:
    return load({"config": str(embedded.parent / "tiny.yaml"), "dev.queries": "3"})


TEXTS = st.sampled_from(["ba be", "Ba  BE ", "ba bé", "bo", "bu", "be ba", "ba"])


@given(st.lists(st.tuples(TEXTS, st.sampled_from(["train", "dev", "both", "neither"]), st.integers(0, 2)), max_size=12), st.integers(1, 5))
def test_no_training_query_is_in_it(experiment: Experiment, drawn: list[tuple[str, str, int]], asked: int) -> None:
    """Prevents: a leak: a query that is trained on under the same id, or under another one with the same words."""
    given_ = {f"q{number}": one for number, one in enumerate(drawn)}
    queries = pa.table([list(given_), [text for text, _, _ in given_.values()]], schema=schemas.QUERIES)
    splits = {"train": ["train"], "dev": ["dev"], "both": ["train", "dev"], "neither": ["test"]}
    labels = [(split, query, "d", grade) for query, (_, where, grade) in given_.items() for split in splits[where] if grade]
    frame = pl.DataFrame(labels, schema=["split", "query_id", "doc_id", "relevance"], orient="row")
    mine = experiment.model_copy(update={"dev": experiment.dev.model_copy(update={"queries": asked})})

    trained = {query for split, query, _, _ in labels if split == "train"}
    words = {tuple(given_[query][0].lower().split()) for query in trained}
    judged = {query for split, query, _, _ in labels if split == "dev"}
    free = {query for query in judged - trained if tuple(given_[query][0].lower().split()) not in words}
    if not free:
        with pytest.raises(UserError, match="choose another split"):
            choose_queries(Table(queries), frame, mine)  # type: ignore[arg-type]
        return
    chosen = choose_queries(Table(queries), frame, mine)  # type: ignore[arg-type]
    best = sorted(sorted(free, key=lambda query: hash64(0, "dev", query))[:asked])
    assert list(chosen.texts.items()) == [(query, given_[query][0]) for query in best]
    assert chosen.grades == {query: {"d": given_[query][2]} for query in best}
    assert chosen.dropped.get("training query", 0) == len(judged & trained)
    assert chosen.dropped.get("text of a training query", 0) == len(judged - trained - free)
    assert len(judged) == len(best) + sum(chosen.dropped.values())


def test_leaks_are_told(config: Path, collection: Path, prep_run: Prep) -> None:
    """Prevents: queries that vanish without a word."""
    leaky = config.parent / "leaky"
    shutil.copytree(collection, leaky)
    with open(leaky / "qrels" / "dev.tsv", "a") as file:
        file.write("train3\td3\t1\n")
    lines = [
        line for stage in ("ingest", "embed", "dev") for line in prep_run(config, stage=stage, **{"ingest.path": leaky, "dev.queries": 4})
    ]
    assert any("1 queries of dev.split are in the training split too" in line for line in lines)


@given(st.integers(1, 30), st.integers(0, 30), st.integers(0, 30), st.integers(0, 99))
def test_fillers_are_nested(size: int, few: int, more: int, seed: int) -> None:
    """Prevents: passages counted twice, and a larger dev set that is another one."""
    ids = pa.array([f"d{number}" for number in range(size)], pa.large_string())
    taken = np.unique(np.random.default_rng(seed).integers(0, size, 5))
    less, all_of = (random_rows(ids, taken, count=count, seed=seed).tolist() for count in (few, few + more))
    assert set(less) <= set(all_of) and not set(all_of) & set(taken.tolist())
    assert len(all_of) == min(few + more, size - len(taken)) and all_of == sorted(set(all_of))
