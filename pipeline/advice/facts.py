"""What a sample of lists and pools says of a teacher and a collection, in numbers. Arrays in, numbers out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from data.tables.schemas import CandidateKind
from pipeline.stages.confidence import confidence, entropy
from retrieval.evaluation.metrics import p_floor, randomisation_test

_CUTOFF = 10  # of the reciprocal rank
_SAME_WORDS = 0.8  # share of the words of both texts from which on one is nearly the other
_HALF = math.log(0.5)


@dataclass(frozen=True)
class OneList:
    """A query's list: `kinds` [K], `logits` [K] and the texts of it; p+ comes first."""

    kinds: NDArray[np.int8]
    logits: NDArray[np.float64]
    texts: Sequence[str]


@dataclass(frozen=True)
class ListFacts:
    """Of all lists of a sample. Shares are from 0 to 1."""

    lists: int
    pairs: int
    sure: float  # share of lists whose C(q) is above log 1/2: p+ has more than half of the probability over {p+} and P-
    confidence: float  # median C(q), nats
    above: dict[CandidateKind, float]  # by kind the share of candidates with a higher logit than p+
    margin: float  # median over lists: logit of p+ less the mean of P-
    overlap: float  # probability that a negative of any list has a higher logit than a p+ of any list
    shared: float  # median over lists: how many of {p+} and P- share the teacher's probability (exp of its entropy), 1 if one has all
    shared_with_dark: float  # the same of the whole list
    nearly_positive: float  # share of negatives with nearly the words of their p+


def facts_of_lists(lists: Sequence[OneList]) -> ListFacts:
    """Raises ValueError where there is no list, or one without negatives."""
    if not lists:
        raise ValueError("no list to look at")
    margins, confidences, shared, with_dark = [], [], [], []
    above: dict[CandidateKind, list[NDArray[np.bool_]]] = {}
    positives, negatives, nearly = [], [], []
    for one in lists:
        positive = float(one.logits[0])
        of_negatives = one.logits[one.kinds == CandidateKind.NEGATIVE]
        if not len(of_negatives):
            raise ValueError("a list without negatives")
        margins.append(positive - float(of_negatives.mean()))
        confidences.append(confidence(positive, of_negatives))
        shared.append(math.exp(entropy(np.concatenate([[positive], of_negatives]))))
        with_dark.append(math.exp(entropy(one.logits)))
        for kind in set(one.kinds[1:].tolist()):
            above.setdefault(CandidateKind(kind), []).append(one.logits[one.kinds == kind] > positive)
        positives.append(positive)
        negatives.append(of_negatives)
        words = _words(one.texts[0])
        nearly += [_alike(words, _words(text)) >= _SAME_WORDS for text, kind in _of_kind(one, CandidateKind.NEGATIVE)]
    return ListFacts(
        lists=len(lists),
        pairs=sum(len(one.logits) for one in lists),
        sure=float(np.mean(np.array(confidences) > _HALF)),
        confidence=float(np.median(confidences)),
        above={kind: float(np.concatenate(parts).mean()) for kind, parts in sorted(above.items())},
        margin=float(np.median(margins)),
        overlap=overlap(np.array(positives), np.concatenate(negatives)),
        shared=float(np.median(shared)),
        shared_with_dark=float(np.median(with_dark)),
        nearly_positive=float(np.mean(nearly)),
    )


def overlap(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> float:
    """Probability that a negative is above a positive, ties counted half: 1 less the area under the ROC curve."""
    ordered = np.sort(positives)
    below, up_to = np.searchsorted(ordered, negatives, "left"), np.searchsorted(ordered, negatives, "right")
    return float((below + up_to).mean() / 2 / len(positives))


def _of_kind(one: OneList, kind: CandidateKind) -> list[tuple[str, int]]:
    return [(text, found) for text, found in zip(one.texts, one.kinds.tolist(), strict=True) if found == kind]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.casefold().split())


def _alike(first: frozenset[str], second: frozenset[str]) -> float:
    """Jaccard's coefficient."""
    return len(first & second) / max(1, len(first | second))


@dataclass(frozen=True)
class OnePool:
    """The first passages of a query in the student's order: the teacher's `logits` [n], and which of them are `positive` [n]."""

    logits: NDArray[np.float64]
    positive: NDArray[np.bool_]


@dataclass(frozen=True)
class Headroom:
    """What the teacher makes of the student's lists. `p_value` is two-sided, of the difference of both over the queries."""

    queries: int
    found: float  # share of queries with a positive among the passages
    student: float  # MRR@10 of its own order
    teacher: float  # of the teacher's order of the same passages
    p_value: float
    p_floor: float = 0.0  # the least that the test can give for these queries


def headroom_of(pools: Sequence[OnePool]) -> Headroom:
    """Raises ValueError where there is no pool."""
    if not pools:
        raise ValueError("no pool to look at")
    student = np.array([_reciprocal_rank(pool.positive) for pool in pools])
    teacher = np.array([_reciprocal_rank(pool.positive[np.argsort(-pool.logits, kind="stable")]) for pool in pools])
    found = float(np.mean([pool.positive.any() for pool in pools]))
    return Headroom(
        len(pools), found, float(student.mean()), float(teacher.mean()), randomisation_test(teacher - student), p_floor(teacher - student)
    )


def _reciprocal_rank(positive: NDArray[np.bool_]) -> float:
    places = np.flatnonzero(positive[:_CUTOFF])
    return 1 / (1 + int(places[0])) if len(places) else 0.0
