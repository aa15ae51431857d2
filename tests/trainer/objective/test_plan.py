from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from data.config.settings import Objective
from data.tables.schemas import CandidateKind as Kind
from trainer.input.stream import TrainingRow
from trainer.objective.plan import distilled_places, plan_batch
from trainer.objective.total import list_names
from trainer.steps.micro_batches import cut

KINDS = [Kind.POSITIVE, Kind.NEGATIVE, Kind.NEGATIVE, Kind.REINFORCED_NEGATIVE, Kind.REINFORCED_NEGATIVE, Kind.NOISY_POSITIVE]


def training_row(values: dict[str, Any]) -> TrainingRow:
    return TrainingRow(
        query_id=values["query_id"],
        query_tokens=np.array(values["query_tokens"], dtype=np.int32),
        candidate_tokens=tuple(np.array(tokens, dtype=np.int32) for tokens in values["candidate_tokens"]),
        kinds=tuple(values["candidate_kind"]),
        candidate_ids=tuple(values["candidate_id"]),
        teacher_logits=np.array(values["teacher_logits"], dtype=np.float32),
        confidence=values["confidence"],
    )


@pytest.fixture
def rows(row_maker: Callable[..., dict[str, Any]]) -> list[TrainingRow]:
    generator = np.random.default_rng(0)
    return [training_row(row_maker(generator, f"q{number}")) for number in range(6)]


@pytest.mark.parametrize(
    ("without", "include_positive", "places"),
    [
        ((), False, [1, 2, 3, 4, 5]),
        ((), True, [0, 1, 2, 3, 4, 5]),
        (("reinforced",), False, [1, 2, 5]),
        (("noisy",), False, [1, 2, 3, 4]),
        (("reinforced", "noisy"), False, [0, 1, 2]),
        (("reinforced", "noisy"), True, [0, 1, 2]),
    ],
)
def test_candidates_of_distillation(without: Any, include_positive: bool, places: list[int]) -> None:
    """P~ without p+ where Eq. 3 has it, or with it where Eq. 9 has not: another method under the same name."""
    assert distilled_places(KINDS, objective=Objective(without=without, include_positive=include_positive)) == places


def test_shards_without_dark_examples_hold_the_positive() -> None:
    """A list of negatives alone teaches nothing about the positive."""
    assert distilled_places(KINDS[:3], objective=Objective()) == [0, 1, 2]


def test_unselected_queries_encode_no_dark_example(rows: list[TrainingRow]) -> None:
    """Encoding what no loss looks at: up to half of the epoch's time."""
    work = plan_batch(rows, objective=Objective(), share=Fraction(1, 2))
    by_confidence = sorted(rows, key=lambda row: -row.confidence)
    assert work.selected == 3 and {q.query_id for q in work.queries if len(q.distilled)} == {row.query_id for row in by_confidence[:3]}
    for row, query in zip(rows, work.queries, strict=True):
        assert len(query.supervised) == 4 and len(query.distilled) in (0, 8)
        assert len(query.sequences) == (10 if len(query.distilled) else 5)
        if len(query.distilled):
            assert query.teacher_logits.tolist() == row.teacher_logits[1:].tolist()


@pytest.mark.parametrize("objective", [Objective(without=("supervised",)), Objective(supervised_weight=0)])
def test_without_supervised_loss_unselected_queries_encode_nothing(rows: list[TrainingRow], objective: Objective) -> None:
    """Work for a weight of 0."""
    work = plan_batch(rows, objective=objective, share=Fraction(1, 2))
    assert [bool(len(query.sequences)) for query in work.queries] == [bool(len(query.distilled)) for query in work.queries]
    assert work.supervised_weight == 0
    assert sum(map(len, cut(work, budget=10**6).groups)) == 3


def test_weights_of_the_sums(rows: list[TrainingRow]) -> None:
    """Means over different counts change the paper's ratio of the two terms as the share falls."""
    literal = plan_batch(rows, objective=Objective(), share=Fraction(1, 2))
    assert (literal.supervised_weight, literal.distillation_weight) == (0.01 / 6, 1 / 6)
    selected = plan_batch(rows, objective=Objective(reduction="selected"), share=Fraction(1, 2))
    assert (selected.supervised_weight, selected.distillation_weight) == (0.01 / 6, 1 / 3)
    assert plan_batch(rows, objective=Objective(without=("adaptive",)), share=Fraction(1, 2)).selected == 6


def test_what_is_never_a_negative_is_none_of_the_batch_s(rows: list[TrainingRow]) -> None:
    """Prevents: another labelled positive of a query, which its own row does not list, taught as its in-batch negative."""
    other, mine = rows[1], rows[0]
    positive = other.candidate_ids[0]
    work = plan_batch([replace(mine, never_ids=(positive, "elsewhere")), other], objective=Objective(in_batch="both"), share=Fraction(1))
    in_batch = work.in_batch
    assert in_batch is not None
    of_other = int(np.flatnonzero([work.sequences[number] == other.candidate_tokens[0].tobytes() for number in in_batch.passages_N])[0])
    assert of_other in in_batch.closed_to([0]) and len(in_batch.passages_N) == 8
    assert len(in_batch.passages_N) - len(in_batch.closed_to([0])) == 3  # the other query's negatives
    before = plan_batch([mine, other], objective=Objective(in_batch="both"), share=Fraction(1)).in_batch
    assert before and len(before.passages_N) - len(before.closed_to([0])) == 4


def test_lists_of_one_query_have_names_of_their_own() -> None:
    """Prevents: two lists of a query in one batch of which the reported loss has one."""
    assert list_names(["a", "b", "a", "a"]) == ["a", "b", "a (2)", "a (3)"]
    assert list_names(["a", "a", "a (2)", "a (2)", "a"]) == ["a", "a (3)", "a (2)", "a (2) (2)", "a (4)"]
