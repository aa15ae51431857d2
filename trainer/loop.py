"""The training run: open what the experiment names, take the steps, save the student.

OUTPUT/run.json  checkpoints/  metrics.jsonl  tensorboard/      while it runs
OUTPUT/student/                                                 a sentence-transformers folder, at the end
OUTPUT/result.json                                              written last: the run is finished
"""

from __future__ import annotations

import json
import math
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from data.config import keyed_values
from data.digests import DigestCache
from data.errors import EXIT_COMPLETE, EXIT_INTERRUPTED, RunFailed, UserError
from data.settings import Experiment
from data.shards import atomic_write
from retrieval import precision
from retrieval.dual_encoder import DualEncoder
from retrieval.process_memory import settle_memory
from retrieval.student_spec import resolve_student
from trainer.batch import BatchWork, plan_batch
from trainer.checkpoint import TrainingState, claim_output, resume, save_checkpoint, whole_folder
from trainer.cpu_passes import speed_up
from trainer.embedding_gradient import add_gradient_by_row
from trainer.gradients import QueryLosses, StepSettings, accumulate_gradients
from trainer.metrics import Metrics, last_figures
from trainer.optim import learning_rate, make_optimizer, set_rate
from trainer.progress import RunProgress
from trainer.recipes import check_negatives
from trainer.selection import selected_share
from trainer.stream import Batch, TrainingShards, batches, open_training_shards
from trainer.workers import Workers

RESULT_NAME = "result.json"


def train(experiment: Experiment, *, shards_folder: Path) -> int:
    """Train the student of an experiment on a folder of training shards. Returns the exit code: 0 finished, 75 interrupted."""
    settings, output = experiment.train, Path(experiment.train.output)
    _check_machine(experiment)
    spec = resolve_student(experiment.student)
    shards = open_training_shards(shards_folder, tokenizer=spec.tokenizer_digest)
    check_negatives(settings.recipe, source=shards.metadata.negatives_source)
    key = _run_key(experiment, shards=shards, student=spec.key(DigestCache(Path(os.devnull))))
    fingerprint = claim_output(output, key=key)
    if (output / RESULT_NAME).is_file():
        print(f"this run is finished: {output / RESULT_NAME}; nothing to do (choose another train.output=FOLDER to train again)")
        return EXIT_COMPLETE

    on_cpu = settings.device == "cpu"
    if on_cpu:
        settle_memory()
    model = DualEncoder(spec).to(settings.device).train()
    if on_cpu:
        add_gradient_by_row(model.backbone.get_input_embeddings())
    workers = speed_up(model, workers=settings.workers) if on_cpu else Workers(model)
    optimizer = make_optimizer(model, weight_decay=settings.weight_decay)
    state = resume(output, model=model, optimizer=optimizer, fingerprint=fingerprint)
    epoch_ends = _epoch_ends(shards, epochs=settings.epochs, batch_queries=settings.batch_queries)
    steps = epoch_ends[-1]
    step_settings = _step_settings(experiment, pad_id=int(model.backbone.config.pad_token_id or 0))
    stream = batches(shards, seed=experiment.seed, epochs=settings.epochs, batch_queries=settings.batch_queries, first_step=state.step)

    with (
        closing(Metrics(output, step=state.step)) as metrics,
        RunProgress(steps=steps, done=state.step) as progress,
        _Interruption() as interruption,
    ):
        for note in _notes(experiment, normalized=spec.normalize, steps=steps, state=state):
            progress.note(note)
        for batch in stream:
            started = time.monotonic()
            share = selected_share(batch.epoch, epochs=settings.epochs, count_from=settings.objective.count_epochs_from)
            work = plan_batch(batch.rows, objective=settings.objective, share=share)
            rate = learning_rate(batch.step, peak=settings.learning_rate, warmup_steps=settings.warmup_steps, steps=steps)
            set_rate(optimizer, rate)
            optimizer.zero_grad(set_to_none=False)
            losses = accumulate_gradients(workers, work, step=batch.step, settings=step_settings)
            norm = float(torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm))
            _stop_unless_finite(losses, norm=norm, batch=batch)
            optimizer.step()

            done, seconds = batch.step + 1, time.monotonic() - started
            figures = _figures(losses, work, batch=batch, rate=rate, norm=norm, seconds=seconds)
            metrics.write(figures)
            progress.step(figures)
            state = TrainingState(step=done, seconds=state.seconds + seconds, fingerprint=fingerprint)
            if done % settings.checkpoint_every == 0 or done in epoch_ends or interruption.asked:
                metrics.sync()
                save_checkpoint(output, model=model, optimizer=optimizer, state=state, keep=settings.keep_checkpoints)
            if interruption.asked and done < steps:
                progress.note(f"interrupted after step {done} of {steps}; start the same command again to go on")
                return EXIT_INTERRUPTED

    with whole_folder(output / "student") as folder:
        model.save(folder)
    _write_result(output, state=state, key=key)
    print(f"student saved in {output / 'student'} after {steps} steps, {state.seconds:.0f} s of training")
    return EXIT_COMPLETE


def _check_machine(experiment: Experiment) -> None:
    settings = experiment.train
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UserError("the trainer runs in one process; start it without torchrun")
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device=cuda, but torch sees no GPU here; use train.device=cpu")
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)


def _run_key(experiment: Experiment, *, shards: TrainingShards, student: dict[str, Any]) -> dict[str, Any]:
    """All that decides the trained parameters: two runs that differ in it must not share an output folder."""
    settings = experiment.train
    return {
        "train": {
            **keyed_values(settings),
            "precision": precision.resolve(settings.precision, device=settings.device),
            "device": settings.device,  # its generator draws other dropout masks
            "objective": keyed_values(settings.objective),
        },
        "student": student,
        "seed": experiment.seed,
        "shards": shards.digest,
    }


def _step_settings(experiment: Experiment, *, pad_id: int) -> StepSettings:
    settings = experiment.train
    return StepSettings(
        seed=experiment.seed,
        score_scale=settings.score_scale,
        temperature=settings.objective.temperature,
        micro_batch_tokens=settings.micro_batch_tokens,
        pad_id=pad_id,
        device=settings.device,
        precision=precision.resolve(settings.precision, device=settings.device),
    )


def _epoch_ends(shards: TrainingShards, *, epochs: int, batch_queries: int) -> list[int]:
    """Steps done at the end of each epoch."""
    ends = [0]
    for epoch in range(epochs):
        ends.append(ends[-1] + shards.epoch_steps(epoch, batch_queries=batch_queries))
    return ends[1:]


def _notes(experiment: Experiment, *, normalized: bool, steps: int, state: TrainingState) -> Iterator[str]:
    """What a person should know before the first step, of which nothing is an error."""
    settings = experiment.train
    if state.step:
        yield f"resumes after step {state.step} of {steps}"
    if settings.warmup_steps >= steps:
        yield f"train.warmup_steps={settings.warmup_steps} covers all {steps} steps: the peak rate is never reached"
    if normalized and settings.score_scale == 1:
        yield "the student's vectors have length 1 and train.score_scale is 1: scores lie in [-1, 1]; about 20 is usual"


def _stop_unless_finite(losses: QueryLosses, *, norm: float, batch: Batch) -> None:
    """A loss or gradient that is no finite number would ruin every parameter: stop before the step, naming the queries."""
    both = (losses.supervised, losses.distillation)
    broken = sorted({name for part in both for name, loss in part.items() if not math.isfinite(loss)})
    if broken or not math.isfinite(norm):
        names = broken or [row.query_id for row in batch.rows]
        what = f"loss of {len(broken)} queries" if broken else "gradient of the batch of queries"
        raise RunFailed(
            f"step {batch.step + 1}: the {what} is not a finite number: {', '.join(names[:20])}. Look at "
            "their teacher logits, or lower train.learning_rate; the last checkpoint is kept, and the step was not taken"
        )


def _figures(losses: QueryLosses, work: BatchWork, *, batch: Batch, rate: float, norm: float, seconds: float) -> dict[str, Any]:
    """One line of metrics.jsonl. Steps and epochs count from 1; losses are means over the queries that have them, nats."""
    supervised, distillation = math.fsum(losses.supervised.values()), math.fsum(losses.distillation.values())
    return {
        "step": batch.step + 1,
        "epoch": batch.epoch + 1,
        "loss": work.supervised_weight * supervised + work.distillation_weight * distillation,
        "supervised": supervised / max(1, len(losses.supervised)),
        "distillation": distillation / max(1, len(losses.distillation)),
        "queries": len(batch.rows),
        "selected": work.selected,
        "share": work.selected / len(batch.rows),
        "learning_rate": rate,
        "gradient_norm": norm,
        "queries_per_second": round(len(batch.rows) / seconds, 3),
    }


def _write_result(output: Path, *, state: TrainingState, key: dict[str, Any]) -> None:
    content = {
        "steps": state.step,
        "seconds": round(state.seconds, 3),
        "student": str(output / "student"),
        "fingerprint": state.fingerprint,
        "last_step": last_figures(output),
        "key": key,
        "versions": {"torch": torch.__version__},
    }
    atomic_write(output / RESULT_NAME, json.dumps(content, indent=1, sort_keys=True).encode())


@dataclass
class _Interruption:
    """Remembers SIGTERM and SIGINT until the step is done; a second one ends the process at once."""

    asked: bool = False

    def __enter__(self) -> _Interruption:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)
