"""Several positives of a query from the labels to the training rows, and what is told of them."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from data.config.settings import Objective, load
from data.errors import UserError
from data.tables.shards import read_shard
from pipeline.cli import app
from pipeline.report.inspect import show
from pipeline.report.page import write_report
from trainer.input.stream import TrainingRow, open_training_shards, rows_of_epoch
from trainer.objective.plan import plan_batch

Prep = Callable[..., list[str]]
PLAIN = {"dark_examples.reinforced": False, "dark_examples.mask_ratios": "[]"}


@pytest.fixture(scope="module")
def graded(tmp_path_factory: pytest.TempPathFactory, collection: Path) -> Path:
    """The collection with two more labels of `train1`, of grades 3 and 2."""
    folder = shutil.copytree(collection, tmp_path_factory.mktemp("graded") / "collection")
    with open(folder / "qrels" / "train.tsv", "a") as file:
        file.write("train1\td41\t3\ntrain1\td42\t2\n")
    return folder


def tables_of(store: Path, pattern: str) -> list[dict[str, Any]]:
    return [row for path in sorted(store.glob(f"{pattern}/*.parquet")) for row in read_shard(path).to_pylist()]


def training_rows(store: Path, *, epochs: int = 1) -> list[TrainingRow]:
    (folder,) = store.glob("shards/*")
    said = json.loads(pq.read_schema(next(folder.glob("*.parquet"))).metadata[b"training"])
    shards = open_training_shards(folder, tokenizer=said["tokenizer"])
    return [row for epoch in range(epochs) for row in rows_of_epoch(shards, seed=0, epoch=epoch)]


def counts_of(store: Path) -> dict[str, Any]:
    (manifest,) = store.glob("hard_negatives/*/manifest.json")
    return json.loads(manifest.read_text())["counts"]


def page_of(config: Path) -> str:
    out = config.parent / "report.html"
    write_report(load({"config": str(config)}), out)
    return " ".join(out.read_text().split())


@pytest.mark.medium
def test_rotation_through_a_run(graded: Path, tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep) -> None:
    """Prevents: epochs that all train the same of several positives, a grade that counts for nothing, labels left out without a word."""
    settings = {"hard_negatives.positives": "rotate", "hard_negatives.draws": 3, "hard_negatives.sampler": "top"}
    config = tiny_experiment(tmp_path, **{"ingest.path": graded, **settings, **PLAIN})
    lines = prep_run(config)
    trained = [row.candidate_ids[0] for row in training_rows(config.parent / "store", epochs=3) if row.query_id == "train1"]
    assert trained == ["d41", "d42", "d1"]
    assert counts_of(config.parent / "store")["positives"] == {"labelled": 17, "in no list": 1, "promoted": 0}
    assert any("of 17 labelled positives 1 are p+ of no list" in line for line in lines)
    assert "Of 17 labelled positives 1 are p+ of no list." in page_of(config)


@pytest.fixture(scope="module")
def each(graded: Path, tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Callable[..., Path], prep_run: Prep) -> Path:
    """Config of a finished run with a list for each positive."""
    settings = {"hard_negatives.positives": "each", "dark_examples.mask_draws": 2, "train.batch_queries": 17, **PLAIN}
    config = tiny_experiment(tmp_path_factory.mktemp("each"), **{"ingest.path": graded, **settings})
    prep_run(config)
    return config


@pytest.mark.medium
def test_each_positive_through_a_run(each: Path) -> None:
    """Prevents: a row less than there are labels, another positive of the query among the batch's negatives."""
    rows = training_rows(each.parent / "store")
    trained = Counter((row.query_id, row.candidate_ids[0]) for row in rows)
    assert len(rows) == 17 and set(trained.values()) == {1}
    of_query = {"d1", "d40", "d41", "d42"}
    assert {doc_id for query_id, doc_id in trained if query_id == "train1"} == of_query
    work = plan_batch(rows, objective=Objective(in_batch="both"), share=Fraction(1))
    ids: dict[bytes, set[str]] = {}
    for row in rows:
        for doc_id, tokens in zip(row.candidate_ids, row.candidate_tokens, strict=True):
            ids.setdefault(tokens.tobytes(), set()).add(doc_id)
    assert work.in_batch is not None
    passages = [ids[work.sequences[number]] for number in work.in_batch.passages_N]
    for place in (place for place, query in enumerate(work.queries) if query.query_id == "train1"):
        open_to = set(range(len(passages))) - set(work.in_batch.closed_to([place]).tolist())
        assert open_to and not any(passages[number] & of_query for number in open_to)
    assert "Of 17 labelled positives 0 are p+ of no list." in page_of(each)


@pytest.mark.medium
def test_all_lists_of_a_query_are_shown(each: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a query with several positives judged by the list of the first one, and lists of the next query taken for its own."""
    monkeypatch.setenv("COLUMNS", "200")
    show(load({"config": str(each)}), query_id="train1", width=20)
    said = capsys.readouterr().out
    assert said.count("train1  ") == said.count("C(q) ") == 8  # four positives, two draws of masks
    shown = {line.split("│")[2].strip() for line in said.splitlines() if line.startswith("│ positive ")}
    assert shown == {"d1", "d40", "d41", "d42"} and said.count("draw 0 ") == said.count("draw 1 ") == 4


@pytest.mark.medium
def test_lists_of_each_positive_leave_and_come_back(
    each: Path, graded: Path, tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep
) -> None:
    """Prevents: an import that takes the lists of a query's positives for doubles, or that loses some."""
    words = ["export", f"config={each}", "format=lists", f"out={tmp_path / 'exported'}"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    config = tiny_experiment(tmp_path, **{"lists.path": tmp_path / "exported", "ingest.path": graded, "teacher.backend": "none", **PLAIN})
    prep_run(config)
    there, back = training_rows(each.parent / "store", epochs=2), training_rows(tmp_path / "store", epochs=2)
    assert [(row.query_id, row.candidate_ids) for row in there] == [(row.query_id, row.candidate_ids) for row in back] and len(back) == 34


@pytest.mark.medium
def test_a_batch_with_several_lists_of_a_query_is_trained(each: Path, tmp_path: Path, command: Any) -> None:
    """Prevents: a step whose reported loss lacks the other lists of a query."""
    (shards,) = (each.parent / "store").glob("shards/*")
    recipe = ["train.recipe=hard_kd", "train.epochs=1", f"train.output={tmp_path}", "train.tracker=none"]
    done = command("train", "run", f"config={each}", f"shards={shards}", *recipe)
    assert done.returncode == 0, done.stdout + done.stderr
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()[-1:]
    assert json.loads(line)["queries"] == 17


@pytest.mark.medium
def test_promotion_through_a_run(collection: Path, tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep) -> None:
    """Prevents: promotions that no list is trained with, of passages that people judged irrelevant, or that are the batch's negatives."""
    settings = {"hard_negatives.positives": "each", "hard_negatives.promote_margin": 0.1}
    first = tiny_experiment(tmp_path / "first", **settings, **PLAIN)
    lines = prep_run(first)
    rows = tables_of(first.parent / "store", "hard_negatives/*")
    promoted = {row["query_id"]: row["promoted_ids"] for row in rows if row["promoted_ids"]}
    total = sum(map(len, promoted.values()))
    assert promoted and counts_of(first.parent / "store")["positives"]["promoted"] == total
    assert any(f"{total} passages were promoted to positives" in line for line in lines)
    assert f"{total} passages were promoted to positives" in page_of(first)
    for row in training_rows(first.parent / "store"):
        assert set(promoted.get(row.query_id, [])) <= set(row.never_ids)
        assert not set(row.candidate_ids[1:]) & set(promoted.get(row.query_id, []))
    assert {(row.query_id, row.candidate_ids[0]) for row in training_rows(first.parent / "store")} >= {
        (query_id, doc_id) for query_id, ids in promoted.items() for doc_id in ids
    }

    query_id = next(iter(promoted))
    wrong = promoted[query_id][0]
    judged = shutil.copytree(collection, tmp_path / "judged")
    for split, grade in (("train", 0), ("dev", 0)):
        with open(judged / "qrels" / f"{split}.tsv", "a") as file:
            file.write(f"{query_id}\t{wrong}\t{grade}\n")
    second = tiny_experiment(tmp_path / "second", **{"ingest.path": judged, **settings, **PLAIN})
    prep_run(second)
    (row,) = (row for row in tables_of(second.parent / "store", "hard_negatives/*") if row["query_id"] == query_id)
    assert row["promoted_ids"] == promoted[query_id][1:] and wrong not in row["list_positive_ids"]


def test_a_curriculum_has_all_positives_and_fills_nothing(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: settings without effect beside CL-DRD's lists."""
    settings = {"curriculum": {"enabled": True, "iterations": "2/2/2", "near_rank": 6, "retrieved": 15}, "hard_negatives.positives": "each"}
    with pytest.raises(UserError, match=r"has all positives in its lists: leave hard_negatives\.positives=each out"):
        load({"config": str(tiny_experiment(tmp_path, **settings))})
    filled = {"curriculum": settings["curriculum"], "hard_negatives.range_max": 6, "hard_negatives.fill_to": 15}
    with pytest.raises(UserError, match=r"draws by ranks alone, and fills nothing: leave hard_negatives\.fill_to=15 out"):
        load({"config": str(tiny_experiment(tmp_path, **filled))})


@pytest.mark.medium
def test_grades_of_positives_through_a_run(graded: Path, tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep) -> None:
    """Prevents: the grade of another p+ or of another split, stages made again for a column, and grades in shards that nobody asked for."""
    settings = {"ingest.path": graded, "hard_negatives.positives": "each", "hard_negatives.promote_margin": 0.1, **PLAIN}
    config = tiny_experiment(tmp_path / "graded", **settings)
    store = config.parent / "store"
    prep_run(config)
    before = {path.parent for path in store.glob("*/*/manifest.json")}
    plain = training_rows(store)
    assert all(row.positive_grade is None for row in plain)
    prep_run(config, **{"hard_negatives.positive_grades": True})
    (new,) = {path.parent for path in store.glob("*/*/manifest.json")} - before
    assert new.parent.name == "shards"
    shards = open_training_shards(new, tokenizer=json.loads(pq.read_schema(min(new.glob("*.parquet"))).metadata[b"training"])["tokenizer"])
    lines = [line.split("\t") for line in (graded / "qrels" / "train.tsv").read_text().splitlines()[1:]]
    labels = {(query_id, doc_id): int(grade) for query_id, doc_id, grade in lines}
    rows = list(rows_of_epoch(shards, seed=0, epoch=0))
    assert {(row.query_id, row.candidate_ids) for row in rows} == {(row.query_id, row.candidate_ids) for row in plain}
    assert all(row.positive_grade == labels.get((row.query_id, row.candidate_ids[0]), 0) for row in rows)
    assert {row.candidate_ids[0]: row.positive_grade for row in rows if row.query_id == "train1"}.items() >= {"d41": 3, "d42": 2}.items()
    assert shards.grades == {row.positive_grade for row in rows} >= {0, 1, 2, 3}
    for other in (
        {
            "curriculum.enabled": True,
            "curriculum.retrieved": 20,
            "curriculum.near_rank": 15,
            "curriculum.iterations": "2/2/2",
            "hard_negatives.promote_margin": "null",
            "hard_negatives.positives": "one",
        },
        {"lists.path": tmp_path},
    ):
        with pytest.raises(UserError, match=r"leave hard_negatives\.positive_grades out"):
            load({"config": str(config), "hard_negatives.positive_grades": "true", **{key: str(value) for key, value in other.items()}})
