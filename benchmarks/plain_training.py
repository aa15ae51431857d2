"""The dev set's MRR@10 after training as it is, and with all that makes it fast, but should change no number, taken out.

    python benchmarks/plain_training.py config=FILE shards=DIR dev=DIR [steps=40] [dropout=P] [key=value ...]

`config=`, `shards=`, `dev=` and `key=value` are those of `train run`, for a recipe of KL and supervised loss, as `adam`; `steps` replaces
`train.steps`. Each side is a process of its own, on the same batches in the same order:

    ours    `train run`
    again   the same with other dropout masks: how far two runs differ by chance. Not with dropout=0, where there are none
    plain   each step: all token sequences of all queries, however often they come, padded to the longest, through the model at once, in
            fp32, with torch's own dropout and attention; the losses written out; one backward pass with all biases in it; AdamW
            parameter by parameter; batches read when they are asked for. This script's, in place of `trainer.steps.gradients`,
            `micro_batches`, `workers`, `packing`, `attention`, `dropout`, `masks`, `embedding_gradient` and `prefetch`

A dropout mask is drawn for each place of a tensor, so with dropout the sides cannot draw the same ones, and differ by chance: see `again`.
With dropout=0 nothing is drawn, and the parameters should nearly be equal; most nearly with train.precision=fp32, which leaves the order
of sums. How far apart they are is told as a part of the way that training moved them. It leaves out the keys' biases, which change no
score, and which plain training moves by rounding noise. Dev figures are computed in the same way and precision on all sides.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from training import Unhurried  # the benchmark beside this one

STEPS = "40"
METRIC = "MRR@10"


def plain_gradients(workers: Any, work: Any, cut: Any, *, step: int, settings: Any, ranks: Any, frozen: Any) -> Any:
    """`trainer.steps.gradients.accumulate_gradients` without anything that makes it fast."""
    import numpy as np
    import torch
    from torch.nn import functional

    from trainer.steps.gradients import QueryLosses

    if work.in_batch or settings.distillation != "kl" or frozen.all:
        sys.exit("only for losses without in-batch negatives and frozen encoders, and for distillation=kl")
    torch.manual_seed(settings.seed + step)
    model, every, parts = workers.model, list[Any](), list[tuple[Any, list[Any], int]]()
    for query in work.queries:
        passages = list(dict.fromkeys((*query.supervised, *query.distilled)))
        if passages:
            parts.append((query, passages, len(every)))
            every += [query.query, *passages]
    tokens = [torch.from_numpy(np.frombuffer(sequence, dtype=np.int32).astype(np.int64)) for sequence in every]
    ids = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=settings.pad_id)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(one) for one in tokens], batch_first=True)
    vectors = model(ids, mask)

    supervised, distillation = {}, {}
    for query, passages, start in parts:
        scores = settings.score_scale * vectors[start + 1 : start + 1 + len(passages)] @ vectors[start]
        place = {passage: number for number, passage in enumerate(passages)}
        if query.supervised:
            own = scores[[place[passage] for passage in query.supervised]]
            supervised[query.query_id] = functional.cross_entropy(own[None], torch.tensor([0]))
        if query.distilled:
            own = scores[[place[passage] for passage in query.distilled]]
            teacher = torch.tensor(np.array(query.teacher_logits))
            student_log, teacher_log = ((one / settings.temperature).log_softmax(0) for one in (own, teacher))
            distillation[query.query_id] = functional.kl_div(student_log, teacher_log, log_target=True, reduction="sum")
    total = work.supervised_weight * sum(supervised.values()) + work.distillation_weight * sum(distillation.values())
    total.backward()
    return QueryLosses(*({name: float(loss.detach()) for name, loss in losses.items()} for losses in (supervised, distillation, {})))


def make_plain() -> None:
    """Take out of this process's trainer what makes it fast."""
    from trainer import loop, run
    from trainer.cpu.workers import Workers
    from trainer.steps import prepare_model as student

    whole = run.make_optimizer

    def one_by_one(model: Any, *, weight_decay: float) -> Any:
        optimizer = whole(model, weight_decay=weight_decay)
        for group in optimizer.param_groups:
            group.update(fused=False, foreach=False)
        return optimizer

    patches: list[tuple[Any, str, Any]] = [
        (student, "freeze_key_biases", lambda backbone: None),
        (student, "add_gradient_by_row", lambda embedding: None),
        (student, "speed_up", lambda model, workers: Workers(model)),
        (loop, "accumulate_gradients", plain_gradients),
        (run, "make_optimizer", one_by_one),
        (run, "Prefetched", Unhurried),
    ]
    for module, name, instead in patches:
        assert hasattr(module, name)
        setattr(module, name, instead)


def draw_other_masks() -> None:
    """The order of queries stays."""
    from trainer import run

    given = run.step_settings
    run.step_settings = lambda *words: replace(given(*words), seed=given(*words).seed + 1)


def set_dropout(p: float) -> None:
    """Of all dropout modules of the student."""
    import torch

    from trainer import task

    given = task.prepared

    def with_dropout(*words: Any) -> Any:
        model = given(*words)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = p
        return model

    task.prepared = with_dropout


SIDES: dict[str, Callable[[], None]] = {"ours": lambda: None, "again": draw_other_masks, "plain": make_plain}


def train(side: str, words: dict[str, str], output: Path) -> None:
    """Train as one side does."""
    from trainer import loop, recipes

    SIDES[side]()
    if "dropout" in words:
        set_dropout(float(words.pop("dropout")))
    shards, steps = Path(words.pop("shards")), words.pop("steps", STEPS)
    words |= {"train.dev": words.pop("dev"), "train.steps": steps, "train.dev_metric": METRIC, "train.output": str(output / side)}
    code = loop.train(recipes.load(words), shards_folder=shards)
    if code:
        sys.exit(code)


def apart(one: Path, other: Path, start: Path) -> tuple[float, float]:
    """Distance of two saved students, and of the first from where it started; keys' biases left out."""
    from safetensors.torch import load_file

    ours, theirs, before = (load_file(folder / "model.safetensors") for folder in (one, other, start))
    names = [name for name in ours if not name.endswith("key.bias")]
    return tuple(  # type: ignore[return-value]
        sum(float((ours[name] - others[name]).double().square().sum()) for name in names) ** 0.5 for others in (theirs, before)
    )


def save_start(words: dict[str, str], folder: Path) -> None:
    """The student that all sides start from."""
    from retrieval.models.dual_encoder import DualEncoder
    from retrieval.models.student import resolve_student
    from trainer import recipes

    settings = {key: value for key, value in words.items() if key not in ("shards", "dev", "steps", "dropout")}
    DualEncoder(resolve_student(recipes.load(settings).student)).save(folder)


def main() -> None:
    """Train all sides, then one JSON line."""
    words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    if len(words) < len(sys.argv) - 1 or not {"config", "shards", "dev"} <= set(words):
        sys.exit(__doc__)
    if "side" in words:
        train(words.pop("side"), words, Path(words.pop("work")))
        return
    sides = [side for side in SIDES if side != "again" or float(words.get("dropout", 1)) > 0]
    with tempfile.TemporaryDirectory() as work:
        results = {}
        for side in sides:
            command = [sys.executable, __file__, *sys.argv[1:], f"side={side}", f"work={work}"]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            results[side] = json.loads((Path(work) / side / "result.json").read_text())
            last = results[side]["last_step"]
            print(
                f"{side:6} {METRIC} {last['dev'][METRIC]:.4f} after {last['step']} steps in {results[side]['seconds']:.0f} s, "
                f"loss of the last one {last['loss']:.4f}",
                flush=True,
            )
        save_start(words, Path(work) / "start")
        students = {name: Path(work) / name for name in ("ours/student", "plain/student", "start")}
        off, moved = apart(*students.values())
    value = {side: results[side]["last_step"]["dev"][METRIC] for side in sides}
    print(f"ours minus plain {value['ours'] - value['plain']:+.4f}; parameters are {off / moved:.5f} of the way apart that they moved")
    figures = {
        "name": "plain_training", "ours": value["ours"], "peer": value["plain"],
        "ratio": value["ours"] / value["plain"] if value["plain"] else None, "unit": METRIC,
        "difference": round(value["ours"] - value["plain"], 6), "parameters_apart": off / moved, "moved": moved,
        "seconds": {side: results[side]["seconds"] for side in sides},
        "last_loss": {side: results[side]["last_step"]["loss"] for side in sides},
    }  # fmt: skip
    if "again" in value:
        figures["difference_by_chance"] = round(value["ours"] - value["again"], 6)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
