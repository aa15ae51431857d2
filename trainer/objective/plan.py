"""From the rows of a global batch to what the step has to encode and compare. No model in here.

A token sequence is known by its bytes, so equal passages are found by comparing, and encoded once. What is not needed is not encoded:
dark examples of unselected queries never, and of an unselected query without supervised loss nothing at all.

P~ of a query (ADAM, Eq. 9) is P- and the dark examples that are not left out. A list without any dark example always holds p+ (Eq. 3);
any other holds it only with `include_positive`. Of a list of groups (CL-DRD) P~ is all of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from data.config.settings import Objective
from data.tables.cl_drd_groups import labels_of, ordered_pairs
from data.tables.schemas import CandidateKind
from trainer.input.stream import TrainingRow
from trainer.objective.selection import select

Sequenced = bytes  # a token sequence: its int32 tokens' bytes


@dataclass(frozen=True)
class QueryWork:
    """What the step computes for one query. Empty tuples: this loss is not asked of it."""

    query_id: str
    query: Sequenced  # empty where candidates are pairs, which hold it
    supervised: tuple[Sequenced, ...]  # p+ first, then P-
    distilled: tuple[Sequenced, ...]  # P~
    teacher_logits: NDArray[np.float32]  # of P~
    own: frozenset[Sequenced | str]  # sequences and ids of its candidates, ids of what is never its negative: none an in-batch negative
    labels: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))  # of P~ where the loss goes by pairs of them, else none

    @property
    def sequences(self) -> list[Sequenced]:
        """All that must be encoded for it, each once; nothing where no loss is asked."""
        if not self.supervised and not self.distilled:
            return []
        return list(dict.fromkeys((*([self.query] if self.query else []), *self.supervised, *self.distilled)))

    @property
    def terms(self) -> int:
        """How many terms its distillation loss adds up: 1, or one for each pair of different labels."""
        return ordered_pairs(self.labels) if len(self.labels) else int(bool(self.distilled))

    @property
    def tokens(self) -> int:
        """Tokens to encode, without padding."""
        return sum(token_count(sequence) for sequence in self.sequences)


@dataclass(frozen=True)
class PoolPassage:
    """A passage that other queries of the batch see as an in-batch negative, with the ids it goes by."""

    sequence: Sequenced
    ids: frozenset[str]


@dataclass(frozen=True)
class BatchWork:
    """The step's work, and the weights of its sums in the total loss."""

    queries: tuple[QueryWork, ...]
    selected: int
    supervised_weight: float  # lambda / b, or 0
    distillation_weight: float  # its weight, T^2 where asked for, over b or the number of selected queries or of terms; or 0
    keep_weight: float  # the same of the term that keeps the student near its start, over b or the number of selected queries
    pool: tuple[PoolPassage, ...]  # p+ and P- of all queries, where in-batch negatives are on
    in_batch: str

    @property
    def terms(self) -> int:
        """Terms of all queries' distillation losses: the selected queries, or the pairs of the global batch."""
        return sum(query.terms for query in self.queries)


def token_count(sequence: Sequenced) -> int:
    """Tokens of a sequence."""
    return len(sequence) // np.dtype(np.int32).itemsize


def distilled_places(kinds: Sequence[int], *, objective: Objective) -> list[int]:
    """Places of P~ in a query's list of candidates, that of p+ first where it belongs to P~."""
    left_out = {
        CandidateKind.REINFORCED_NEGATIVE: "reinforced" in objective.without,
        CandidateKind.NOISY_POSITIVE: "noisy" in objective.without,
    }
    dark = [kind for kind in kinds if not left_out.get(CandidateKind(kind), True)]
    left_out[CandidateKind.POSITIVE] = bool(dark) and not objective.include_positive
    places = [place for place, kind in enumerate(kinds) if not left_out.get(CandidateKind(kind), False)]
    return sorted(places, key=lambda place: kinds[place] != CandidateKind.POSITIVE)


def plan_batch(rows: Sequence[TrainingRow], *, objective: Objective, share: Fraction) -> BatchWork:
    """Select over the global batch and list what each query needs.

    Args:
        rows: The global batch, b queries.
        objective: The loss.
        share: The epoch's share of selected queries; not looked at where adaptivity is left out.
    """
    selected = [True] * len(rows)
    if "adaptive" not in objective.without:
        selected = select([row.confidence for row in rows], [row.query_id for row in rows], share)
    distils = "distillation" not in objective.without
    supervised_weight = 0.0 if "supervised" in objective.without else objective.supervised_weight
    queries = tuple(
        _query_work(row, objective=objective, distilled=chosen and distils, supervised=supervised_weight > 0)
        for row, chosen in zip(rows, selected, strict=True)
    )
    factor = objective.temperature**2 if objective.temperature_squared else 1.0
    per_query = sum(selected) if objective.reduction == "selected" else len(rows)
    terms = max(1, sum(query.terms for query in queries)) if objective.distillation == "curriculum" else per_query
    in_batch = objective.in_batch
    if supervised_weight == 0:
        in_batch = "distillation" if in_batch in ("distillation", "both") else "none"
    if not distils:
        in_batch = "supervised" if in_batch in ("supervised", "both") else "none"
    return BatchWork(
        queries=queries,
        selected=sum(selected),
        supervised_weight=supervised_weight / len(rows),
        distillation_weight=objective.distillation_weight * factor / terms * distils,
        keep_weight=objective.reference_kl_weight * factor / per_query * distils,
        pool=_pool(rows) if in_batch != "none" else (),
        in_batch=in_batch,
    )


def _query_work(row: TrainingRow, *, objective: Objective, distilled: bool, supervised: bool) -> QueryWork:
    sequences = [_sequence(tokens) for tokens in row.candidate_tokens]
    places = distilled_places(row.kinds, objective=objective) if distilled else []
    return QueryWork(
        query_id=row.query_id,
        query=_sequence(row.query_tokens),
        supervised=tuple(sequences[place] for place in _plain_places(row.kinds)) if supervised else (),
        distilled=tuple(sequences[place] for place in places),
        teacher_logits=row.teacher_logits[places],
        own=frozenset((*sequences, *row.candidate_ids, *row.never_ids)),
        labels=labels_of(row.kinds)[places] if objective.distillation == "curriculum" else np.empty(0),
    )


def _plain_places(kinds: Sequence[int]) -> list[int]:
    """Places of p+ and then P-."""
    negatives = [place for place, kind in enumerate(kinds) if kind == CandidateKind.NEGATIVE]
    return [list(kinds).index(CandidateKind.POSITIVE), *negatives]


def _pool(rows: Sequence[TrainingRow]) -> tuple[PoolPassage, ...]:
    ids: dict[Sequenced, set[str]] = {}
    for row in rows:
        for place in _plain_places(row.kinds):
            ids.setdefault(_sequence(row.candidate_tokens[place]), set()).add(row.candidate_ids[place])
    return tuple(PoolPassage(sequence, frozenset(names)) for sequence, names in ids.items())


def _sequence(tokens: NDArray[np.int32]) -> Sequenced:
    return tokens.astype(np.int32, copy=False).tobytes()
