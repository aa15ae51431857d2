"""A teacher of imported logits in whole runs: what it can, what it is told it cannot before any work, and which pairs it lacks."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from support.stores import candidates
from typer.testing import CliRunner

from data.config.settings import load
from data.errors import UserError
from data.formats.trec import write_run
from data.logits.declared import DeclaredTeacher
from data.logits.segment import Scores, as_keys
from data.logits.store import LogitStore
from data.tables.shards import read_shard
from pipeline.cli import app
from pipeline.plan import tables
from retrieval.cli import app as retrieve
from retrieval.models.resolved import ResolvedModels
from trainer.cli import app as train

Prep = Callable[..., list[str]]

PLAIN: dict[str, Any] = {"dark_examples.reinforced": False, "dark_examples.mask_ratios": []}
NAMED: dict[str, Any] = {"teacher.backend": "imported", "teacher.model": "lab/big reranker", "teacher.precision": "auto", **PLAIN}


def key_of(query: str, text: str) -> bytes:
    """The key of a pair as the documents describe it."""
    parts = [part.encode() for part in (query, text)]
    return hashlib.blake2b(b"".join(len(part).to_bytes(4, "little") + part for part in parts), digest_size=16).digest()


def put_logits(store: Path, logits: dict[tuple[str, str], float], teacher: DeclaredTeacher | None = None) -> None:
    """What an import leaves in a store."""
    teacher = teacher or DeclaredTeacher("lab/big reranker", "1")
    place = LogitStore(store, teacher.namespace)
    place.describe(key=teacher.key, name=teacher.name)
    scores = Scores.unknown(len(logits))
    scores.logits[:] = list(logits.values())
    place.append(as_keys([key_of(*pair) for pair in logits]), scores)


def scored(store: Path, stage: str, rows: str) -> dict[tuple[str, str], float]:
    """The logits of a stage's pairs."""
    tables = [
        [row for path in sorted(store.glob(pattern)) for row in read_shard(path).to_pylist()] for pattern in (rows, f"{stage}/*/*.parquet")
    ]
    return {(row["query"], row["text"]): found["logit"] for row, found in zip(*tables, strict=True)}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Any, prep_run: Prep) -> Path:
    """The store of a finished run without dark examples, its pools scored."""
    config = tiny_experiment(tmp_path_factory.mktemp("plain"), **PLAIN, **{"hard_negatives.score_pools": True})
    prep_run(config)
    return config.parent / "store"


def logits_of_pools(plain: Path) -> dict[tuple[str, str], float]:
    return scored(plain, "pool_scores", "pools/pairs-*/*.parquet")


def rows_of(store: Path, stage: str) -> list[dict[str, Any]]:
    return [row for path in sorted(store.glob(f"{stage}/*/*.parquet")) for row in read_shard(path).to_pylist()]


@pytest.mark.medium
def test_a_whole_run_without_the_model(plain: Path, tmp_path: Path, tiny_experiment: Any, prep_run: Prep) -> None:
    """Prevents: a stage that looks for a model or a tokenizer of the teacher; other rows than with the teacher itself."""
    config, store = tiny_experiment(tmp_path, **NAMED), tmp_path / "store"
    put_logits(store, logits_of_pools(plain))
    prep_run(config)
    for stage in ("dark_examples", "confidence", "shards"):
        assert rows_of(store, stage) == rows_of(plain, stage)
    assert [row["logit"] for row in rows_of(store, "teacher_scores")] == [row["logit"] for row in rows_of(plain, "teacher_scores")]
    (said, *_) = {pq.read_schema(path).metadata[b"training"] for path in store.glob("shards/*/*.parquet")}
    assert json.loads(said)["teachers"] == [DeclaredTeacher("lab/big reranker", "1").namespace]
    report = CliRunner().invoke(app, ["report", f"config={config}", f"out={tmp_path / 'report.html'}"])
    assert report.exit_code == 0 and "lab/big reranker (imported)" in (tmp_path / "report.html").read_text()
    plan = CliRunner().invoke(app, ["plan", f"config={config}", "stage=teacher_scores", "seed=1", "hard_negatives.num_negatives=2"])
    assert plan.exit_code == 0 and "nothing to pay" in plan.output and "hours" not in plan.output


@pytest.mark.medium
@pytest.mark.parametrize(
    "method",
    [
        {"hard_negatives.sampler": "stratified", "hard_negatives.false_negatives": {"absolute_margin": 0.1, "teacher_percentile": 95}},
        {"hard_negatives.select": "prod"},
        {"curriculum": {"enabled": True, "iterations": "2/2/2", "near_rank": 6, "retrieved": 15}},
    ],
    ids=["rules", "prod", "curriculum"],
)
def test_the_methods_that_go_by_its_ranking(
    method: dict[str, Any], plain: Path, tmp_path: Path, tiny_experiment: Any, prep_run: Prep, models: Any
) -> None:
    """Prevents: a rule, a sampler or a curriculum that works with a loaded model alone."""
    of_model, of_import = tiny_experiment(tmp_path / "a", **PLAIN, **method), tiny_experiment(tmp_path / "b", **NAMED, **method)
    prep_run(of_model)
    put_logits(tmp_path / "b" / "store", logits_of_pools(plain))
    prep_run(of_import)
    assert rows_of(tmp_path / "a" / "store", "shards") == rows_of(tmp_path / "b" / "store", "shards") != []


@pytest.mark.medium
def test_missing_pairs_are_told_before_the_first_shard(plain: Path, tmp_path: Path, tiny_experiment: Any, prep_run: Prep) -> None:
    """Prevents: a table half built, or a NaN for a logit, since some pairs were never scored; a number nobody can act on."""
    config, store = tiny_experiment(tmp_path, **NAMED), tmp_path / "store"
    needed = {(row["query"], row["text"]): row for row in rows_of(plain, "dark_examples")}
    left_out = sorted(needed)[:3]
    put_logits(store, {pair: logit for pair, logit in logits_of_pools(plain).items() if pair not in left_out})
    with pytest.raises(UserError) as refused:
        prep_run(config)
    told = str(refused.value)
    assert f"3 of {len(needed)} distinct pairs" in told and "prep export config=FILE format=pairs missing=true" in told
    named = [f"query {needed[pair]['query_id']} with passage {needed[pair]['candidate_id']};" for pair in left_out]
    assert any(name in told for name in named)
    assert not list(store.glob("teacher_scores/*/*.parquet"))
    plan = CliRunner().invoke(app, ["plan", f"config={config}", "stage=teacher_scores"])
    assert plan.exit_code == 0 and f"3 of {len(needed)} distinct pairs" in plan.output
    put_logits(store, {pair: 1.5 for pair in left_out})
    prep_run(config)
    assert sorted(row["logit"] for row in rows_of(store, "teacher_scores")).count(1.5) == sum(
        (row["query"], row["text"]) in left_out for row in candidates(store)
    )


@pytest.mark.medium
def test_a_namespace_of_another_store_has_its_fingerprints(copied: Any, tmp_path: Path, prep_run: Prep, tiny_experiment: Any) -> None:
    """Prevents: a colleague without the models whose store is stale from end to end, or who is asked to score again."""
    store = copied.store
    (namespace,) = (path.name for path in (store / "teacher_logits").iterdir())
    named = {"teacher.backend": "imported", "teacher.model": f"namespace:{namespace[:6]}", "teacher.precision": "auto"}
    config = tiny_experiment(copied.config.parent, **named)
    assert not [line for line in prep_run(config) if "built" in line]
    before = {path.name: path.read_bytes() for path in store.glob("teacher_scores/*/*.parquet")}
    shutil.rmtree(store / "teacher_scores")
    prep_run(config)
    assert {path.name: path.read_bytes() for path in store.glob("teacher_scores/*/*.parquet")} == before
    (table,) = store.glob("dark_examples/*")
    shutil.rmtree(table)
    with pytest.raises(UserError, match="stage=dark_examples is not complete, and dark examples need a teacher that reads texts"):
        prep_run(config)
    assert not list(store.glob("dark_examples/*/*.parquet"))
    prep_run(config, **{"dark_examples.reinforced": "false", "dark_examples.mask_ratios": "[]"})
    assert rows_of(store, "teacher_scores"), "plain lists need no tokenizer of it"


def test_its_logits_lie_where_an_import_puts_them(tmp_path: Path, tiny_experiment: Any) -> None:
    """Prevents: a teacher whose namespace moves between versions, and with it every logit that was imported."""
    models = ResolvedModels(load({"config": str(tiny_experiment(tmp_path, **NAMED))}))
    assert models.key("teacher") == {"kind": "imported", "name": "lab/big reranker", "revision": "1", "scores": "logit"}
    text = '{"kind":"imported","name":"lab/big reranker","revision":"1","scores":"logit"}'
    assert models.namespace == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    other = ResolvedModels(load({"config": str(tmp_path / "tiny.yaml"), "teacher.imported.scores": "cosine", "teacher.revision": "2"}))
    assert (other.key("teacher")["scores"], other.key("teacher")["revision"]) == ("cosine", "2")
    assert any("train.objective.temperature" in note for note in other.teacher.notes()) and not models.teacher.notes()


def test_no_device_is_asked_for(tmp_path: Path, tiny_experiment: Any) -> None:
    """Prevents: a run that reads logits from a file and is refused because the GPU of its settings is elsewhere."""
    experiment = load({"config": str(tiny_experiment(tmp_path, **NAMED, **{"hard_negatives.score_pools": True}))})
    of_teacher = [table for table in tables(experiment) if table.scores_pairs_of]
    assert len(of_teacher) == 2 and not any(table.uses_device or table.rounds_by_device for table in of_teacher)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dark examples": ({"dark_examples.reinforced": True}, "set dark_examples.reinforced=false dark_examples.mask_ratios=\\[\\]"),
    "masks": ({"dark_examples.mask_ratios": "0.5"}, "cannot read dark examples"),
    "a template": ({"teacher.template": "rankllama"}, "teacher.template is given, which teacher.backend=imported does not read"),
    "an instruction": ({"teacher.instruction": ""}, "teacher.instruction is given"),
    "a server": ({"teacher.http": {"url": "http://localhost:1"}}, "teacher.http is given"),
    "a precision": ({"teacher.precision": "bf16"}, "teacher.precision=bf16 means nothing to teacher.backend=imported"),
    "code": ({"teacher.trust_remote_code": True}, "teacher.trust_remote_code=True means nothing"),
    "a kind of scores without it": (
        {"teacher.backend": "torch", "teacher.imported": {"scores": "cosine"}},
        "teacher.imported is given, which",
    ),
    "no namespace": ({"teacher.model": "namespace:zz"}, r"namespace:zz is no namespace of the store; it has those of [0-9a-f]{12} \(other"),
    "two namespaces": ({"teacher.model": "namespace:"}, "is the start of 2 namespaces: give more of it"),
    "a namespace and a revision": ({"teacher.model": "namespace:{0}", "teacher.revision": "3"}, "teacher.revision=3: .* leave it out"),
    "a lost note": ({"teacher.model": "namespace:ff"}, "its namespace.json is lost or damaged"),
    "nothing to complete": ({"teacher.completes": "other"}, "beside a teacher that reads texts"),
    "no logits of that name": (
        {},
        r"no logits of teacher.model=lab/big reranker: it has those of .*\(other, revision=1, scores=logit\).*prep import FILE",
    ),
}


@pytest.mark.medium
@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_is_told_before_any_work(case: str, tmp_path: Path, tiny_experiment: Any, prep_run: Prep) -> None:
    """Prevents: hours of mining before it is known that there is no such teacher, or that it cannot read what is asked."""
    settings, told = REFUSED[case]
    other = DeclaredTeacher("other", "1")
    put_logits(tmp_path / "store", {("q", "p"): 1.0}, other)
    (tmp_path / "store" / "teacher_logits" / ("ff" + 30 * "0")).mkdir()
    given = {name: str(value).format(other.namespace[:8]) if name == "teacher.model" else value for name, value in settings.items()}
    with pytest.raises(UserError, match=told):
        prep_run(tiny_experiment(tmp_path, **{**NAMED, **given}))
    assert not (tmp_path / "store" / "embed").exists()


def test_other_commands_say_that_it_reads_no_texts(finished: Any, tmp_path: Path, tiny_experiment: Any) -> None:
    """Prevents: a traceback from `retrieve rerank` and from the training of a cross-encoder."""
    write_run(tmp_path / "a.run", {"test0": [("d0", 2.0)]}, tag="t")
    (corpus,), (queries,) = (list((finished.store / "ingest").glob(f"{name}-*")) for name in ("corpus", "queries"))
    words = [
        "model=lab",
        f"run={tmp_path / 'a.run'}",
        f"corpus={corpus}",
        f"queries={queries}",
        f"out={tmp_path / 'b.run'}",
        "backend=imported",
    ]
    done = CliRunner().invoke(retrieve, ["rerank", *words])
    assert done.exit_code == 2 and "can read no others" in done.output
    (shards,) = finished.store.glob("shards/*")
    config = tiny_experiment(tmp_path, **NAMED)
    done = CliRunner().invoke(train, ["run", f"config={config}", f"shards={shards}", "train.task=cross_encoder"])
    assert done.exit_code == 2 and "logits that were imported cannot be trained" in done.output


@pytest.mark.medium
def test_logits_that_go_while_they_are_read(plain: Path, tmp_path: Path, tiny_experiment: Any, prep_run: Prep, monkeypatch: Any) -> None:
    """Prevents: NaN logits in a table, where a namespace was deleted after the first look."""
    config, store = tiny_experiment(tmp_path, **NAMED), tmp_path / "store"
    put_logits(store, logits_of_pools(plain))
    prep_run(config, stage="ingest")
    for stage in ("embed", "pools", "hard_negatives", "dark_examples"):
        prep_run(config, stage=stage)
    monkeypatch.setattr("pipeline.scoring.pricing.refuse_missing", lambda *words, **more: shutil.rmtree(store / "teacher_logits"))
    with pytest.raises(Exception, match="were logits deleted meanwhile"):
        prep_run(config)
    assert not list(store.glob("teacher_scores/*/*.parquet"))
    assert np.isfinite(list(logits_of_pools(plain).values())).all()


@pytest.mark.medium
def test_a_teacher_completes_what_was_imported(
    plain: Path, tmp_path: Path, tiny_experiment: Any, prep_run: Prep, count_scored: list[int]
) -> None:
    """Prevents: pairs paid for that were imported; a table that changes when more is imported; logits under the teacher's own name."""
    config, store = tiny_experiment(tmp_path, **{"teacher.completes": "lab/big reranker@7"}), tmp_path / "store"
    declared = DeclaredTeacher("lab/big reranker", "7")
    given = {pair: logit + 0.01 for pair, logit in logits_of_pools(plain).items()}
    put_logits(store, given, declared)
    lines = prep_run(config)
    assert any("32 imported logits differ from the teacher's own by at most 0.01" in line for line in lines)
    found = scored(store, "teacher_scores", "dark_examples/*/*.parquet")
    of_import = {pair for pair in found if pair in given}
    assert of_import and all(found[pair] == np.float32(given[pair]) for pair in of_import)
    assert sum(count_scored) == 32 + len(found) - len(of_import), "those that are compared, and those that are missing"
    namespaces = {path.name for path in (store / "teacher_logits").iterdir()}
    own = ResolvedModels(load({"config": str(config), "teacher.completes": "null"}))
    assert len(namespaces) == 2 and own.namespace not in namespaces

    before = {path.name: path.read_bytes() for path in store.glob("teacher_scores/*/*.parquet")}
    shutil.rmtree(store / "teacher_scores")
    shutil.rmtree(store / "teacher_logits" / declared.namespace)
    count_scored.clear()
    prep_run(config)
    assert {path.name: path.read_bytes() for path in store.glob("teacher_scores/*/*.parquet")} == before and not count_scored


@pytest.mark.medium
def test_logits_of_another_teacher_are_not_completed(plain: Path, tmp_path: Path, tiny_experiment: Any, prep_run: Prep) -> None:
    """Prevents: the logits of two teachers in one list; all pairs paid for again, by a name that is misspelt."""
    config, store = tiny_experiment(tmp_path, **{"teacher.completes": "lab/big reranker"}), tmp_path / "store"
    with pytest.raises(UserError, match=r"lab/big reranker@1: the store .* has no logits of it, scores=logit: it has no logits of any"):
        prep_run(config)
    assert not list(store.glob("*/*/*.parquet")), "told before any work"
    put_logits(store, {pair: logit + 0.5 for pair, logit in logits_of_pools(plain).items()})
    with pytest.raises(UserError, match="they are not the logits of one teacher"):
        prep_run(config)
    assert not list(store.glob("teacher_scores/*/*.parquet"))
    for name in ("@1", "lab@", ""):
        with pytest.raises(UserError, match="expected NAME or NAME@REVISION"):
            _ = ResolvedModels(load({"config": str(config)}).model_copy(update={"teacher": _completing(config, name)})).teacher


def _completing(config: Path, name: str) -> Any:
    return load({"config": str(config)}).teacher.model_copy(update={"completes": name})
