"""The dev set's MRR@10 after training by the fast path of CPUs, and by PyTorch alone.

    python benchmarks/plain_training.py config=FILE shards=DIR dev=DIR [steps=40] [dropout=P] [key=value ...]

`config=`, `shards=`, `dev=` and `key=value` are those of `train run`; `steps` is `train.steps`. Each side is a `train run` of its own, on
the same batches in the same order:

    fast    train.cpu_fast_path=true
    again   the same with half of train.micro_batch_tokens, which draws other dropout masks: how far two runs differ by chance. Not with
            dropout=0, where there are none
    plain   train.cpu_fast_path=false: padded batches, PyTorch's own dropout, attention and gradients, one micro-batch after the other

A dropout mask is drawn for each place of a tensor, so with dropout the sides cannot draw the same ones, and differ by chance: see `again`.
With `dropout=0` (of all the layers of a copy of the student) nothing is drawn, and the parameters should nearly be equal; most nearly with
train.precision=fp32, which leaves the order of sums. How far apart they are is given as a part of the way that training moved them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

STEPS, METRIC = "40", "MRR@10"


def save_start(args: dict[str, str], folder: Path, *, dropout: float | None) -> None:
    """The student that all sides start from; with another dropout of all its layers where one is given."""
    from retrieval.models.dual_encoder import DualEncoder
    from retrieval.models.student import resolve_student
    from trainer import recipes

    DualEncoder(resolve_student(recipes.load(args).student)).save(folder)
    if dropout is not None:
        config = json.loads((folder / "config.json").read_text())
        config |= {key: dropout for key, value in config.items() if "dropout" in key and type(value) in (int, float)}
        (folder / "config.json").write_text(json.dumps(config))


def distance(one: Path, other: Path) -> float:
    """Of the parameters of two saved students."""
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (one, other))
    return sum(float((ours[name] - theirs[name]).double().square().sum()) for name in ours) ** 0.5


def main() -> None:
    """Train all sides, then one JSON line."""
    args = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    if len(args) < len(sys.argv) - 1 or not {"config", "shards", "dev"} <= set(args):
        sys.exit(__doc__)
    shards = args.pop("shards")
    dropout = float(args.pop("dropout", -1))
    args |= {"train.dev": args.pop("dev"), "train.steps": args.pop("steps", STEPS), "train.dev_metric": METRIC}
    half = int(args.get("train.micro_batch_tokens", 4096)) // 2
    sides = {"fast": {}, "again": {"train.micro_batch_tokens": str(half)}, "plain": {"train.cpu_fast_path": "false"}}
    if dropout == 0:
        del sides["again"]
    with tempfile.TemporaryDirectory() as work:
        start = Path(work) / "start"
        results: dict[str, Any] = {}
        save_start(args, start, dropout=None if dropout < 0 else dropout)
        args |= {"student.model": str(start), "student.layers": "null", "student.revision": "null"}
        for side, own in sides.items():
            output = Path(work) / side
            given = [f"{key}={value}" for key, value in {**args, **own, "train.output": str(output)}.items()]
            subprocess.run([sys.executable, "-m", "trainer", "run", f"shards={shards}", *given], check=True, stdout=subprocess.DEVNULL)
            results[side] = json.loads((output / "result.json").read_text())
            last = results[side]["last_step"]
            print(
                f"{side:6} {METRIC} {last['dev'][METRIC]:.4f} after {last['step']} steps in {results[side]['seconds']:.0f} s, "
                f"loss of the last one {last['loss']:.4f}",
                flush=True,
            )
        fast = Path(work) / "fast" / "student"
        off = distance(fast, Path(work) / "plain" / "student")
        moved = distance(fast, start)
    value = {side: result["last_step"]["dev"][METRIC] for side, result in results.items()}
    print(f"fast minus plain {value['fast'] - value['plain']:+.4f}; parameters are {off / moved:.1e} of the way apart that they moved")
    figures = {
        "name": "plain_training", "ours": value["fast"], "peer": value["plain"],
        "ratio": value["fast"] / value["plain"] if value["plain"] else None, "unit": METRIC,
        "difference": round(value["fast"] - value["plain"], 6), "parameters_apart": off / moved, "moved": moved,
        "seconds": {side: result["seconds"] for side, result in results.items()},
        "last_loss": {side: result["last_step"]["loss"] for side, result in results.items()},
    }  # fmt: skip
    if "again" in value:
        figures["difference_by_chance"] = round(value["fast"] - value["again"], 6)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
