"""Hard negatives: never a positive among them, and samples that neither grow apart nor depend on anything but the seed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.digests import text_hash
from data.errors import UserError
from data.settings import HardNegatives
from data.shards import read_shard
from data.trec import write_run
from pipeline.hard_negatives import Corpus, make, sample_negatives

POOL = [f"d{number}" for number in range(60)]


def sample(pool: list[str] = POOL, *, seed: int = 0, query_id: str = "q", **settings: Any) -> list[list[str]]:
    return sample_negatives(pool, HardNegatives(**settings), seed=seed, query_id=query_id)


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 5))
def test_a_larger_sample_holds_the_smaller_one(first: int, second: int, seed: int) -> None:
    """Prevents: another m that throws away all teacher logits of the last one."""
    small, large = sorted((first, second))
    (few,), (many,) = sample(negatives=small, seed=seed), sample(negatives=large, seed=seed)
    assert len(few) == small and set(few) <= set(many)


def test_samples_keep_to_the_ranks_in_the_order_of_the_pool() -> None:
    """Prevents: negatives from outside the window of ranks, counted from 0 or with its end left out."""
    (all_of_window,) = sample(first_rank=11, last_rank=20, negatives=50)
    assert all_of_window == POOL[10:20]
    seen = {doc_id for seed in range(200) for doc_id in sample(first_rank=11, last_rank=20, negatives=2, seed=seed)[0]}
    assert seen == set(POOL[10:20])


def test_seeds_queries_and_draws_differ() -> None:
    """Prevents: one sample for all queries or epochs."""
    samples = [sample(seed=seed, query_id=query)[0] for seed in (0, 1) for query in ("q", "r")] + [sample(draws=2)[1]]
    assert len({tuple(negatives) for negatives in samples}) == 5
    assert sample(draws=3)[0] == sample()[0]


def test_samples_are_uniform() -> None:
    """Prevents: a hash that favours some ranks."""
    counts = np.zeros(60)
    for seed in range(600):
        counts[[POOL.index(doc_id) for doc_id in sample(negatives=10, seed=seed)[0]]] += 1
    assert abs(counts - 100).max() < 45  # five standard deviations


class SmallCorpus(Corpus):
    """A corpus in memory."""

    def __init__(self, texts: dict[str, str]) -> None:
        self.doc_ids = list(texts)
        self.hashes = np.array([text_hash(text) for text in texts.values()], dtype=np.int64)
        self.row_of = {doc_id: row for row, doc_id in enumerate(self.doc_ids)}


def made(
    ranked: dict[str, list[str]], positives: dict[str, list[str]], texts: dict[str, str], **settings: Any
) -> tuple[list[Any], dict[str, Any]]:
    queries = pa.table({"query_id": list(positives), "text": ["?"] * len(positives)})
    scored = {query: (ids, [float(-rank) for rank in range(len(ids))]) for query, ids in ranked.items()}
    options = HardNegatives(**{"depth": 5, "last_rank": 5, "negatives": 3, **settings})
    table, counts = make(queries, positives, scored, SmallCorpus(texts), settings=options, seed=0)
    return table.to_pylist(), counts


def test_positives_and_their_twins_are_no_negatives() -> None:
    """Prevents: a positive, or a passage of exactly its text under another id, taught to be wrong."""
    texts = {name: name for name in "abcdefgh"} | {"twin of a": "a"}
    rows, counts = made({"q": ["a", "c", "twin of a", "b", "d", "e", "f", "g", "h"]}, {"q": ["b", "a"]}, texts)
    assert rows[0]["ranked_ids"] == ["c", "d", "e", "f", "g"] and rows[0]["ranked_scores"] == [-1, -4, -5, -6, -7]
    assert rows[0]["positive_ids"] == ["b", "a"] and set(rows[0]["negative_ids"][0]) < set("cdefg")
    assert counts["removed from pools"] == {"labelled positive": 2, "text of a positive": 1}


def test_queries_without_negatives_are_counted() -> None:
    """Prevents: queries that vanish, or short lists that nobody hears of."""
    texts = {name: name for name in "abc"}
    rows, counts = made({"q": ["a"], "r": ["b", "a"]}, {"q": ["a"], "r": ["a"], "not ranked": ["c"]}, texts)
    assert [row["query_id"] for row in rows] == ["r"]
    assert (counts["in"], counts["kept"], counts["dropped"]) == (3, 1, {"no negatives": 2})
    assert counts["queries with fewer than m negatives"] == 1


def rows_of(config: Path) -> dict[str, dict[str, Any]]:
    paths = sorted((config.parent / "store" / "hard_negatives").rglob("*.parquet"))
    return {row["query_id"]: row for path in paths for row in read_shard(path).to_pylist()}


def checked(rows: dict[str, dict[str, Any]], *, m: int) -> None:
    for row in rows.values():
        (negatives,) = row["negative_ids"]
        assert not set(row["positive_ids"]) & {*row["ranked_ids"], *negatives}
        assert set(negatives) <= set(row["ranked_ids"]) and len(negatives) == len(set(negatives)) == m
        assert row["ranked_scores"] == sorted(row["ranked_scores"], reverse=True)
    assert "twin" not in rows["train0"]["ranked_ids"] and rows["train1"]["positive_ids"] == ["d1", "d40"]


def test_the_student_s_negatives(finished: Any) -> None:
    """Prevents: a pool that is not the student's exact search, here against numpy over the stored vectors."""
    rows = rows_of(finished.config)
    checked(rows, m=3)
    vectors = {}
    for name, key in (("corpus", "doc_id"), ("queries", "query_id")):
        for path in (finished.store / "embed").glob(f"{name}-*/*.parquet"):
            vectors.update({(name, row[key]): np.array(row["embedding"], dtype=np.float64) for row in read_shard(path).to_pylist()})
    for query_id, row in rows.items():
        left_out = {*row["positive_ids"], *(["twin"] if query_id == "train0" else [])}
        query = vectors["queries", query_id]
        scores = {doc: float(np.float32(vector @ query)) for (kind, doc), vector in vectors.items() if kind == "corpus"}
        best = sorted((doc for doc in scores if doc not in left_out), key=lambda doc: (-scores[doc], doc))[:20]
        assert row["ranked_ids"] == best


@pytest.mark.parametrize("source", ["random", "bm25"])
def test_other_sources(tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]], source: str) -> None:
    """Prevents: a source of negatives that needs embeddings, or finds positives."""
    m = 3 if source == "random" else 1
    config = tiny_experiment(tmp_path, **{"hard_negatives.source": source, "hard_negatives.negatives": m})
    lines = prep_run(config)
    assert not any(line.startswith("embed") for line in lines) and not (tmp_path / "store" / "embed").exists()
    rows = rows_of(config)
    checked(rows, m=m)
    assert len(rows) == 14
    if source == "random":
        assert len({tuple(row["ranked_ids"]) for row in rows.values()}) == 14


def test_a_run_file(tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]]) -> None:
    """Prevents: a run whose ids are of another collection, that fails late or gives empty lists, or an edited run that is not seen."""
    ids = [f"d{number}" for number in range(20)]
    run = {f"train{n}": [("elsewhere", 99.0), *((doc, 50.0 - rank) for rank, doc in enumerate(ids))] for n in range(13)}
    write_run(tmp_path / "a.run", run | {"stranger": [("d1", 1.0)]}, tag="x")
    config = tiny_experiment(tmp_path, **{"hard_negatives.source": "run", "hard_negatives.run_file": tmp_path / "a.run"})
    prep_run(config, stage="ingest")
    prep_run(config, stage="hard_negatives")
    rows = rows_of(config)
    checked(rows, m=3)
    assert rows.keys() == {f"train{n}" for n in range(13)} and rows["train5"]["ranked_ids"] == [doc for doc in ids if doc != "d5"]
    (manifest,) = (config.parent / "store" / "hard_negatives").rglob("manifest.json")
    assert json.loads(manifest.read_text())["counts"]["dropped"] == {"no negatives": 1}

    write_run(tmp_path / "a.run", {query: entries[:4] for query, entries in run.items()}, tag="x")
    (line,) = prep_run(config, stage="hard_negatives")
    assert "built 2 of 2" in line
    (tmp_path / "a.run").unlink()
    with pytest.raises(UserError, match=r"hard_negatives\.run_file=.*no such file"):
        prep_run(config, stage="hard_negatives")


def test_a_subset_of_queries_grows(tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]]) -> None:
    """Prevents: a pilot over few queries whose logits are of no use to the full run."""
    found = []
    for count in (5, 9):
        config = tiny_experiment(tmp_path / str(count), **{"hard_negatives.source": "random", "hard_negatives.queries": count})
        prep_run(config, stage="ingest")
        prep_run(config, stage="hard_negatives")
        found.append(rows_of(config))
    assert [len(rows) for rows in found] == [5, 9] and found[0].keys() < found[1].keys()
    assert all(found[1][query] == row for query, row in found[0].items())
