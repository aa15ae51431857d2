"""What evaluating on the dev sets will cost: how often, and how long on this machine. Encoding is nearly all of it."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.config.settings import Train
from trainer.evaluation.dev_set import DevSet, encode_all
from trainer.evaluation.schedule import is_due
from trainer.steps.gradients import StepSettings
from trainer.steps.prepare_model import Model

_MEASURED_BATCHES = 4  # of micro_batch_tokens, after as many that warm up


def evaluations(settings: Train, *, epoch_ends: list[int]) -> int:
    """How many a run has that does not stop early."""
    return sum(is_due(step, settings=settings, epoch_ends=epoch_ends) for step in range(1, epoch_ends[-1] + 1))


def tokens(sets: Sequence[DevSet]) -> int:
    """Tokens that an evaluation encodes."""
    return sum(int(texts.bounds[-1]) for dev in sets for texts in (dev.queries, dev.passages))


def described(sets: Sequence[DevSet]) -> str:
    """`NanoSciFact, NanoNFCorpus: 100 queries, 5,872 passages, 1,021,344 tokens`."""
    queries, passages = (sum(map(len, texts)) for texts in zip(*((dev.query_ids, dev.doc_ids) for dev in sets), strict=True))
    return f"{', '.join(dev.name for dev in sets)}: {queries:,} queries, {passages:,} passages, {tokens(sets):,} tokens"


def evaluation_seconds(model: Model, sets: Sequence[DevSet], *, settings: StepSettings) -> float:
    """Seconds of one evaluation, from the speed on some passages of all sets."""
    sample = _sample(sets, tokens=_MEASURED_BATCHES * settings.micro_batch_tokens)
    encode_all(model, sample, settings=settings)  # the first time allocates
    started = time.perf_counter()
    encode_all(model, sample, settings=settings)
    return (time.perf_counter() - started) * tokens(sets) / sum(map(len, sample))


def _sample(sets: Sequence[DevSet], *, tokens: int) -> list[NDArray[np.int32]]:
    """Passages of each set at even distances, of about so many tokens in all; at least one of each."""
    sample: list[NDArray[np.int32]] = []
    for dev in sets:
        count = len(dev.passages)
        mean = max(1, int(dev.passages.bounds[-1]) // count)
        wanted = min(count, max(1, tokens // len(sets) // mean))
        sample += [dev.passages.part(row, row + 1)[0] for row in np.linspace(0, count - 1, wanted, dtype=np.int64).tolist()]
    return sample
