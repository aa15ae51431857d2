"""What is said of processes that wait for each other."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from data.config.settings import Objective
from trainer.input.stream import TrainingRow
from trainer.objective.plan import BatchWork, plan_batch
from trainer.steps.idle_share import idle_note, idle_share, piece_tokens
from trainer.steps.micro_batches import cut


def work_of(count: int, *, in_batch: str = "none") -> BatchWork:
    """Queries of 10 tokens each, 2 of them the query's own; nothing is of two queries."""
    rows = [
        TrainingRow(
            f"q{place}", np.array([1, place]), (np.full(4, 3 * place), np.full(4, 3 * place + 1)), (0, 1), (f"a{place}", f"b{place}"),
            np.zeros(2, np.float32), 0.0,
        )
        for place in range(count)
    ]  # fmt: skip
    return plan_batch(rows, objective=Objective(in_batch=in_batch), share=Fraction(1))


@pytest.mark.parametrize(("processes", "idle"), [(1, 0.0), (2, 0.5), (4, 0.75), (8, 0.875)])
def test_one_group_keeps_one_process_busy(processes: int, idle: float) -> None:
    """Prevents: GPUs that idle in every step without a word, where a batch has few tokens."""
    work = work_of(16)
    assert piece_tokens(work, cut(work, budget=1000)) == ([], [160])
    assert idle_share(work, cut(work, budget=1000), processes=processes) == idle
    note = idle_note(work, cut(work, budget=1000), budget=1000, pieces=None, processes=processes)
    assert (note is None) == (processes == 1)
    if note:
        assert f"{idle:.0%} of the time of {processes} processes" in note and f"train.pieces={processes} it is 0%" in note
    assert idle_share(work, cut(work, budget=1000, pieces=processes), processes=processes) == 0


def test_advice_that_would_not_help_is_not_given() -> None:
    """Prevents: a new run with other pieces that is as idle, since there are no more queries."""
    work = work_of(2)
    note = idle_note(work, cut(work, budget=1000, pieces=8), budget=1000, pieces=8, processes=8)
    assert note is not None and "75%" in note and "train.batch_queries" in note and "train.pieces" not in note


def test_groups_of_in_batch_negatives_cost_no_tokens() -> None:
    """Prevents: processes that count as busy with a share of the loss, while one of them encodes everything."""
    work = work_of(16, in_batch="both")
    assert idle_share(work, cut(work, budget=1000), processes=4) == 0.75
    assert idle_share(work, cut(work, budget=1000, pieces=4), processes=4) < 0.4
