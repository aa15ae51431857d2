"""PROD's phases on tiny models: recipes/prod/prod.yaml with other models and sizes."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.phases import run_in_process

from pipeline.phases import run_phases
from trainer.reporting.metrics import SPEEDS

FILE = Path(__file__).parents[2] / "recipes" / "prod" / "prod.yaml"
PHASES = ("w1_teacher", "w1", "w2_teacher", "w2", "t1", "c1", "t2", "t3", "d1")
SMALLER = {
    "teacher": {"max_tokens": 60, "precision": "fp32"},
    "hard_negatives": {"queries": None, "depth": 20, "range_max": 20, "num_negatives": 3},
    "ingest": {"corpus_shards": 2, "query_shards": 2},
    "runner": {"kind": "local"},
    "embed": {"precision": "fp32"},
    "train": {"batch_queries": 4, "precision": "fp32"},
}


@pytest.fixture
def file(tmp_path: Path, models: Any, collection: Path) -> Path:
    """The file of the recipe, with tiny models and sizes in place of the demo's."""
    text = FILE.read_text()
    for old, new in {
        "runs/demo/store": tmp_path / "store", "runs/demo/collection": collection, "runs/prod": tmp_path / "runs",
        "runs/demo/models/student": models.student, "runs/demo/models/teacher": models.teacher, "backend: onnx": "backend: torch",
        "layers: 3": "layers: 1", "batch_queries: 32": "batch_queries: 4", "batch_queries: 8": "batch_queries: 4",
        "select: prod": "select: prod_nq",  # of 14 questions random models put hardly any where the other rule wants it
        "depth: 30, range_max: 30": "depth: 20, range_max: 20", "queries: 1500, num_negatives: 7": "num_negatives: 3",
    }.items():  # fmt: skip
        assert old in text, old
        text = text.replace(old, str(new))
    content = yaml.safe_load(text)
    for section, values in SMALLER.items():
        content[section] = {**content.get(section, {}), **values}
    content["phases"]["dev"]["dev"] = {"queries": 4, "depth": 10}
    file = tmp_path / "prod.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return file


def test_all_phases_and_again(
    file: Path, tmp_path: Path, count_scored: list[int], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: phases that each work and do not fit together, a student that no one measured, and a rerun that trains or scores again."""
    run_in_process(monkeypatch)

    def climb() -> None:
        assert run_phases({"config": str(file)}, names=[], say=print) == 0

    climb()
    told = capfd.readouterr()
    said = told.out + told.err
    results = {phase: json.loads((tmp_path / "runs" / phase / "result.json").read_text()) for phase in PHASES}
    for phase, result in results.items():
        if phase != "c1":
            assert 0 < result["last_step"]["dev"]["MRR@10"] <= 1, phase
            assert f"{result['last_step']['dev']['MRR@10']:.4f}" in said
    for phase in ("t2", "t3", "d1"):
        assert result_of_first_step(tmp_path / "runs" / phase)["kept"] > 0, phase  # of dropout alone: see the tests of the loss
    weights = [(tmp_path / "runs" / phase / "student" / "model.safetensors").read_bytes() for phase in ("t1", "t2", "t3", "d1")]
    assert len(set(weights)) == 4
    config = json.loads((tmp_path / "runs" / "d1" / "student" / "config.json").read_text())
    assert config["num_hidden_layers"] == 1
    assert sum(count_scored) > 0

    assert (tmp_path / "runs" / "c1" / "reranked.dev.trec").is_file() and (tmp_path / "runs" / "start.dev.trec").is_file()

    def results_now() -> dict[str, Any]:
        return {phase: json.loads((tmp_path / "runs" / phase / "result.json").read_text()) for phase in PHASES}

    count_scored.clear()
    climb()
    assert not count_scored
    assert len(re.findall("finished already", capfd.readouterr().out)) == len(PHASES) + 1
    shutil.rmtree(tmp_path / "store" / "phases")
    climb()
    assert sum(count_scored) == 4 * 20 and results_now() == results  # C1's evaluation alone
    assert len(re.findall("this run is finished", capfd.readouterr().out)) == len(PHASES)


def result_of_first_step(output: Path) -> dict[str, Any]:
    """The first line of metrics.jsonl, speeds apart."""
    line = json.loads((output / "metrics.jsonl").read_text().splitlines()[0])
    return {name: value for name, value in line.items() if name not in SPEEDS}
