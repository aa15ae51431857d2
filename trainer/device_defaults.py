"""Settings of a step whose default depends on the machine. What is used is keyed: another machine with other defaults is another run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data.config.settings import Experiment

# A CPU is busy with few tokens. A GPU waits for the host below some ten thousand: each pass is hundreds of launches, whatever its size.
MICRO_BATCH_TOKENS = {"cpu": 4096, "cuda": 65_536}
_PIECES = 8  # what micro-batches come in multiples of by themselves, see `trainer.steps.micro_batches`


def with_device_defaults(experiment: Experiment, *, processes: int, begun: Mapping[str, Any] | None = None) -> Experiment:
    """The experiment with what `train` leaves open: tokens of a micro-batch by device; for more than 8 processes on GPUs, pieces for all.

    Up to 8 processes the micro-batches do not depend on their number, nor does anything on a CPU. `begun` are the keyed values of `train`
    of the run that goes on, whose pieces stay on GPUs however many processes there are now; None: it begins.
    """
    settings = experiment.train
    found: dict[str, Any] = {}
    if settings.micro_batch_tokens is None:
        found["micro_batch_tokens"] = MICRO_BATCH_TOKENS[settings.device]
    if settings.pieces is None and settings.device == "cuda":
        for_all = processes if processes > _PIECES else None
        found["pieces"] = for_all if begun is None else begun.get("pieces")
    return experiment.model_copy(update={"train": settings.model_copy(update=found)})


def filling_budget(experiment: Experiment, *, tokens: float) -> int | None:
    """A budget of a micro-batch that fills the device better than passes of so many tokens; None where the budget is not what keeps them
    small."""
    settings = experiment.train
    assert settings.micro_batch_tokens is not None, "of `with_device_defaults`"
    fills = MICRO_BATCH_TOKENS[settings.device]
    return fills if settings.micro_batch_tokens < fills and tokens > settings.micro_batch_tokens / 4 else None
