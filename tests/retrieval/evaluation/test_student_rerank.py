"""`retrieve rerank` with a student: the order of an exact search over the same passages, from texts and from stored vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from support.in_process import retrieve

from data.config.settings import Student
from data.errors import RunFailed, UserError
from data.formats.trec import Run, read_run, write_run
from data.tables.shards import read_shard
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.evaluation import student_rerank
from retrieval.evaluation.student_rerank import rerank_texts
from retrieval.search.embedding_table import table_paths

LENGTHS = {"query_tokens": "16", "passage_tokens": "48"}


@pytest.fixture(scope="module")
def tables(finished: Any) -> dict[str, Path]:
    """The corpus and queries tables of the finished run."""
    return {name: next((finished.store / "ingest").glob(f"{name}-*")) for name in ("corpus", "queries")}


@pytest.fixture(scope="module")
def vectors(finished: Any) -> dict[str, Path]:
    """Their embeddings, by the student in fp32 with the lengths of `LENGTHS`."""
    return {name: next((finished.store / "embed").glob(f"{name}-*")) for name in ("corpus", "queries")}


@pytest.fixture(scope="module")
def texts(tables: dict[str, Path]) -> dict[str, str]:
    rows = [row for folder in tables.values() for path in table_paths(folder) for row in read_shard(path).to_pylist()]
    return {row.get("doc_id") or row["query_id"]: row["text"] for row in rows}


@pytest.fixture
def run() -> Run:
    """Two queries with passages in common, the second with fewer than the depth; `twin` has the text of `d0`."""
    return {
        "test0": [(f"d{n}", float(-n)) for n in range(30)],
        "dev1": [("d3", 2.0), ("twin", 1.0), ("d9", 0.5), ("d0", 0.25)],
    }


def settings(models: Any, **words: Any) -> Student:
    return Student(model=str(models.student), **{**{name: int(value) for name, value in LENGTHS.items()}, **words})


def by_peer(models: Any, texts: dict[str, str], run: Run, *, depth: int) -> Run:
    """Scores by sentence-transformers, whose tokens are cut as ours."""
    peer = SentenceTransformer(str(models.student), device="cpu")

    def encode(names: list[str], length: int) -> Any:
        peer.max_seq_length = length
        return dict(zip(names, peer.encode([texts[name] for name in names]), strict=True))

    queries = encode(list(run), 16)
    passages = encode([doc for entries in run.values() for doc, _ in entries[:depth]], 48)
    scored = {query: [(doc, float(queries[query] @ passages[doc])) for doc, _ in entries[:depth]] for query, entries in run.items()}
    return {query: sorted(entries, key=lambda entry: -entry[1]) for query, entries in scored.items()}


def test_scores_equal_sentence_transformers(models: Any, tables: dict[str, Path], texts: dict[str, str], run: Run) -> None:
    """Prevents: a passage's score given to another, queries read as passages, entries below the depth, ties in the order of the run."""
    ranked = rerank_texts(run, settings(models), **tables, depth=20, precision="fp32", device="cpu")
    expected = by_peer(models, texts, run, depth=20)
    assert {query: len(entries) for query, entries in ranked.items()} == {"test0": 20, "dev1": 4}
    for query, entries in ranked.items():
        assert dict(entries) == pytest.approx(dict(expected[query]), rel=2e-3, abs=2e-3)
        assert [score for _, score in entries] == sorted((score for _, score in entries), reverse=True)
    names = [doc for doc, _ in ranked["dev1"]]
    assert names.index("twin") == names.index("d0") + 1 and dict(ranked["dev1"])["twin"] == dict(ranked["dev1"])["d0"]


@pytest.mark.medium
@pytest.mark.parametrize("dimensions", ["", "8"])
def test_the_order_is_that_of_a_search(
    tmp_path: Path, models: Any, tables: dict[str, Path], vectors: dict[str, Path], dimensions: str
) -> None:
    """Prevents: a reranked list that a search over the same passages would give in another order, from texts or from vectors."""
    cut = [f"dimensions={dimensions}"] if dimensions else []
    stored = [f"{name}={folder}" for name, folder in vectors.items()]
    assert retrieve("search", *stored, f"out={tmp_path / 'searched'}", "depth=60", "threads=1", *cut) == 0
    searched = read_run(tmp_path / "searched")
    chance = np.random.default_rng(0)
    some = {query: [entries[place] for place in chance.permutation(len(entries))[:25]] for query, entries in searched.items()}
    write_run(tmp_path / "some", {query: [(doc, 0.0) for doc, _ in entries] for query, entries in some.items()}, tag="t")
    expected = {query: [entry for entry in searched[query] if entry in entries] for query, entries in some.items()}
    at = [f"run={tmp_path / 'some'}", f"out={tmp_path / 'again'}", "depth=25", "threads=1", *cut]
    assert retrieve("rerank", *stored, *at) == 0
    assert read_run(tmp_path / "again") == expected  # scores, too
    student = [f"model={models.student}", "precision=fp32", *(f"{name}={value}" for name, value in LENGTHS.items())]
    assert retrieve("rerank", *(f"{name}={folder}" for name, folder in tables.items()), *student, *at) == 0
    ranked = read_run(tmp_path / "again")
    for query, entries in ranked.items():
        scores = dict(expected[query])
        assert {doc for doc, _ in entries} == scores.keys()
        places = [scores[doc] for doc, _ in entries]  # the stored vectors' scores, in the order of the new ones
        assert np.all(np.diff(places) <= 1e-3 * max(map(abs, places)))


def test_each_passage_is_embedded_once(models: Any, tables: dict[str, Path], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a passage embedded for each query that lists it, or all of a corpus for a few."""
    read: list[str] = []
    passages = TextEncoder.passages

    def reading(self: TextEncoder, texts: list[str]) -> Any:
        read.extend(texts)
        return passages(self, texts)

    monkeypatch.setattr(TextEncoder, "passages", reading)
    monkeypatch.setattr(student_rerank, "_WINDOW_PASSAGES", 7)
    monkeypatch.setattr(student_rerank, "_PRODUCTS_AT_ONCE", 3)
    one = rerank_texts(run, settings(models), **tables, depth=5, precision="fp32", device="cpu")
    assert len(read) == len({doc for entries in run.values() for doc, _ in entries[:5]}) == 7
    monkeypatch.undo()
    again = rerank_texts(run, settings(models), **tables, depth=5, precision="fp32", device="cpu")
    for query in run:
        assert dict(one[query]) == pytest.approx(dict(again[query]), rel=1e-3)


@pytest.mark.parametrize(
    ("kinds", "words", "message"),
    [
        ("texts texts", [], "missing model=..."),
        ("vectors texts", [], "queries= are query vectors, corpus= are corpus texts"),
        ("vectors vectors", ["model={m.student}"], "model= is of a model"),
        ("vectors vectors", ["pooling=cls"], "pooling= is of a model"),
        ("vectors vectors", ["scorer=cross_encoder"], "reads texts"),
        ("vectors vectors", ["dimensions=64"], "dimensions=64: the vectors of"),
        ("vectors vectors", ["run={strange}"], "1 passages of the run are not in"),
        ("texts texts", ["model={m.student}", "max_tokens=64", "pooling=cls"], "say scorer="),
        ("texts texts", ["model={m.student}", "scorer=student", "max_tokens=64"], "max_tokens= is of"),
        ("texts texts", ["model={m.teacher}", "scorer=cross_encoder", "pooling=cls"], "pooling= is of"),
        ("texts texts", ["model={m.student}", "scorer=teacher"], "expected auto or cross_encoder"),
        ("texts texts", ["model={m.student}", "dimensions=64"], "have 32"),
        ("texts texts", ["model={m.student}", "run={strange}"], "1 passages of the run are not in"),
        ("texts texts", ["model={m.student}", "batch_tokens=3"], "expected at least 64"),
    ],
)
def test_mistakes_are_told(
    tmp_path: Path, models: Any, tables: dict[str, Path], vectors: dict[str, Path], run: Run, kinds: str, words: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Prevents: a setting that is read over, or the wrong table found out when all passages are embedded."""
    write_run(tmp_path / "run", run, tag="t")
    write_run(tmp_path / "strange", {"test0": [("d1", 1.0), ("nowhere", 0.5)]}, tag="t")
    stored = {"texts": tables, "vectors": vectors}
    given = [f"{name}={stored[kind][name]}" for name, kind in zip(("queries", "corpus"), kinds.split(), strict=True)]
    filled = [word.format(m=models, strange=tmp_path / "strange") for word in words]
    assert retrieve("rerank", f"run={tmp_path / 'run'}", f"out={tmp_path / 'out'}", *given, *filled) == 2
    assert message in (told := capsys.readouterr().err), told
    assert not (tmp_path / "out").exists()


def test_the_folder_says_what_it_is(
    tmp_path: Path, models: Any, tables: dict[str, Path], run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: a student opened as a cross-encoder with a random head, or the other way round; a choice that nobody hears of."""
    write_run(tmp_path / "run", run, tag="t")
    words = ["rerank", f"run={tmp_path / 'run'}", f"out={tmp_path / 'out'}", "precision=fp32", *(f"{n}={p}" for n, p in tables.items())]
    assert retrieve(*words, f"model={models.student}") == 0
    assert "is a dual encoder by its files" in capsys.readouterr().err
    assert retrieve(*words, f"model={models.teacher}") == 2  # taken for a cross-encoder, whose pairs are longer than it can read
    assert "teacher.max_tokens=160" in (told := capsys.readouterr().err) and "dual encoder" not in told
    assert retrieve(*words, f"model={models.teacher}", "max_tokens=64") == 0
    assert retrieve(*words, f"model={models.student}", "scorer=student", "query_tokens=16", "limit=1") == 0
    assert list(read_run(tmp_path / "out")) == ["dev1"]


def test_vectors_that_overflow_are_refused(models: Any, tables: dict[str, Path], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an infinite score at the head of every list."""
    passages = TextEncoder.passages
    monkeypatch.setattr(TextEncoder, "passages", lambda self, texts: passages(self, texts) * np.float32(1e30))
    with pytest.raises(RunFailed, match="not finite in fp16, the first of"):
        rerank_texts(run, settings(models), **tables, depth=5, precision="fp32", device="cpu")


def test_an_empty_run_is_ranked_to_nothing(models: Any, tables: dict[str, Path]) -> None:
    """Prevents: a model that stumbles over no texts at all."""
    assert rerank_texts({}, settings(models), **tables, depth=5, precision="fp32", device="cpu") == {}
    with pytest.raises(UserError, match="1 queries of the run are not in"):
        rerank_texts({"who": [("d1", 1.0)]}, settings(models), **tables, depth=5, precision="fp32", device="cpu")
