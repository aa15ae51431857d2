"""From the rows of a global batch to what the step has to encode and compare. No model in here.

A token sequence is known by its bytes, so equal passages are found by comparing, and encoded once. What is not needed is not encoded:
dark examples of unselected queries never, and of an unselected query without supervised loss nothing at all.

P~ of a query (ADAM, Eq. 9) is P- and the dark examples that are not left out. A list without any dark example always holds p+ (Eq. 3);
any other holds it only with `include_positive`. Candidates of any other kind are all of P~.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from data.config.settings import Objective
from data.tables.schemas import CandidateKind
from trainer.input.stream import TokenSequences, TrainingRow
from trainer.objective.losses import ordered_pairs
from trainer.objective.selection import mean_confidence, select

Sequenced = bytes  # a token sequence: its int32 tokens' bytes
TOKEN_BYTES = 4
_NO_LABELS = np.empty(0, np.float32)


@dataclass(frozen=True)
class QueryWork:
    """What the step computes for one query. Empty tuples: this loss is not asked of it."""

    query_id: str
    query: Sequenced  # empty where candidates are pairs, which hold it
    supervised: tuple[Sequenced, ...]  # p+ first, then P-
    distilled: tuple[Sequenced, ...]  # P~
    teacher_logits: NDArray[np.float32]  # of P~
    # Sequences and ids of its candidates, ids of what is never its negative: no in-batch negatives. Empty where there are none of these.
    own: frozenset[Sequenced | str]
    labels: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))  # of P~ where the loss learns from them, else none
    supervised_factor: float = 1.0  # of its supervised loss, by the grade of its p+; a number of fp32
    by_pairs: bool = False  # whether the loss is averaged over pairs of different labels

    @cached_property
    def sequences(self) -> list[Sequenced]:
        """All that must be encoded for it, each once; nothing where no loss is asked."""
        if not self.supervised and not self.distilled:
            return []
        return list(dict.fromkeys((*([self.query] if self.query else []), *self.supervised, *self.distilled)))

    @property
    def terms(self) -> int:
        """How many terms its distillation loss adds up: 1, or one for each pair of different labels."""
        return ordered_pairs(self.labels) if self.by_pairs else int(bool(self.distilled))


@dataclass(frozen=True)
class InBatchPassage:
    """A passage that other queries of the batch see as a negative, with the ids it goes by."""

    sequence: Sequenced
    ids: frozenset[str]


@dataclass(frozen=True)
class BatchWork:
    """The step's work, and the weights of its sums in the total loss."""

    queries: tuple[QueryWork, ...]
    selected: int
    supervised_weight: float  # lambda / b, or 0
    distillation_weight: float  # its weight, T^2 where asked for, over b or the number of selected queries or of terms; or 0
    reference_kl_weight: float  # the same of the divergence from the initial student, over b or the number of selected queries
    in_batch_passages: tuple[InBatchPassage, ...]  # p+ and P- of all queries, where in-batch negatives are on
    in_batch: tuple[str, ...]  # the losses that these join

    @cached_property
    def terms(self) -> int:
        """Terms of all queries' distillation losses: the selected queries, or the pairs of the global batch."""
        return sum(query.terms for query in self.queries)

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each sequence that the step encodes."""
        sequences = {sequence for query in self.queries for sequence in query.sequences}
        sequences |= {passage.sequence for passage in self.in_batch_passages}
        return [token_count(sequence) for sequence in sequences]


def token_count(sequence: Sequenced) -> int:
    """Tokens of a sequence."""
    return len(sequence) // TOKEN_BYTES


def distilled_places(kinds: Sequence[int], *, objective: Objective) -> list[int]:
    """Places of P~ in a query's list of candidates, that of p+ first where it belongs to P~."""
    names = {CandidateKind.REINFORCED_NEGATIVE: "reinforced", CandidateKind.NOISY_POSITIVE: "noisy"}
    excluded = {kind for kind, name in names.items() if name in objective.without}
    if not objective.include_positive and (set(kinds) & names.keys()) - excluded:
        excluded.add(CandidateKind.POSITIVE)
    places = [place for place, kind in enumerate(kinds) if kind not in excluded]
    return sorted(places, key=lambda place: kinds[place] != CandidateKind.POSITIVE)


def plan_batch(rows: Sequence[TrainingRow], *, objective: Objective, share: Fraction) -> BatchWork:
    """Select over the global batch and list what each of its b queries needs.

    `share` is the epoch's share of selected queries; unused where the objective is not adaptive.
    """
    selected = [True] * len(rows)
    if "adaptive" not in objective.without:
        by_mean = objective.confidence == "mean"
        confidences = [mean_confidence(row.kinds, row.teacher_logits) if by_mean else row.confidence for row in rows]
        selected = select(confidences, [row.query_id for row in rows], share)
    distils = "distillation" not in objective.without
    supervised_weight = 0.0 if "supervised" in objective.without else objective.supervised_weight
    asked = {"supervised": supervised_weight > 0, "distillation": distils}
    in_batch = tuple(loss for loss, is_asked in asked.items() if is_asked and objective.in_batch in (loss, "both"))
    places = _Places(objective)
    queries = tuple(
        _query_work(row, places, distilled=chosen and distils, supervised=supervised_weight > 0, in_batch=bool(in_batch))
        for row, chosen in zip(rows, selected, strict=True)
    )
    factor = objective.temperature**2 if objective.temperature_squared else 1.0
    per_query = sum(selected) if objective.reduction == "selected" else len(rows)
    by_pairs = objective.loss_traits.averages_over == "pairs"
    terms = max(1, sum(query.terms for query in queries)) if by_pairs else per_query
    return BatchWork(
        queries=queries,
        selected=sum(selected),
        supervised_weight=supervised_weight / len(rows),
        distillation_weight=objective.distillation_weight * factor / terms * distils,
        reference_kl_weight=objective.reference_kl_weight * factor / per_query * distils,
        in_batch_passages=_in_batch_passages(rows) if in_batch else (),
        in_batch=in_batch,
    )


class _Places:
    """Which of a list's candidates each loss reads. Most lists have the same kinds in the same order, so each order is looked at once."""

    def __init__(self, objective: Objective) -> None:
        self.objective, self.traits = objective, objective.loss_traits
        self._found: dict[tuple[tuple[int, ...], str], list[int]] = {}

    def factor_of(self, row: TrainingRow) -> float:
        """Of the row's supervised loss, by the grade of its p+."""
        weights = self.objective.positive_weights
        if not weights:
            return 1.0
        assert row.positive_grade is not None, "of `check_grades`"
        return float(np.float32(weights[row.positive_grade]))

    def of(self, kinds: tuple[int, ...], loss: str) -> list[int]:
        """Places of p+ and P- for `supervised`, of P~ for `distillation`."""
        if (kinds, loss) not in self._found:
            places = _plain_places(kinds) if loss == "supervised" else distilled_places(kinds, objective=self.objective)
            self._found[kinds, loss] = places
        return self._found[kinds, loss]


def _query_work(row: TrainingRow, places: _Places, *, distilled: bool, supervised: bool, in_batch: bool) -> QueryWork:
    sequences = _sequences(row.candidate_tokens)
    of_distilled = places.of(row.kinds, "distillation") if distilled else []
    factor = places.factor_of(row) if supervised else 1.0
    of_supervised = places.of(row.kinds, "supervised") if supervised and factor else []
    return QueryWork(
        query_id=row.query_id,
        query=_sequence(row.query_tokens),
        supervised=tuple([sequences[place] for place in of_supervised]),
        distilled=tuple([sequences[place] for place in of_distilled]),
        teacher_logits=row.teacher_logits[of_distilled],
        own=frozenset((*sequences, *row.candidate_ids, *row.never_ids)) if in_batch else frozenset(),
        supervised_factor=factor,
        labels=row.labels[of_distilled] if places.traits.learns_from == "labels" else _NO_LABELS,
        by_pairs=places.traits.averages_over == "pairs",
    )


def _plain_places(kinds: Sequence[int]) -> list[int]:
    """Places of p+ and then P-."""
    negatives = [place for place, kind in enumerate(kinds) if kind == CandidateKind.NEGATIVE]
    return [list(kinds).index(CandidateKind.POSITIVE), *negatives]


def _in_batch_passages(rows: Sequence[TrainingRow]) -> tuple[InBatchPassage, ...]:
    ids: dict[Sequenced, set[str]] = {}
    for row in rows:
        for place in _plain_places(row.kinds):
            ids.setdefault(_sequence(row.candidate_tokens[place]), set()).add(row.candidate_ids[place])
    return tuple(InBatchPassage(sequence, frozenset(names)) for sequence, names in ids.items())


def _sequences(tokens: Sequence[NDArray[np.int32]]) -> Sequence[Sequenced]:
    return tokens.raw if isinstance(tokens, TokenSequences) else [_sequence(one) for one in tokens]


def _sequence(tokens: NDArray[np.int32]) -> Sequenced:
    return tokens.tobytes() if tokens.dtype == np.int32 else tokens.astype(np.int32).tobytes()
