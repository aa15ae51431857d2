"""Whether a table of teacher scores uses torch.compile: chosen once for a table, before its first shard is built."""

from __future__ import annotations

from pipeline.execution import Choices, read_choices, write_choices
from pipeline.progress import duration
from pipeline.scoring import reading_lengths
from pipeline.scoring.calibration import Speed, keep_speed, kept_speed, measure
from pipeline.scoring.cost import Price, a_full_shard, price, wall_seconds
from pipeline.stage import Preparation, Stored

_WORTH_MEASURING = 20_000  # pairs; below, a calibration and a compilation would cost more than they can save
_WORTH_COMPILING = 300.0  # seconds of scoring by each worker


def prepare(work: Preparation) -> None:
    """Say what will be scored, and settle how. A choice that was made for this table stays, unless the settings ask for another."""
    cost = price(work.models, _candidates(work), work.stale, warn=lambda line: work.say(f"warning: {line}"))
    work.say(f"{work.label:<16} {cost}")
    for line in reading_lengths.warnings(work.models, _candidates(work), work.stale) if cost.to_score else ():
        work.say(f"warning: {line}")
    kept = read_choices(work.folder)
    chosen = _choose(work, cost, kept)
    if chosen != kept:
        write_choices(work.folder, chosen)


def _candidates(work: Preparation) -> Stored:
    assert work.pairs is not None
    return work.inputs[work.pairs]


def _choose(work: Preparation, cost: Price, kept: Choices | None) -> Choices:
    teacher = work.experiment.teacher
    if teacher.backend == "onnx":
        return Choices(False, "ONNX Runtime")
    if teacher.compile != "auto":
        return Choices(teacher.compile == "on", f"teacher.compile={teacher.compile}")
    if kept is not None:
        return kept
    if cost.to_score < _WORTH_MEASURING:
        return Choices(False, f"fewer than {_WORTH_MEASURING:,} pairs to score")
    return _by_calibration(work, cost.tokens)


def _by_calibration(work: Preparation, tokens: int) -> Choices:
    candidates = str(a_full_shard(_candidates(work), work.stale).absolute())
    workers = min(work.workers, len(work.stale))  # a shard has one worker
    each = tokens / workers
    speed = kept_speed(work.models) or _measured(work, candidates, compiled=False)
    if speed.compiled_tokens_per_second is None and speed.seconds(each, compiled=False) > _WORTH_COMPILING:
        speed = _measured(work, candidates, compiled=True)
    work.say(f"{'':<16} about {duration(wall_seconds(speed, tokens, workers=workers))} ({speed})")
    return Choices(speed.compiling_pays(each), f"calibration: {speed}")


def _measured(work: Preparation, candidates: str, *, compiled: bool) -> Speed:
    work.say(f"{'':<16} measuring how fast this teacher is here{', compiled too' if compiled else ''}, once")
    speed = work.ask(measure, candidates, compiled)
    keep_speed(work.models, speed)
    return speed
