"""CL-DRD with the installed commands: from the collection to the student of the third iteration, killed on the way."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

import pipeline.cli
from trainer.reporting.metrics import SPEEDS

WORDS = {
    "hard_negatives.depth": 30, "curriculum.enabled": True, "curriculum.iterations": ["2/3/4", "4/3/2", "9/0/0"],
    "curriculum.near_rank": 8, "curriculum.retrieved": 30, "dev.queries": 4, "train.recipe": "cl_drd", "train.checkpoint_every": 3,
    "train.stages": {
        "coarse": {"draw": 0, "epochs": 2}, "finer": {"draw": 1, "epochs": 2, "learning_rate": 5e-4}, "finest": {"draw": 2, "epochs": 1},
    },
}  # fmt: skip
STEPS = {"1-coarse": 8, "2-finer": 8, "3-finest": 4}  # 14 queries, 4 a step

# `train`, in which the process kills itself as soon as the second iteration has written the line of its fifth step.
KILLED = """
import os, signal
from trainer import cli
from trainer.reporting import metrics
write = metrics.Metrics.write
def killing(self, figures):
    write(self, figures)
    if os.path.exists(OUTPUT + "/2-finer/run.json") and figures["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
metrics.Metrics.write = killing
cli.main()
"""


def results(output: Path) -> dict[str, Any]:
    """What a run leaves that must not depend on kills: the bytes of each student and the lines of each step, speeds apart."""
    students = {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("student/model.safetensors")}
    lines = {stage: [json.loads(line) for line in (output / stage / "metrics.jsonl").read_text().splitlines()] for stage in STEPS}
    return {**students, **{name: [{k: v for k, v in one.items() if k not in SPEEDS} for one in own] for name, own in lines.items()}}


def test_three_iterations_killed_in_the_second(tmp_path: Path, tiny_experiment: Callable[..., Path], command: Callable[..., Any]) -> None:
    """Prevents: stages that each work and do not fit together, an iteration that starts from another student or is taken twice after a
    kill, and an end that nobody measured."""

    def done(*words: object) -> str:
        result = command(*words)
        assert result.returncode == 0, f"{' '.join(map(str, words))}\n{result.stdout}\n{result.stderr}"
        return str(result.stdout).strip()

    config = f"config={tiny_experiment(tmp_path, **WORDS)}"
    done("prep", "run", config)
    shards, dev = (CliRunner().invoke(pipeline.cli.app, ["path", config, f"stage={stage}"]).output.strip() for stage in ("shards", "dev"))
    words = [config, f"shards={shards}", f"dev={dev}", "train.evaluate_every=1000"]
    said = done("train", "run", *words, f"train.output={tmp_path / 'whole'}")
    whole = results(tmp_path / "whole")
    assert {name: len(whole[name]) for name in STEPS} == STEPS
    listed = json.loads((tmp_path / "whole" / "result.json").read_text())["stages"]
    told = re.findall(r"^stage (\S+): dev set MRR@10 ([\d.]+)", said, re.MULTILINE)
    assert told == [(stage["name"], f"{stage['dev']['MRR@10']:.4f}") for stage in listed] and [name for name, _ in told] == list(STEPS)
    weights = [whole[f"{name}/student/model.safetensors"] for name in STEPS]
    assert len(set(weights)) == 3 and whole["student/model.safetensors"] == weights[-1]

    output = tmp_path / "killed"
    code = f"OUTPUT = {str(output)!r}\n{KILLED}"
    killed = subprocess.run([sys.executable, "-c", code, "run", *words, f"train.output={output}"], capture_output=True, timeout=120)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert (output / "1-coarse" / "result.json").is_file() and not (output / "2-finer" / "result.json").exists()
    before = (output / "1-coarse" / "student" / "model.safetensors").stat().st_mtime_ns
    again = done("train", "run", *words, f"train.output={output}")
    assert results(output) == whole
    assert (output / "1-coarse" / "student" / "model.safetensors").stat().st_mtime_ns == before
    assert re.findall(r"^stage (\S+): dev set MRR@10 ([\d.]+)", again, re.MULTILINE) == told
