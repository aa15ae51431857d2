"""What a training step costs the host, beside a device that computes in no time: two versions of the code side by side.

    python benchmarks/training_host.py [--queries 128] [--candidates 26] [--steps 5] [--rounds 3] [--before COMMIT]

A GPU's path of the trainer on a CPU: the plain backend at the defaults of a GPU, a model of 2 layers and 24 dimensions. So that the model's
arithmetic is negligible, sequences have a `SHORTER`-th of their tokens (112 a candidate) and so has the budget: groups and passes hold as
many sequences as with whole ones. Each side is a process of its own with one thread; `--before` is checked out into a folder of its own.

`ours` and `peer` are CPU milliseconds of the launching thread for a step, gradients, clipping and AdamW, after and before. `planning` are
those of the data thread for a batch of whole sequences: read, select, cut and lay out; the median, and the mean, which has the reading of
row groups in it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np

ROOT = Path(__file__).parents[1]
VOCABULARY, TOKENS, SHORTER = 1000, 112, 24
_PLANNED = 24  # batches whose planning is timed
_GPU_BUDGET_BEFORE = 4096  # what `train.micro_batch_tokens` was on a GPU before it had a default of its own
_FIGURES = ("step", "planning", "planning_mean", "passes")


def save_student(folder: Path) -> None:
    """A BERT whose arithmetic is negligible."""
    import torch
    from transformers import BertConfig, BertModel, BertTokenizerFast

    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 256}
    BertModel(BertConfig(vocab_size=VOCABULARY, **sizes), add_pooling_layer=False).save_pretrained(folder)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *(f"w{number}" for number in range(VOCABULARY - len(special)))]) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)


def lists(arguments: argparse.Namespace, *, shorter: int) -> Iterator[dict[str, Any]]:
    """Training rows of random tokens: one positive, then negatives and dark examples in like numbers."""
    chance = np.random.default_rng(0)
    candidates = arguments.candidates
    kinds = [0, *sorted(1 + place % 3 for place in range(candidates - 1))]

    def tokens(count: float) -> list[int]:
        return chance.integers(5, VOCABULARY, max(4, round(count / shorter))).tolist()

    for number in range(arguments.queries * 4):
        yield {
            "query_id": f"q{number}", "query_tokens": tokens(12), "ids": [f"d{number}-{place}" for place in range(candidates)],
            "tokens": [tokens(length) for length in chance.normal(TOKENS, 12, candidates).clip(16, 128)], "kinds": kinds,
            "logits": chance.normal(size=candidates).tolist(), "confidence": -chance.random(),
        }  # fmt: skip


def prepare(folder: Path, arguments: argparse.Namespace) -> None:
    """The student, and shards with whole and with short sequences."""
    from training import write_shards  # the benchmark beside this one

    from retrieval.model_files.files import tokenizer_digest

    save_student(folder / "student")
    for name, shorter in (("whole", 1), ("short", SHORTER)):
        rows = list(lists(arguments, shorter=shorter))
        write_shards(folder / name, rows, tokenizer=tokenizer_digest(folder / "student"))


def experiment_of(folder: Path, arguments: argparse.Namespace, *, budget: int) -> Any:
    """An experiment over what `prepare` wrote."""
    from data.config.settings import Experiment

    return Experiment.model_validate(
        {
            "store": "unused", "ingest": {"path": "unused"}, "teacher": {"model": "unused"},
            "student": {"model": str(folder / "student"), "query_tokens": None, "passage_tokens": None},
            "train": {
                "output": str(folder / "run"), "epochs": 100, "batch_queries": arguments.queries, "micro_batch_tokens": budget,
                "objective": {"without": ["adaptive"]},
            },
        }
    )  # fmt: skip


def gpu_budget() -> int:
    """Tokens of a micro-batch on a GPU by this version of the code."""
    defaults = own_module("trainer.device_defaults")
    return defaults.MICRO_BATCH_TOKENS["cuda"] if defaults else _GPU_BUDGET_BEFORE


def own_module(name: str) -> Any:
    """A module of the version that is measured, None where it has none: an editable install would then give that of another version."""
    import trainer

    file = Path(trainer.__file__).parents[1] / f"{name.replace('.', '/')}.py"
    return importlib.import_module(name) if file.exists() else None


def gpu_model(folder: Path, experiment: Any) -> tuple[Any, Any]:
    """The student as it is on a GPU, and the backend that it has there."""
    from data.config.settings import Train
    from retrieval.models.dual_encoder import DualEncoder
    from retrieval.models.student import resolve_student
    from trainer.run import open_backend

    class Counted(DualEncoder):
        passes = 0

        def forward(self, *args: Any) -> Any:
            self.passes += 1
            return super().forward(*args)

    model = Counted(resolve_student(experiment.student))
    backend = open_backend(model, Train(device="cuda"))
    if masks := own_module("trainer.steps.attention_mask"):
        masks.whole_masks(model)
        backend.passes = lambda encoder: 1  # it asks where the parameters are
    return model.train(), backend


def one_process() -> Any:
    """This process alone, of code with or without a folder for processes."""
    return (own_module("trainer.processes.distributed") or own_module("trainer.steps.distributed")).Distributed()


def planned(folder: Path, name: str, arguments: argparse.Namespace, *, budget: int, backend: Any, settings: Any) -> Iterator[Any]:
    """Batches as the data thread makes them, each when it is asked for."""
    from data.digests import DigestCache
    from trainer.input.stream import open_training_shards
    from trainer.run import planned_batches
    from trainer.task import task_of

    experiment = experiment_of(folder, arguments, budget=budget)
    task = task_of(experiment, DigestCache(Path(os.devnull)))
    shards = open_training_shards(folder / name, tokenizer=task.tokenizer)
    more: dict[str, Any] = {}
    try:
        from trainer.steps.gradients import step_planner
    except ImportError:
        pass
    else:
        more["plan"] = step_planner(backend, settings=settings, processes=one_process(), references={})
    return planned_batches(shards, experiment, task, first_step=0, **more)


def timed(make: Callable[[], object], count: int) -> list[float]:
    """CPU milliseconds of this thread for each call."""
    times = []
    for _ in range(count):
        started = time.thread_time()
        make()
        times.append(1e3 * (time.thread_time() - started))
    return times


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """One side's figures."""
    import torch

    from retrieval.compute.precision import resolve
    from trainer.steps.gradients import StepSettings, accumulate_gradients
    from trainer.steps.optim import make_optimizer

    torch.set_num_threads(1)
    budget = gpu_budget()
    model, backend = gpu_model(folder, experiment_of(folder, arguments, budget=budget))
    optimizer = make_optimizer(model, weight_decay=0.01)

    def settings(tokens: int) -> StepSettings:
        return StepSettings(0, 20.0, 1.0, tokens, pad_id=0, device="cpu", precision=resolve("auto", device="cpu"))

    whole = planned(folder, "whole", arguments, budget=budget, backend=backend, settings=settings(budget))
    planning = timed(lambda: next(whole), _PLANNED + 2)[2:]
    short = settings(budget // SHORTER)
    batches = planned(folder, "short", arguments, budget=budget // SHORTER, backend=backend, settings=short)

    def step(batch: Any) -> None:
        optimizer.zero_grad(set_to_none=False)
        more = {"plan": batch.plan} if hasattr(batch, "plan") else {}
        accumulate_gradients(
            backend, batch.work, batch.cut, step=batch.step, settings=short, processes=one_process(), references={}, **more
        )
        float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0))
        optimizer.step()

    step(next(batches))  # the first one allocates
    model.passes = 0
    ready = iter([next(batches) for _ in range(arguments.steps)])
    steps = timed(lambda: step(next(ready)), arguments.steps)
    passes = model.passes / arguments.steps
    return {"step": median(steps), "planning": median(planning), "planning_mean": fmean(planning), "passes": passes}


def run_side(code: Path, folder: Path) -> dict[str, float]:
    """The figures of one version of the code, in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *sys.argv[1:], "--measure", str(folder)]
    done = subprocess.run(command, cwd=code, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Medians by side."""
    from support.versions import versions

    with versions(arguments.before, folder) as sides:
        rounds: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for _ in range(arguments.rounds):
            for side, code in sides.items():
                rounds[side].append(run_side(code, folder))
    return {side: {name: median(one[name] for one in done) for name in _FIGURES} for side, done in rounds.items()}


def main() -> None:
    """Both sides in turns, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=128)
    parser.add_argument("--candidates", type=int, default=26)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", help="commit that is measured too; none: only this code is")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments)))
        return
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        prepare(Path(name), arguments)
        found = compare(arguments, Path(name))
    for side, figures in found.items():
        print(f"{side:6} step {figures['step']:.1f} ms in {figures['passes']:.0f} passes, planning {figures['planning']:.1f} ms")
    ours, peer = found["after"], found.get("before", found["after"])
    figures = {"name": "training_host", "unit": "ms", "ours": round(ours["step"], 2), "peer": round(peer["step"], 2)}
    figures |= {"ratio": round(peer["step"] / ours["step"], 2), "planning_ratio": round(peer["planning"] / ours["planning"], 2)}
    print(json.dumps({**figures, "sides": {side: {name: round(value, 2) for name, value in own.items()} for side, own in found.items()}}))


if __name__ == "__main__":
    main()
