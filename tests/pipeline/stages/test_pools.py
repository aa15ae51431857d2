"""Pools: never a positive or its twin among them, whatever the source; as deep as asked for."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config.settings import load
from data.errors import UserError
from data.formats.trec import write_run
from data.tables.manifest import Manifest, ShardRecord
from data.tables.schemas import CORPUS, QUERIES, embeddings
from data.tables.shards import open_shard, read_shard
from pipeline.negatives import never_negatives
from pipeline.negatives import sources as pool_sources
from pipeline.negatives.corpus import Corpus
from pipeline.negatives.never_negatives import REASONS, Never
from pipeline.negatives.sources import RunFile, StudentSearch, run_entries
from pipeline.pooling.asked import room_for_removals
from pipeline.stage import Stored
from pipeline.stages import pools
from pipeline.stages.pools import pool_of
from retrieval.models.resolved import ResolvedModels
from retrieval.search.embedding_table import EmbeddingTable
from retrieval.search.searcher import Searcher
from retrieval.search.tie_break import ties_by_id

Prep = Callable[..., list[str]]


@given(st.integers(0, 10_000))
def test_what_is_removed_and_as_deep_as_asked(seed: int) -> None:
    """Prevents: a passage that is never a negative in the pool; a pool that is short because of what was removed from it."""
    chance = np.random.default_rng(seed)
    count = int(chance.integers(2, 60))
    own = np.sort(chance.choice(count, size=int(chance.integers(1, count)), replace=False))
    never = Never(own, chance.integers(0, len(REASONS), len(own)).astype(np.int8))
    depth = int(chance.integers(1, 30))
    k = depth + room_for_removals([never], [own[:1]])
    ranked = np.full(max(k, count), -1)
    ranked[:count] = chance.permutation(count)
    removed: Counter[str] = Counter()
    kept = pool_of(ranked[:k], never, depth=depth, removed=removed)
    assert ranked[:k][kept].tolist() == [row for row in ranked[:count].tolist() if row not in own][:depth]
    within = {row for row in ranked[:k].tolist() if row >= 0}
    why = dict(zip(own.tolist(), never.reasons.tolist(), strict=True))
    assert removed == Counter(REASONS[why[row]] for row in within & why.keys())


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=40), st.integers(0, 99))
def test_ties_go_by_id(values: list[int], seed: int) -> None:
    """Prevents: an order that depends on how the corpus is cut into shards."""
    names = [f"d{number}" for number in np.random.default_rng(seed).permutation(200)[: len(values)]]
    scores = np.sort(np.array(values, np.float32))[::-1]
    ordered = ties_by_id(np.arange(len(values)), scores, pa.array(names, pa.large_string()))
    assert [names[row] for row in ordered] == [name for _, name in sorted(zip((-scores).tolist(), names, strict=True))]


@pytest.mark.parametrize("seed", range(6))
def test_the_student_s_search_with_many_ties(tmp_path: Path, seed: int) -> None:
    """Prevents: equal scores by where passages lie, and a positive's score taken from another row, here with vectors of few values."""
    chance = np.random.default_rng(seed)
    ids = [f"d{number}" for number in chance.permutation(5000)]
    corpus_vectors, query_vectors = chance.integers(-1, 2, (5000, 3)), chance.integers(-2, 3, (4, 3))

    def stored(folder: Path, names: list[str], vectors: np.ndarray, id_name: str) -> Stored:
        with open_shard(folder / "p", embeddings(3, id_name=id_name), {}) as writer:
            for start in range(0, len(names), 4096):
                part = vectors[start : start + 4096].astype(np.float16)
                column = pa.FixedSizeListArray.from_arrays(pa.array(part.reshape(-1)), 3)
                writer.write(pa.table([names[start : start + 4096], column], schema=embeddings(3, id_name=id_name)))
        manifest = Manifest("", "", "", {}, [ShardRecord("p", len(names), 0, "")], {})
        manifest.write(folder)
        return Stored(folder, manifest)

    with open_shard(tmp_path / "t" / "p", CORPUS, {}) as writer:
        writer.write(pa.table([ids, ids, list(range(5000))], schema=CORPUS))
    corpus = Corpus(Stored(tmp_path / "t", Manifest("", "", "", {}, [ShardRecord("p", 0, 0, "")], {})))
    names = ["q0", "q1", "q2", "q3"]
    queries = pa.table([names, names], schema=QUERIES)
    vectors = stored(tmp_path / "q", names, query_vectors, "query_id"), stored(tmp_path / "c", ids, corpus_vectors, "doc_id")
    searcher = Searcher(EmbeddingTable(vectors[1].folder, "doc_id"), memory_gb=8)
    search = StudentSearch(queries, vectors[0], 0, searcher, corpus)
    watched = chance.choice(5000, 6)
    search.watch(watched)
    found = [search.rank(first, first + 2, k=5000) for first in (0, 2)]
    for place in range(4):
        exact = corpus_vectors @ query_vectors[place]
        rows, scores = found[place // 2][0][place % 2], found[place // 2][1][place % 2]
        assert scores.tolist() == sorted(exact.tolist(), reverse=True) and exact[rows].tolist() == scores.tolist()
        for run in np.split(rows, np.flatnonzero(np.diff(scores)) + 1):
            listed = corpus.ids_of(run).to_pylist()
            assert listed == sorted(listed)
        assert search.scores_of(place, watched).tolist() == exact[watched].tolist()


def rows_of(config: Path) -> dict[str, dict[str, Any]]:
    paths = sorted((config.parent / "store" / "pools").glob("ranked-*/*.parquet"))
    return {row["query_id"]: row for path in paths for row in read_shard(path).to_pylist()}


def checked(rows: dict[str, dict[str, Any]]) -> None:
    for row in rows.values():
        for source in set(row["ranked_sources"]):
            own = [place for place, number in enumerate(row["ranked_sources"]) if number == source]
            ids, scores = [row["ranked_ids"][place] for place in own], [row["ranked_scores"][place] for place in own]
            assert not set(row["positive_ids"]) & set(ids) and len(set(ids)) == len(ids)
            assert scores == sorted(scores, reverse=True)
        assert not set(row["never_ids"]) & set(row["ranked_ids"]) and set(row["positive_ids"]) <= set(row["never_ids"])
    assert (
        rows["train0"]["never_ids"] == ["d0", "twin"]
        and "twin" not in rows["train0"]["ranked_ids"]
        and rows["train1"]["positive_ids"] == ["d1", "d40"]
    )


def test_the_student_s_pool(finished: Any) -> None:
    """Prevents: a pool, or scores of positives, that are not the student's exact search, here against numpy over the stored vectors."""
    rows = rows_of(finished.config)
    checked(rows)
    assert len(rows) == 14
    vectors = {}
    for name, key in (("corpus", "doc_id"), ("queries", "query_id")):
        for path in (finished.store / "embed").glob(f"{name}-*/*.parquet"):
            vectors.update({(name, row[key]): np.array(row["embedding"], dtype=np.float64) for row in read_shard(path).to_pylist()})
    for query_id, row in rows.items():
        left_out = {*row["positive_ids"], *(["twin"] if query_id == "train0" else [])}
        query = vectors["queries", query_id]
        scores = {doc: float(np.float32(vector @ query)) for (kind, doc), vector in vectors.items() if kind == "corpus"}
        best = sorted((doc for doc in scores if doc not in left_out), key=lambda doc: (-scores[doc], doc))[:20]
        assert row["ranked_ids"] == best and row["ranked_sources"] == [0] * 20
        assert row["ranked_scores"] == [scores[doc] for doc in best]
        assert row["positive_scores"] == [scores[doc] for doc in row["positive_ids"]]


def test_pieces_give_the_same_rows(
    finished: Any, tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a shard too large to rank at once whose queries get each other's lists, or positives without scores."""
    monkeypatch.setattr(pools, "_RANKED_AT_ONCE", 70)
    monkeypatch.setattr(pools, "_WRITTEN_AT_ONCE", 50)
    config = tiny_experiment(tmp_path)
    for stage in ("ingest", "embed", "pools"):
        prep_run(config, stage=stage)
    assert rows_of(config) == rows_of(finished.config)


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_pools_through_an_index_say_what_it_misses(
    finished: Any, tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, kind: str
) -> None:
    """Prevents: approximate pools without a word on their recall, or one that is not measured; an index taken for exact search's pools."""
    exact = {"search.index": kind, "search.probes": 1}
    config = tiny_experiment(tmp_path, **exact)
    for stage in ("ingest", "embed", "index"):
        prep_run(config, stage=stage)
    lines = prep_run(config, stage="pools")
    (folder,) = (tmp_path / "store" / "pools").glob("ranked-*")
    found = Manifest.read(folder)
    assert found is not None
    recall = found.counts[pools.RECALL]
    rows, sure = rows_of(config), rows_of(finished.config)
    assert recall["of"] == 14 * 20 and 0 < recall["found"] <= recall["of"]
    assert any(f"{recall['found'] / recall['of']:.2%} of the 280 passages" in line for line in lines)
    checked(rows)
    sure_scores = {query: dict(zip(row["ranked_ids"], row["ranked_scores"], strict=True)) for query, row in sure.items()}
    shared = [
        (score, sure_scores[query][doc])
        for query, row in rows.items()
        for doc, score in zip(row["ranked_ids"], row["ranked_scores"], strict=True)
        if doc in sure_scores[query]
    ]
    assert len(shared) > 100 and all(mine == exact for mine, exact in shared)


def test_an_index_of_an_exact_search_is_refused(tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep) -> None:
    """Prevents: `stage=index` that does nothing and succeeds."""
    with pytest.raises(UserError, match=r"the search is exact, which needs no index; set search.index=ivf"):
        prep_run(tiny_experiment(tmp_path), stage="index")


@pytest.mark.medium
@pytest.mark.parametrize("source", ["random", "bm25", "bm25,random"])
def test_sources_without_vectors(tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, source: str) -> None:
    """Prevents: a source of negatives that needs embeddings, or finds positives."""
    config = tiny_experiment(tmp_path, **{"hard_negatives.source": source, "hard_negatives.num_negatives": 1})
    lines = prep_run(config)
    assert not any(line.startswith("embed") for line in lines) and not (tmp_path / "store" / "embed").exists()
    rows = rows_of(config)
    checked(rows)
    assert len(rows) == 14 and all(row["positive_scores"] is None for row in rows.values())
    if source == "random":
        assert len({tuple(row["ranked_ids"]) for row in rows.values()}) == 14


def test_labels_of_other_splits_are_no_negatives(
    tmp_path: Path, collection: Path, tiny_experiment: Callable[..., Path], prep_run: Prep
) -> None:
    """Prevents: a passage judged relevant in another split, or its twin, drawn as a negative of the same query."""
    other = shutil.copytree(collection, tmp_path / "collection")
    with open(other / "qrels" / "test.tsv", "a") as file:
        file.write("train5\td0\t1\ntrain5\td7\t0\n")
    config = tiny_experiment(tmp_path, **{"ingest.path": other, "hard_negatives.depth": 60})
    for stage in ("ingest", "embed", "pools"):
        prep_run(config, stage=stage)
    row = rows_of(config)["train5"]
    assert row["positive_ids"] == ["d5"] and not {"d5", "d0", "twin"} & set(row["ranked_ids"]) and "d7" in row["ranked_ids"]
    assert len(row["ranked_ids"]) == 57


def test_a_run_file(tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep) -> None:
    """Prevents: an edited run that is not seen, unknown passages that nobody hears of, scores that the file does not have."""
    ids = [f"d{number}" for number in range(20)]
    run = {f"train{n}": [("elsewhere", 99.0), *((doc, 50.0 - rank // 2) for rank, doc in enumerate(ids))] for n in range(13)}
    write_run(tmp_path / "a.run", run | {"stranger": [("d1", 1.0)]}, tag="x")
    config = tiny_experiment(tmp_path, **{"hard_negatives.source": "run", "hard_negatives.run_file": tmp_path / "a.run"})
    prep_run(config, stage="ingest")
    lines = prep_run(config, stage="hard_negatives")
    assert any("warning: 13 entries of hard_negatives.run_file name passages that are not in the corpus" in line for line in lines)
    rows = rows_of(config)
    checked(rows)
    left = sorted((doc for doc in ids if doc != "d5"), key=lambda doc: (int(doc[1:]) // 2, doc))
    assert rows["train5"]["ranked_ids"] == left and rows["train5"]["ranked_scores"][0] == 50.0 and not rows["train13"]["ranked_ids"]
    (manifest,) = (config.parent / "store" / "hard_negatives").rglob("manifest.json")
    assert json.loads(manifest.read_text())["counts"]["dropped"] == {"no negatives": 1}

    write_run(tmp_path / "a.run", {query: entries[:4] for query, entries in run.items()}, tag="x")
    assert sum("built 2 of 2" in line for line in prep_run(config, stage="hard_negatives")) == 2
    (tmp_path / "a.run").unlink()
    with pytest.raises(UserError, match=r"hard_negatives\.run_file=.*no such run file"):
        prep_run(config, stage="hard_negatives")


@pytest.mark.parametrize("at_once", [1, 3, 1000])
def test_bad_runs_are_told(finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Prevents: a run of another collection that gives empty lists, a passage counted twice, a line skipped in silence."""
    from pipeline.report.inspect import complete_tables

    monkeypatch.setattr(pool_sources, "_ENTRIES_AT_ONCE", at_once)
    experiment = load({"config": str(finished.config)})
    (stored,) = complete_tables(experiment, "ingest.corpus")
    corpus, path = Corpus(stored), tmp_path / "r"

    def run(query_ids: list[str]) -> RunFile:
        parts = list(run_entries(path, {query_id: place for place, query_id in enumerate(query_ids)}, corpus))
        return RunFile(path, pl.concat(parts), query_ids, corpus)

    path.write_text("q Q0 x 1 1.0 t\nq Q0 y 2 0.5 t\nother Q0 d1 1 1 t\n")
    with pytest.raises(UserError, match="lists no passage of this corpus for its queries, such as q"):
        run(["p", "q"])
    path.write_text("q Q0 d1 1 1.0 t\np Q0 d1 1 1.0 t\nq Q0 d2 2 0.5 t\nq Q0 d1 3 0.2 t\nq Q0 d2 4 0.1 t\n")
    with pytest.raises(UserError, match="r:4: query q lists passage d1 a second time"):
        run(["p", "q"])
    path.write_text("q Q0 d1 1 1.0 t\nq Q0 d2 two 0.5\n")
    with pytest.raises(UserError, match="r:2: expected"):
        run(["q"])
    path.write_text("q Q0 d1 1 1.0 t\nq Q0 nowhere 1 3.0 t\nq Q0 d12 9 2.0 t\n")
    source = run(["p", "q"])
    rows, scores = source.rank(0, 2, k=5)
    assert source.unknown == 1 and (rows[0] == -1).all() and scores[1].tolist() == [2.0, 1.0]
    assert corpus.ids_of(rows[1]).to_pylist() == ["d12", "d1"]


def test_a_subset_of_queries_grows(tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep) -> None:
    """Prevents: a pilot over few queries whose logits are of no use to the full run."""
    found = []
    for count in (5, 9):
        config = tiny_experiment(tmp_path / str(count), **{"hard_negatives.source": "random", "hard_negatives.queries": count})
        prep_run(config, stage="ingest")
        prep_run(config, stage="hard_negatives")
        found.append(rows_of(config))
    assert [len(rows) for rows in found] == [5, 9] and found[0].keys() < found[1].keys()
    assert all(found[1][query] == row for query, row in found[0].items())


def pools_counts(config: Path) -> dict[str, Any]:
    (manifest,) = (config.parent / "store" / "pools").glob("ranked-*/manifest.json")
    return json.loads(manifest.read_text())["counts"]


BY_CHANCE = {"hard_negatives.source": "random", "hard_negatives.depth": 2000, "ingest.query_shards": 3}  # all passages


def test_queries_of_one_text_share_what_is_never_a_negative(
    tmp_path: Path, collection: Path, tiny_experiment: Callable[..., Path], prep_run: Prep
) -> None:
    """Prevents: a query taught that the labelled positive of its own text, under another id or in another split, is wrong."""
    other = shutil.copytree(collection, tmp_path / "collection")
    lines = [json.loads(line) for line in (other / "queries.jsonl").read_text().splitlines()]
    text = {line["_id"]: line["text"] for line in lines}
    text |= {"train3": text["train0"], "test2": f"  {text['train0'].upper()} "}  # case and spaces: in another shard
    (other / "queries.jsonl").write_text("".join(json.dumps({"_id": key, "text": value}) + "\n" for key, value in text.items()))
    config = tiny_experiment(tmp_path, **{"ingest.path": other, **BY_CHANCE})
    prep_run(config, stage="ingest")
    prep_run(config, stage="pools")
    rows = rows_of(config)
    of_test2 = "d20"  # 14 training and 4 dev queries come before it
    for query_id, own in (("train0", "d0"), ("train3", "d3")):
        assert rows[query_id]["never_ids"] == sorted({"d0", "twin", "d3", of_test2}) and rows[query_id]["positive_ids"] == [own]
        assert not set(rows[query_id]["never_ids"]) & set(rows[query_id]["ranked_ids"])
    assert rows["train1"]["never_ids"] == ["d1", "d40"]
    assert pools_counts(config)["removed from pools"]["positive of an equal query"] == 4


def in_the_corpus(folder: Path, passages: dict[str, dict[str, str]]) -> None:
    with open(folder / "corpus.jsonl", "a") as file:
        file.write("".join(json.dumps({"_id": key, **fields}) + "\n" for key, fields in passages.items()))


@pytest.mark.parametrize("switch", ["auto", "true", "false"])
def test_a_query_that_is_a_passage_is_no_negative_of_itself(
    tmp_path: Path, collection: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, switch: str
) -> None:
    """Prevents: a query taught that its own text is wrong (Quora, ArguAna), and a passage left out since two numbers are the same."""
    other = shutil.copytree(collection, tmp_path / "collection")
    text = {line["_id"]: line["text"] for line in map(json.loads, (other / "queries.jsonl").read_text().splitlines())}
    in_the_corpus(
        other,
        {
            "train2": {"title": "", "text": text["train2"]},  # the query
            "train4": {"title": "ba bo", "text": f"{text['train4']}"},  # with a title, which the query has not
            "copy4": {"title": "ba bo", "text": f"{text['train4']}"},  # that once more
            "train6": {"title": "", "text": "something else"},  # the same id by chance
            "copy8": {"title": "", "text": text["train8"]},  # the text under another id
        },
    )
    config = tiny_experiment(tmp_path, **{"ingest.path": other, **BY_CHANCE})
    config.write_text(config.read_text().replace("hard_negatives:\n", f"hard_negatives:\n  ignore_identical_ids: {switch}\n"))
    prep_run(config, stage="ingest")
    said = prep_run(config, stage="pools")
    rows = rows_of(config)
    by_text = {"train2": {"train2"}, "train4": {"train4", "copy4"}, "train6": set(), "train8": {"copy8"}}
    expected = {"auto": by_text, "true": {**by_text, "train6": {"train6"}}, "false": {key: set() for key in by_text}}[switch]
    for query_id, gone in expected.items():
        assert set(rows[query_id]["never_ids"]) - set(rows[query_id]["positive_ids"]) == gone
        own = {"train2", "train4", "copy4", "train6", "copy8"}
        assert own & set(rows[query_id]["ranked_ids"]) == own - gone
    count = sum(map(len, expected.values()))
    removed = pools_counts(config)["removed from pools"]
    assert sum(removed.get(reason, 0) for reason in ("the query itself", "text of the query")) == count
    assert any(f"{count} passages that are the query itself, or have its text, are left out" in line for line in said) == bool(count)


def test_plain_numbers_as_ids_cost_no_reading_of_the_corpus(finished: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: the texts of millions of passages read since queries and passages are both numbered from 1."""
    from pipeline.report.inspect import complete_tables

    (stored,) = complete_tables(load({"config": str(finished.config)}), "ingest.corpus")
    corpus, read = Corpus(stored), list[int]()
    texts_of = Corpus.texts_of
    monkeypatch.setattr(Corpus, "texts_of", lambda self, rows: (read.append(len(rows)), texts_of(self, rows))[1])
    monkeypatch.setattr(never_negatives, "_PROBED", 5)
    queries = pa.table([[f"d{number}" for number in range(40)], [f"zu{number}" for number in range(40)]], schema=QUERIES)
    equal = {query_id: [query_id] for query_id in queries.column("query_id").to_pylist()}
    none = pl.DataFrame({"query_id": [], "row": []}, schema={"query_id": pl.String, "row": pl.Int64})
    found = never_negatives.never_negatives(queries, equal, none, corpus, identical="auto")
    assert read == [5] and not any(len(never.rows) for never in found.values())


def test_a_source_that_finds_nothing_is_told(tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep) -> None:
    """Prevents: a mixture whose negatives all come from the other source, without a word; a wrong file that passes for an empty run."""
    run = tmp_path / "a.run"
    mixture = {"hard_negatives.source": "random:1,run:1", "hard_negatives.run_file": run}
    config = tiny_experiment(tmp_path, **mixture)
    prep_run(config, stage="ingest")

    def refused(content: str, said: str) -> None:
        run.write_text(content)
        for source in ("random:1,run:1", "run"):
            with pytest.raises(UserError, match=said):
                prep_run(config, stage="pools", **{"hard_negatives.source": source})

    refused(
        "train00 Q0 d7 1 2 t\n", r"a\.run has no passage for any of the 14 training queries, such as train.*first line is of query train00"
    )
    refused("", r"a\.run has no entry; expected lines of `query_id Q0")
    refused('{"train0": {"d7": 1.0}}', r"a\.run:1: expected `query_id Q0 doc_id rank score tag` .* got 3 columns")
    refused("".join(f"train{n} Q0 d{n} 1 2 t\n" for n in range(14)), r"a\.run has no passage for any")  # nothing but the positives
    run.write_text("train3 Q0 d7 1 2 t\n")
    said = [*prep_run(config, stage="pools"), *prep_run(config, stage="hard_negatives")]
    assert any("a.run has no passage for 13 of 14 queries, which get their negatives from the other sources" in line for line in said)
    assert any("negatives that a source had not, taken from the others: run" in line for line in said)


def test_bm25_that_finds_nothing_is_told(tmp_path: Path, collection: Path, tiny_experiment: Callable[..., Path], prep_run: Prep) -> None:
    """Prevents: BM25's share of the negatives given to the student without a word, where queries and passages have no word in common."""
    other = shutil.copytree(collection, tmp_path / "collection")
    lines = [json.loads(line) for line in (other / "queries.jsonl").read_text().splitlines()]
    (other / "queries.jsonl").write_text("".join(json.dumps({**line, "text": f"слово {line['_id']}"}) + "\n" for line in lines))
    config = tiny_experiment(tmp_path, **{"ingest.path": other, "hard_negatives.source": "bm25:1,random:1"})
    prep_run(config, stage="ingest")
    with pytest.raises(UserError, match=r"source=bm25 has no passage for any of the 14 .*bm25_stopwords=english.*in one language"):
        prep_run(config, stage="pools")


def test_stop_words_belong_to_the_pools_of_bm25(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: another language that is not seen, or pools of other sources made anew for it."""

    def key(**settings: str) -> dict[str, Any]:
        words = {f"hard_negatives.{name}": value for name, value in settings.items()}
        experiment = load({"config": str(tiny_experiment(tmp_path)), **words})
        return pools._key(experiment, ResolvedModels(experiment))

    for source in ("bm25", "random"):
        assert "bm25_stopwords" not in key(source=source) and "ignore_identical_ids" not in key(source=source)
        assert key(source=source, ignore_identical_ids="auto", bm25_stopwords="english") == key(source=source)
        assert (key(source=source, bm25_stopwords="none") != key(source=source)) == (source == "bm25")
        assert key(source=source, ignore_identical_ids="false") != key(source=source)
    with pytest.raises(UserError, match=r"hard_negatives\.bm25_stopwords"):
        key(source="bm25", bm25_stopwords="klingon")
