"""Trainings by one and by several processes: the same run."""

from __future__ import annotations

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.dev_sets import write_dev_rows
from support.training import make_row

from retrieval.compute.precision import cpu_computes_bf16
from trainer.reporting.metrics import SPEEDS


@pytest.fixture(scope="module")
def zygote(start_zygote: Callable[[str], Any]) -> Any:
    return start_zygote("training")


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def lines_of(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("what", ["none", "both", "dimensions", "prod", "prod_dual", "cross_encoder", "lora"])
def test_any_number_of_processes_ends_in_the_same_parameters(
    tmp_path: Path, experiment_file: Path, shards: Path, cross_encoder: Path, zygote: Any, what: str
) -> None:
    """Prevents: a result that depends on how many GPUs there were: dropout, selection or weights by rank, a gradient averaged twice, a
    frozen encoder's vectors that only one process has."""
    runs = {}
    student = _student_of(experiment_file)
    words_of = {
        "none": ["train.objective.in_batch=none"],
        "both": ["train.objective.in_batch=both"],
        "dimensions": ["train.objective.in_batch=supervised", "train.objective.dimensions=[32,8,3]"],
        "prod": ["recipe=prod"],
        "prod_dual": ["recipe=prod_dual", f"train.objective.teacher_model={student}", "train.objective.reference_kl_weight=1"],
        "lora": ["student.lora.rank=4", "student.lora.dropout=0.1", "train.objective.in_batch=both"],
        "cross_encoder": ["task=cross_encoder", f"teacher.model={cross_encoder}", "teacher.max_tokens=60"],
    }
    for size in (1, 2, 4) if what in ("none", "both") else (1, 2):
        output = tmp_path / f"of{size}"
        words = [f"config={experiment_file}", f"train.output={output}", "train.epochs=4", "train.learning_rate=1e-3"]
        words += words_of[what]
        zygote.begin(tmp_path / "log", "by_processes", size, free_port(), shards, *words)
        assert zygote.end() == 0
        runs[size] = load_file(output / ("cross_encoder" if what == "cross_encoder" else "student") / "model.safetensors")
        lines = lines_of(output)
        assert [line["step"] for line in lines] == list(range(1, 25))
        for found, expected in zip(lines, lines_of(tmp_path / "of1"), strict=True):
            for name in expected.keys() - set(SPEEDS):
                assert found[name] == pytest.approx(expected[name], rel=5e-5), name  # `kept` is a sum of squares of differences
    for size in sorted(runs.keys() - {1}):
        differences = {name: float((runs[size][name] - expected).norm()) for name, expected in runs[1].items()}
        assert math.hypot(*differences.values()) <= 1e-6 * math.hypot(*(float(value.norm()) for value in runs[1].values()))
        for name, expected in runs[1].items():  # biases that began at 0 are all made of steps, whose last digits AdamW magnifies
            assert differences[name] <= 1e-5 * float(expected.norm()), name
    start = load_file((cross_encoder if what == "cross_encoder" else Path(student)) / "model.safetensors")
    assert any(not torch.allclose(start[name], value, rtol=1e-2) for name, value in runs[1].items() if name in start)


@pytest.mark.skipif(not cpu_computes_bf16(), reason="this processor would only emulate bf16")
def test_in_bf16_the_number_of_processes_moves_the_result_a_little(
    tmp_path: Path, experiment_file: Path, shards: Path, zygote: Any
) -> None:
    """Prevents: a share of the work that one process drops, hidden by bf16's rounding; and pages that promise the same parameters there."""
    found = {}
    for size in (1, 2):
        output = tmp_path / f"of{size}"
        words = [f"config={experiment_file}", f"train.output={output}", "train.learning_rate=1e-3", "train.precision=bf16"]
        zygote.begin(tmp_path / "log", "by_processes", size, free_port(), shards, *words)
        assert zygote.end() == 0
        found[size] = load_file(output / "student" / "model.safetensors")
    start = load_file(Path(_student_of(experiment_file)) / "model.safetensors")
    way = math.hypot(*(float((value - start[name]).norm()) for name, value in found[1].items() if name in start))
    apart = math.hypot(*(float((found[2][name] - value).norm()) for name, value in found[1].items()))
    assert apart <= 0.03 * way


def _student_of(experiment_file: Path) -> str:
    return experiment_file.read_text().split("student: {model: ")[1].split("}")[0]


def test_torchrun_is_interrupted_and_goes_on_with_another_number(tmp_path: Path, experiment_file: Path, shards: Path, zygote: Any) -> None:
    """Prevents: processes that stop after different steps, and a checkpoint that only the same number of processes can use."""
    output = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    words = [f"config={experiment_file}", f"train.output={output}", "train.epochs=40"]
    runner = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}", "-m", "trainer"]
    log = open(tmp_path / "torchrun", "w+")  # noqa: SIM115 - read below
    process = subprocess.Popen([*runner, "run", f"shards={shards}", *words], env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + 300
    while not (output / "metrics.jsonl").is_file() or len(lines_of(output)) < 5:
        assert process.poll() is None and time.monotonic() < deadline, (tmp_path / "torchrun").read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=180)
    said = (tmp_path / "torchrun").read_text()
    done = [line["step"] for line in lines_of(output)]
    assert done == list(range(1, len(done) + 1)) and len(done) < 240, said
    newest = sorted(path.name for path in (output / "checkpoints").glob("step-*"))[-1]
    assert newest == f"step-{len(done):08d}" and f"interrupted after step {len(done)} of 240" in said, said
    zygote.begin(tmp_path / "log", "by_processes", 1, free_port(), shards, *words)
    assert zygote.end() == 0
    assert [line["step"] for line in lines_of(output)] == list(range(1, 241))


def test_the_first_process_alone_reports(tmp_path: Path, experiment_file: Path, shards: Path, student: Path, zygote: Any) -> None:
    """Prevents: a step that a tracker gets from each process, and a card's figures that wait for a process, or depend on their number."""
    generator = np.random.default_rng(1)
    dev = write_dev_rows(tmp_path / "dev", [make_row(generator, f"q{number:02d}") for number in range(22)], student=student)
    figures = {}
    for size in (1, 2):
        output = tmp_path / f"of{size}"
        words = [f"config={experiment_file}", f"train.output={output}", "train.steps=6", f"dev={dev}"]
        words += ["train.tracker=support.plugin_trackers:FileTracker"]
        zygote.begin(tmp_path / "log", "by_processes", size, free_port(), shards, *words)
        assert zygote.end() == 0, (tmp_path / "log").read_text()
        seen = [json.loads(line) for line in (output / "seen.jsonl").read_text().splitlines()]
        assert [entry["step"] for entry in seen if "step" in entry] == [1, 2, 3, 4, 5, 6] and len(seen) == 8
        card = (output / "student" / "README.md").read_text()
        figures[size] = [line for line in card.splitlines() if line.startswith(("| MRR@10", "| nDCG@10", "| Recall@100"))]
    assert len(figures[1]) == 3 and figures[1] == figures[2]


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_starts_it_again_and_it_ends_in_the_same_bytes(
    tmp_path: Path, experiment_file: Path, shards: Path, zygote: Any, rank: int
) -> None:
    """Prevents: a restart by torchrun (--max-restarts) that finds its folder held, meets the processes of before, or repeats a step."""
    words = [f"config={experiment_file}", "train.checkpoint_every=3", "train.timeout=2"]
    zygote.begin(tmp_path / "log", "by_processes", 2, free_port(), shards, *words, f"train.output={tmp_path / 'whole'}")
    assert zygote.end() == 0, (tmp_path / "log").read_text()
    output = tmp_path / "killed"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    runner = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=1", f"--master-port={free_port()}"]
    program = ["-m", "support.programs.killed_rank", str(rank), "8", "run", f"shards={shards}", *words, f"train.output={output}"]
    done = subprocess.run([*runner, *program], env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert "resumes after step 6 of 18" in done.stderr, done.stderr
    assert [line["step"] for line in lines_of(output)] == list(range(1, 19))
    students = [(tmp_path / name / "student" / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert students[0] == students[1]
    figures = lines_of(output)[-1]
    assert figures["rank_computed_most"] >= figures["rank_computed_least"] > 0 and figures["rank_waited_most"] >= 0
