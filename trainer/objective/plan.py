"""From the rows of a global batch to what the step has to encode and compare. No model in here.

Token sequences are compared by their bytes, once: equal ones get one number, by which all that follows knows them, and are encoded once.
What is not needed is not encoded: dark examples of unselected queries never, and of an unselected query without supervised loss nothing.

P~ of a query (ADAM, Eq. 9) is P- and the dark examples that are not left out. A list without any dark example always holds p+ (Eq. 3);
any other holds it only with `include_positive`. Candidates of any other kind are all of P~.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data.config.settings import Objective
from data.tables.schemas import CandidateKind
from trainer.input.stream import TokenSequences, TrainingRow
from trainer.objective.in_batch import InBatch, Numbers, in_batch_of
from trainer.objective.losses import ordered_pairs
from trainer.objective.selection import mean_confidence, select

Sequenced = bytes  # a token sequence: its int32 tokens' bytes
TOKEN_BYTES = 4
_NO_LABELS = np.empty(0, np.float32)
_NONE = np.empty(0, np.int64)


class QueryWork(NamedTuple):
    """What the step computes for one query. Sequences go by their numbers in the batch. No numbers: this loss is not asked of it."""

    query_id: str
    query: int | None  # None where candidates are pairs, which hold it
    supervised: Numbers  # p+ first, then P-
    distilled: Numbers  # P~
    sequences: Numbers  # all that must be encoded for it, each once; none where no loss is asked
    teacher_logits: NDArray[np.float32]  # of P~
    labels: NDArray[np.float32] = _NO_LABELS  # of P~ where the loss learns from them, else none
    supervised_factor: float = 1.0  # of its supervised loss, by the grade of its p+; a number of fp32
    by_pairs: bool = False  # whether the loss is averaged over pairs of different labels

    @property
    def terms(self) -> int:
        """How many terms its distillation loss adds up: 1, or one for each pair of different labels."""
        return ordered_pairs(self.labels) if self.by_pairs else int(bool(len(self.distilled)))


@dataclass(frozen=True)
class BatchWork:
    """The step's work, and the weights of its sums in the total loss."""

    queries: tuple[QueryWork, ...]
    sequences: Sequence[Sequenced]  # by number; all of the rows, also those that nothing asks for
    token_counts: Numbers  # of each of them
    repeats: bool  # whether one of them may be of several queries
    selected: int
    supervised_weight: float  # lambda / b, or 0
    distillation_weight: float  # its weight, T^2 where asked for, over b or the number of selected queries or of terms; or 0
    reference_kl_weight: float  # the same of the divergence from the initial student, over b or the number of selected queries
    in_batch: InBatch | None  # where in-batch negatives are on

    @cached_property
    def terms(self) -> int:
        """Terms of all queries' distillation losses: the selected queries, or the pairs of the global batch."""
        return sum(query.terms for query in self.queries)

    @cached_property
    def query_tokens(self) -> list[int]:
        """Tokens that must be encoded for each query."""
        ends = np.cumsum([len(query.sequences) for query in self.queries], dtype=np.int64)
        sums = np.concatenate([[0], np.cumsum(self.token_counts[self.of_all])])
        return np.diff(sums[ends], prepend=0).tolist()

    @cached_property
    def of_all(self) -> Numbers:
        """What must be encoded for each query, one query after the other."""
        return np.concatenate([query.sequences for query in self.queries]) if self.queries else _NONE

    def needed(self, places: Sequence[int]) -> Numbers:
        """What must be encoded for the queries of these places, each once, in their order."""
        if len(places) == 1:
            return self.queries[places[0]].sequences
        some = np.concatenate([_NONE, *[self.queries[place].sequences for place in places]])
        return self.firsts(some) if self.repeats else some

    def firsts(self, numbers: Numbers) -> Numbers:
        """Each of some sequences once, where it comes first."""
        places = np.arange(len(numbers))
        first = np.empty(len(self.sequences), np.int64)
        first[numbers[::-1]] = places[::-1]  # of equal ones the last that is written stays
        return numbers[first[numbers] == places]

    def tokens(self, numbers: Numbers) -> int:
        """Tokens of some sequences."""
        return int(self.token_counts[numbers].sum())

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each sequence that the step encodes."""
        encoded = np.zeros(len(self.sequences), np.bool_)
        encoded[self.of_all] = True
        if self.in_batch:
            encoded[self.in_batch.passages_N] = True
        return self.token_counts[encoded].tolist()


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
    numbered = _Numbered(rows)
    places = _Places(objective, distils=distils, supervised=supervised_weight > 0)
    given = zip(rows, numbered.rows, selected, strict=True)
    queries = tuple([places.work(row, own, chosen=chosen, repeats=numbered.repeats) for row, own, chosen in given])
    factor = objective.temperature**2 if objective.temperature_squared else 1.0
    per_query = sum(selected) if objective.reduction == "selected" else len(rows)
    by_pairs = objective.loss_traits.averages_over == "pairs"
    terms = max(1, sum(query.terms for query in queries)) if by_pairs else per_query
    return BatchWork(
        queries=queries,
        sequences=numbered.sequences,
        token_counts=numbered.token_counts,
        repeats=numbered.repeats,
        selected=sum(selected),
        supervised_weight=supervised_weight / len(rows),
        distillation_weight=objective.distillation_weight * factor / terms * distils,
        reference_kl_weight=objective.reference_kl_weight * factor / per_query * distils,
        in_batch=in_batch_of(rows, numbered.rows, plain_places, losses=in_batch) if in_batch else None,
    )


class _Numbered:
    """The token sequences of a batch, equal ones once, by numbers in the order of the rows."""

    def __init__(self, rows: Sequence[TrainingRow]) -> None:
        given: list[Sequenced] = []
        counts: list[Numbers] = []
        bounds = [0]
        for row in rows:
            if count := len(row.query_tokens):
                given.append(_sequence(row.query_tokens))
                counts.append(np.array([count]))
            sequences = _sequences(row.candidate_tokens)
            given += sequences.raw
            counts.append(sequences.counts)
            bounds.append(len(given))
        distinct = dict.fromkeys(given)
        self.repeats = len(distinct) < len(given)
        self.sequences: list[Sequenced] = list(distinct) if self.repeats else given
        self.token_counts: Numbers = np.concatenate(counts)
        numbers = np.arange(len(given))
        if self.repeats:
            found = dict(zip(distinct, itertools.count(), strict=False))
            numbers = np.fromiter(map(found.__getitem__, given), np.int64, len(given))
            of_given, self.token_counts = self.token_counts, np.empty(len(distinct), np.int64)
            self.token_counts[numbers] = of_given
        self.rows = [numbers[start:stop] for start, stop in itertools.pairwise(bounds)]  # the query's, if it has tokens, then candidates'


@dataclass(frozen=True)
class _Chosen:
    """Which of a row's numbers are read for what."""

    distilled_places: Numbers  # among its candidates
    supervised: Numbers  # among its numbers, as these
    distilled: Numbers
    sequences: Numbers


class _Places:
    """Which of a list's candidates each loss reads. Most lists have the same kinds in the same order, so each order is looked at once."""

    def __init__(self, objective: Objective, *, distils: bool, supervised: bool) -> None:
        self._objective, self._distils, self._supervised = objective, distils, supervised
        self._traits = objective.loss_traits
        self._found: dict[tuple[tuple[int, ...], bool, bool, bool], _Chosen] = {}

    def work(self, row: TrainingRow, own: Numbers, *, chosen: bool, repeats: bool) -> QueryWork:
        """What is computed for a query of these numbers, which is `chosen` to be distilled or not; `repeats`: some of them may be equal."""
        factor = self._factor_of(row)
        query = len(own) > len(row.kinds)  # a sequence of its own, in front of its candidates
        places = self._of(row.kinds, distilled=chosen and self._distils, supervised=self._supervised and factor > 0, query=query)
        sequences = own[places.sequences]
        if repeats:
            sequences = np.array(list(dict.fromkeys(sequences.tolist())), np.int64)
        return QueryWork(
            query_id=row.query_id,
            query=int(own[0]) if query else None,
            supervised=own[places.supervised],
            distilled=own[places.distilled],
            sequences=sequences,
            teacher_logits=row.teacher_logits[places.distilled_places],
            labels=row.labels[places.distilled_places] if self._traits.learns_from == "labels" else _NO_LABELS,
            supervised_factor=factor,
            by_pairs=self._traits.averages_over == "pairs",
        )

    def _factor_of(self, row: TrainingRow) -> float:
        """Of the row's supervised loss, by the grade of its p+."""
        weights = self._objective.positive_weights
        if not (weights and self._supervised):
            return 1.0
        assert row.positive_grade is not None, "of `check_grades`"
        return float(np.float32(weights[row.positive_grade]))

    def _of(self, kinds: tuple[int, ...], *, distilled: bool, supervised: bool, query: bool) -> _Chosen:
        key = kinds, distilled, supervised, query
        if key not in self._found:
            of_distilled = distilled_places(kinds, objective=self._objective) if distilled else []
            of_supervised = plain_places(kinds) if supervised else []
            read = [int(query) + place for place in dict.fromkeys((*of_supervised, *of_distilled))]
            self._found[key] = _Chosen(
                np.array(of_distilled, np.int64), np.array(of_supervised, np.int64) + query, np.array(of_distilled, np.int64) + query,
                np.array([*([0] if query and read else []), *read], np.int64),
            )  # fmt: skip
        return self._found[key]


def plain_places(kinds: Sequence[int]) -> list[int]:
    """Places of p+ and then P-."""
    negatives = [place for place, kind in enumerate(kinds) if kind == CandidateKind.NEGATIVE]
    return [list(kinds).index(CandidateKind.POSITIVE), *negatives]


def _sequences(tokens: Sequence[NDArray[np.int32]]) -> TokenSequences:
    if isinstance(tokens, TokenSequences):
        return tokens
    return TokenSequences(tuple(map(_sequence, tokens)), np.array(list(map(len, tokens)), np.int64))


def _sequence(tokens: NDArray[np.int32]) -> Sequenced:
    return tokens.tobytes() if tokens.dtype == np.int32 else tokens.astype(np.int32).tobytes()
