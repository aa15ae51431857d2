"""PROD's ladder on tiny models: recipes/prod/prod.yaml with other models and sizes, each step as its commands do it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.config.settings import load
from pipeline.plan import Planner, selected_tables
from trainer import recipes
from trainer.loop import train
from trainer.reporting.metrics import SPEEDS

FILE = Path(__file__).parents[2] / "recipes" / "prod" / "prod.yaml"
STEPS = ("w1_teacher", "w1", "w2_teacher", "w2", "t1", "c1", "t2", "t3", "d1")
SMALLER = {
    "teacher": {"max_tokens": 60, "precision": "fp32"},
    "hard_negatives": {"queries": None, "depth": 20, "last_rank": 20, "negatives": 3},
    "ingest": {"corpus_shards": 2, "query_shards": 2},
    "runner": {"kind": "local"},
    "embed": {"precision": "fp32"},
    "train": {"batch_queries": 4, "precision": "fp32"},
}


@pytest.fixture
def ladder(tmp_path: Path, models: Any, collection: Path) -> Path:
    """The file of the recipe, with tiny models and sizes in place of the demo's."""
    text = FILE.read_text()
    for old, new in {
        "runs/demo/store": tmp_path / "store", "runs/demo/collection": collection, "runs/prod": tmp_path / "runs",
        "runs/demo/models/student": models.student, "runs/demo/models/teacher": models.teacher, "backend: onnx": "backend: torch",
        "layers: 3": "layers: 1", "batch_queries: 32": "batch_queries: 4", "batch_queries: 8": "batch_queries: 4",
        "select: prod": "select: prod_nq",  # of 14 questions random models put hardly any where the other rule wants it
        "depth: 30, last_rank: 30": "depth: 20, last_rank: 20", "queries: 1500, negatives: 7": "negatives: 3",
    }.items():  # fmt: skip
        assert old in text, old
        text = text.replace(old, str(new))
    content = yaml.safe_load(text)
    for section, values in SMALLER.items():
        content[section] = {**content.get(section, {}), **values}
    content["steps"]["dev"]["dev"] = {"queries": 4, "depth": 10}
    file = tmp_path / "prod.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def test_the_ladder_step_by_step_and_again(
    ladder: Path, tmp_path: Path, prep_run: Callable[..., list[str]], count_scored: list[int], capfd: pytest.CaptureFixture[str]
) -> None:
    """Prevents: steps that each work and do not fit together, a student that no one measured, and a rerun that trains or scores again."""

    def place(stage: str, step: str) -> Path:
        experiment = load({"config": str(ladder), "step": step})
        (table,) = selected_tables(experiment, stage)
        return Planner(experiment).plan(table).folder

    def climb() -> None:
        for stage in ("ingest", "embed", "dev"):
            prep_run(ladder, step="dev", stage=stage)
        for step in STEPS:
            prep_run(ladder, step=step)
            words = {"config": str(ladder), "step": step, **({} if step == "c1" else {"dev": str(place("dev", "dev"))})}
            assert train(recipes.load(words), shards_folder=place("shards", step)) == 0

    climb()
    told = capfd.readouterr()
    said = told.out + told.err
    results = {step: json.loads((tmp_path / "runs" / step / "result.json").read_text()) for step in STEPS}
    for step, result in results.items():
        if step != "c1":
            assert 0 < result["last_step"]["dev"]["MRR@10"] <= 1, step
            assert f"{result['last_step']['dev']['MRR@10']:.4f}" in said
    for step in ("t2", "t3", "d1"):
        assert result_of_first_step(tmp_path / "runs" / step)["kept"] > 0, step  # of dropout alone: see the tests of the loss
    weights = [(tmp_path / "runs" / step / "student" / "model.safetensors").read_bytes() for step in ("t1", "t2", "t3", "d1")]
    assert len(set(weights)) == 4
    config = json.loads((tmp_path / "runs" / "d1" / "student" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    assert sum(count_scored) > 0

    count_scored.clear()
    climb()
    assert not count_scored
    assert len(re.findall("this run is finished", capfd.readouterr().out)) == len(STEPS)
    assert {step: json.loads((tmp_path / "runs" / step / "result.json").read_text()) for step in STEPS} == results


def result_of_first_step(output: Path) -> dict[str, Any]:
    """The first line of metrics.jsonl, speeds apart."""
    line = json.loads((output / "metrics.jsonl").read_text().splitlines()[0])
    return {name: value for name, value in line.items() if name not in SPEEDS}
