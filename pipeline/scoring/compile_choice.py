"""Whether a table of teacher scores uses torch.compile: chosen once for a table, before its first shard is built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.execution import Choices, read_choices, write_choices
from pipeline.progress import duration
from pipeline.scoring import reading_lengths
from pipeline.scoring.calibration import Speed, keep_speed, kept_speed, measure
from pipeline.scoring.cost import Price, a_full_shard, price, wall_seconds
from pipeline.stage import Say, Stored
from retrieval.models.resolved import ResolvedModels

if TYPE_CHECKING:
    from pipeline.executors.base import Executor
    from pipeline.plan import TablePlan

_WORTH_MEASURING = 20_000  # pairs; below, a calibration and a compilation would cost more than they can save
_WORTH_COMPILING = 300.0  # seconds of scoring by each worker


@dataclass(frozen=True)
class _Work:
    models: ResolvedModels
    candidates: Stored
    stale: Sequence[int]
    executor: Executor
    say: Say


def prepare(plan: TablePlan, models: ResolvedModels, executor: Executor, say: Say) -> None:
    """Say what will be scored, and settle how. A choice that was made for this table stays, unless the settings ask for another."""
    assert plan.table.scores_pairs_of is not None
    work = _Work(models, plan.inputs[plan.table.scores_pairs_of], list(plan.stale), executor, say)
    cost = price(work.models, work.candidates, work.stale, warn=lambda line: work.say(f"warning: {line}"))
    say(f"{plan.table.label:<16} {cost}")
    for line in reading_lengths.warnings(work.models, work.candidates, work.stale) if cost.to_score else ():
        work.say(f"warning: {line}")
    kept = read_choices(plan.folder)
    chosen = _choose(work, cost, kept)
    if chosen != kept:
        write_choices(plan.folder, chosen)


def _choose(work: _Work, cost: Price, kept: Choices | None) -> Choices:
    teacher = work.models.experiment.teacher
    if teacher.backend == "onnx":
        return Choices(False, "ONNX Runtime")
    if teacher.compile != "auto":
        return Choices(teacher.compile == "on", f"teacher.compile={teacher.compile}")
    if kept is not None:
        return kept
    if cost.to_score < _WORTH_MEASURING:
        return Choices(False, f"fewer than {_WORTH_MEASURING:,} pairs to score")
    return _by_calibration(work, cost.tokens)


def _by_calibration(work: _Work, tokens: int) -> Choices:
    candidates = str(a_full_shard(work.candidates, work.stale).absolute())
    workers = min(work.executor.workers(), len(work.stale))  # a shard has one worker
    each = tokens / workers
    speed = kept_speed(work.models) or _measured(work, candidates, compiled=False)
    if speed.compiled_tokens_per_second is None and speed.seconds(each, compiled=False) > _WORTH_COMPILING:
        speed = _measured(work, candidates, compiled=True)
    work.say(f"{'':<16} about {duration(wall_seconds(speed, tokens, workers=workers))} ({speed})")
    return Choices(speed.compiling_pays(each), f"calibration: {speed}")


def _measured(work: _Work, candidates: str, *, compiled: bool) -> Speed:
    work.say(f"{'':<16} measuring how fast this teacher is here{', compiled too' if compiled else ''}, once")
    speed = work.executor.ask(measure, work.models, candidates, compiled)
    keep_speed(work.models, speed)
    return speed
