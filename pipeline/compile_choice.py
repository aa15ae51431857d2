"""Whether a table of teacher scores uses torch.compile: chosen once for a table, before its first shard is built."""

from __future__ import annotations

from pipeline.calibration import Speed, keep_speed, kept_speed, measure
from pipeline.execution import Choices, has_choices, read_choices, write_choices
from pipeline.price import a_full_shard, hours, price
from pipeline.progress import duration
from pipeline.stage import Preparation, Stored

_WORTH_MEASURING = 20_000  # pairs; below, a calibration and a compilation would cost more than they can save
_WORTH_COMPILING = 300.0  # seconds of scoring by each worker


def prepare(work: Preparation) -> None:
    """Say what will be scored, and settle how. A choice that was made for this table stays, unless the settings ask for another."""
    cost = price(work.experiment, _candidates(work), work.stale, warn=lambda line: work.say(f"warning: {line}"))
    work.say(f"{work.label:<16} {cost}")
    asked, kept = work.experiment.teacher.compile, read_choices(work.folder)
    if work.experiment.teacher.backend == "onnx":
        chosen = Choices(False, "ONNX Runtime")
    elif asked != "auto":
        chosen = Choices(asked == "on", f"teacher.compile={asked}")
    elif has_choices(work.folder):
        chosen = kept
    elif cost.to_score < _WORTH_MEASURING:
        chosen = Choices(False, f"fewer than {_WORTH_MEASURING:,} pairs to score")
    else:
        chosen = _by_calibration(work, cost.tokens)
    if chosen != kept or not has_choices(work.folder):
        write_choices(work.folder, chosen)


def _candidates(work: Preparation) -> Stored:
    assert work.pairs is not None
    return work.inputs[work.pairs]


def _by_calibration(work: Preparation, tokens: int) -> Choices:
    candidates = str(a_full_shard(_candidates(work), work.stale).absolute())
    each = tokens / min(work.workers, len(work.stale))
    speed = kept_speed(work.experiment) or _measured(work, candidates, compiled=False)
    if speed.compiled_tokens_per_second is None and speed.seconds(each, compiled=False) > _WORTH_COMPILING:
        speed = _measured(work, candidates, compiled=True)
    work.say(f"{'':<16} about {duration(hours(speed, tokens, workers=tokens / each) * 3600)} ({describe(speed)})")
    if speed.compiling_pays(each):
        return Choices(True, f"calibration: {describe(speed)}")
    return Choices(False, f"calibration: {describe(speed)}")


def _measured(work: Preparation, candidates: str, *, compiled: bool) -> Speed:
    work.say(f"{'':<16} measuring how fast this teacher is here{', compiled too' if compiled else ''}, once")
    speed = work.ask(measure, candidates, compiled)
    keep_speed(work.experiment, speed)
    return speed


def describe(speed: Speed) -> str:
    """The speed in words."""
    if speed.compile_error:
        return f"{speed.tokens_per_second:,.0f} tokens/s a worker, torch.compile does not work there: {speed.compile_error}, {speed.device}"
    compiled = f", {speed.compiled_tokens_per_second:,.0f} compiled" if speed.compiled_tokens_per_second else ""
    return f"{speed.tokens_per_second:,.0f} tokens/s a worker{compiled}, {speed.device}"
