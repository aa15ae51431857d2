"""A teacher behind HTTP in a whole run: its logits, its price, what is asked twice, and when it is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.rerank_server import RerankServer, logits_of
from support.stores import candidates, forget_scores
from typer.testing import CliRunner

from data.errors import RunFailed, UserError
from data.formats.trec import read_run, write_run
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK
from data.tables.shards import read_shard
from pipeline.cli import app
from retrieval.cli import app as retrieve

Prep = Callable[..., list[str]]


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def served_by(server: RerankServer, **words: Any) -> dict[str, Any]:
    http = {"url": server.url, "shape": server.shape, "documents": 5}
    own = {"teacher.backend": "http", "teacher.model": server.model, "teacher.revision": "1", "teacher.precision": "auto"}
    return {**own, "teacher.http": http, **words}


def as_sent(row: dict[str, Any]) -> tuple[str, str]:
    return row["query"], row["text"].replace(SEPARATOR_MARK, "[SEP]").replace(MASK_MARK, "[MASK]")


def logits(store: Path) -> Any:
    return np.array([row["logit"] for path in sorted(store.glob("teacher_scores/*/*.parquet")) for row in read_shard(path).to_pylist()])


@pytest.mark.medium
def test_a_whole_run(tmp_path: Path, tiny_experiment: Any, prep_run: Prep, rerank_server: Any) -> None:
    """Prevents: a stage that wants a tokenizer or a folder of the teacher; pairs paid for twice; a server that cached runs need."""
    server = rerank_server(shape="rerank")
    config, store = tiny_experiment(tmp_path, **served_by(server)), tmp_path / "store"
    lines = prep_run(config)
    assert any("note: teacher.http.scores" in line for line in lines) and any("the server cuts long pairs" in line for line in lines)
    sent = [as_sent(row) for row in candidates(store)]
    np.testing.assert_allclose(logits(store), logits_of(sent), atol=1e-3)
    tried = {pair for pair in server.asked if pair[0] == "how a plant makes sugar"}
    assert server.asked.keys() - tried == set(sent) and all(server.asked[pair] == 1 for pair in set(sent)), "each pair once"
    assert max(len(body["documents"]) for body in server.bodies) == 5

    server.asked.clear()
    first, *_ = scores = sorted(store.glob("teacher_scores/*/*.parquet"))
    before = first.read_bytes()
    for path in scores:
        path.unlink()
    prep_run(config)
    assert not server.asked and first.read_bytes() == before, "the logit store has them all"

    plan = CliRunner().invoke(app, ["plan", f"config={config}", "stage=teacher_scores", "teacher.revision=2"]).output
    assert "teacher.revision" in plan and "to score\n" in plan and "hours: not known, they are the server's" in plan
    assert not server.asked, "a plan asks for nothing"

    server.model = "another"
    with pytest.raises(UserError, match=r"serves another, not teacher.model=tiny-reranker"):
        prep_run(config, **{"teacher.revision": 2})
    server.stop()
    assert prep_run(config), "complete: no server is needed"
    fewer = {"dark_examples.reinforced": False, "teacher.http.patience": 0}
    with pytest.raises(RunFailed, match="cannot be reached"):  # before it is known which pairs there are
        prep_run(config, **fewer)
    prep_run(config, stage="dark_examples", **fewer)
    assert prep_run(config, **fewer), "none of them is new"
    server.start()


@pytest.mark.medium
def test_a_server_that_fails_gives_the_same_table(
    tmp_path: Path, tiny_experiment: Any, prep_run: Prep, rerank_server: Any, parquet_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: other bytes because an answer came late, in another order, or at the third try."""
    from retrieval.teachers.http import client

    monkeypatch.setattr(client, "FIRST_WAIT", 0.01)
    server = rerank_server(shape="score")
    config, store = tiny_experiment(tmp_path, **served_by(server)), tmp_path / "store"
    prep_run(config)
    expected = parquet_files(store)
    forget_scores(store)
    server.faults.extend(["", "", *["500", "503", "reset", "cut", "twice", "nan", "html", "", "429"] * 3])
    prep_run(config, **{"teacher.segment_pairs": 20, "teacher.http.documents": 3, "teacher.http.retries": 30})
    assert parquet_files(store) == expected and not server.faults


@pytest.mark.medium
def test_a_run_is_reranked_by_a_server(finished: Any, rerank_server: Any, tmp_path: Path) -> None:
    """Prevents: settings of the server that `retrieve rerank` does not take."""
    server = rerank_server(shape="tei")
    write_run(tmp_path / "a.run", {"test0": [("d0", 2.0), ("d1", 1.0), ("d2", 0.5)]}, tag="t")
    (corpus,), (queries,) = (list((finished.store / "ingest").glob(f"{name}-*")) for name in ("corpus", "queries"))
    words = [f"model={server.model}", f"run={tmp_path / 'a.run'}", f"corpus={corpus}", f"queries={queries}", f"out={tmp_path / 'b.run'}"]
    words += ["backend=http", "revision=1", f"http.url={server.url}", "http.shape=tei", "http.documents=2"]
    done = CliRunner().invoke(retrieve, ["rerank", *words])
    assert done.exit_code == 0, done.output
    ((_, entries),) = read_run(tmp_path / "b.run").items()
    texts = {row["doc_id"]: row["text"] for path in corpus.glob("*.parquet") for row in read_shard(path).to_pylist()}
    query = next(row["text"] for path in queries.glob("*.parquet") for row in read_shard(path).to_pylist() if row["query_id"] == "test0")
    expected = {doc_id: float(logits_of([(query, texts[doc_id])])[0]) for doc_id in ("d0", "d1", "d2")}
    assert [doc_id for doc_id, _ in entries] == sorted(expected, key=lambda doc_id: -expected[doc_id])
    np.testing.assert_allclose([logit for _, logit in entries], sorted(expected.values(), reverse=True), atol=1e-5)
    wrong = CliRunner().invoke(retrieve, ["rerank", *words, "http.shap=x"])
    assert wrong.exit_code == 2 and "unknown key http.shap; nearest: http.shape" in wrong.output
