"""Retrieval metrics through ir-measures, every judged query counted, and the paired randomisation test between two runs."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

import ir_measures
import numpy as np
from ir_measures import AP, RR, P, R, Success, nDCG
from numpy.typing import NDArray

from data.formats.trec import Run
from retrieval.evaluation.qrels import Qrels

_EXACT_UP_TO = 16  # queries that differ: up to 2^16 sign patterns are enumerated
_PATTERNS_AT_ONCE = 1024  # fewer for more than 8,192 queries, whose signs would take hundreds of megabytes
_MOST_SIGNS = 1 << 23


METRICS = ("MRR@10", "nDCG@10", "Recall@50", "Recall@100", "Recall@1000")
_FAMILIES = {"MRR": RR, "nDCG": nDCG, "Recall": R, "MAP": AP, "Precision": P, "Success": Success}


def parse_metrics(names: Sequence[str]) -> tuple[str, ...]:
    """Names such as `nDCG@10` as they are written here, whatever their case. Raises ValueError for one that is none."""
    families = {family.lower(): family for family in _FAMILIES}
    parsed = []
    for name in names:
        family, _, cutoff = name.strip().partition("@")
        if family.lower() not in families or not (cutoff.isascii() and cutoff.isdecimal()) or int(cutoff) < 1:
            raise ValueError(f"{name!r} is no metric: expected {', '.join(_FAMILIES)} with a cutoff, as nDCG@10")
        parsed.append(f"{families[family.lower()]}@{int(cutoff)}")
    return tuple(dict.fromkeys(parsed))


def cutoff_of(name: str) -> int:
    """Up to which rank a metric looks."""
    return int(name.partition("@")[2])


def _measures(names: Sequence[str], relevant_from: int) -> dict[str, object]:
    """ir-measures' by our names. `relevant_from`: the lowest label that is relevant where a metric is binary (2 for TREC DL)."""

    def measure(family: str, cutoff: int) -> object:
        return (nDCG if family == "nDCG" else _FAMILIES[family](rel=relevant_from)) @ cutoff

    return {name: measure(name.partition("@")[0], cutoff_of(name)) for name in names}


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a run: `values[name]` is [n] in the order of `query_ids`."""

    query_ids: tuple[str, ...]
    values: dict[str, NDArray[np.float64]]
    without_results: int  # judged queries that the run has nothing for: they count with 0
    depth: int  # passages of the run's longest list: a recall at a deeper cutoff is understated
    unjudged: int  # queries of the run without a label above 0: they are left out
    own_hits: int = 0  # judged queries that have a hit with their own id
    own_discarded: int = 0  # of these, whose hit was left out

    def mean(self, name: str) -> float:
        """The mean over all judged queries."""
        return float(self.values[name].mean())

    def per_query(self) -> dict[str, dict[str, float]]:
        """query_id -> metric -> value."""
        return {query: {name: float(values[row]) for name, values in self.values.items()} for row, query in enumerate(self.query_ids)}


def own_passages(qrels: Qrels, runs: Sequence[Run]) -> bool:
    """Whether hits with a query's own id are the query itself as a passage (Quora, ArguAna), which BEIR's evaluator leaves out.

    A query finds itself first. Where ids are mere numbers, a passage that happens to have the query's stands anywhere in its list; and a
    passage that a query is labelled with is not the query.
    """
    if any(labels.get(query, 0) > 0 for query, labels in qrels.items()):
        return False
    at_first = [run[query][0][0] == query for run in runs for query in qrels if any(doc == query for doc, _ in run.get(query, ()))]
    return 2 * sum(at_first) > len(at_first)


def evaluate(
    qrels: Qrels, run: Run, *, relevant_from: int = 1, without_own: Container[str] = (), metrics: Sequence[str] = METRICS
) -> Evaluation:
    """Every query with a label above 0 counts, with 0 where the run has nothing for it.

    Of the queries in `without_own` a hit with the query's own id is left out, see `own_passages`.

    With `relevant_from` 2 a query that has only labels of 1 still counts, as in trec_eval -l 2: nDCG grades it, the others give 0. The
    run's own order is judged: its scores are replaced by falling ranks, since the tools behind break ties in their own ways.

    Raises:
        ValueError: `relevant_from` is below 1, or no query has such a label.
    """
    if relevant_from < 1:
        raise ValueError(f"relevant_from must be at least 1, got {relevant_from}: a label of 0 says not relevant")
    judged = sorted(query for query, labels in qrels.items() if any(label > 0 for label in labels.values()))
    if not any(label >= relevant_from for query in judged for label in qrels[query].values()):
        raise ValueError(f"no query has a label of {relevant_from} or more")
    ranked = {query: {doc: float(-rank) for rank, (doc, _) in enumerate(run[query])} for query in judged if run.get(query)}
    own = [query for query in ranked if query in ranked[query]]
    discarded = [query for query in own if query in without_own]
    for query in discarded:
        del ranked[query][query]
    ranked = {query: entries for query, entries in ranked.items() if entries}
    named = _measures(metrics, relevant_from)
    row_of = {query: row for row, query in enumerate(judged)}
    name_of = {str(measure): name for name, measure in named.items()}
    values = {name: np.zeros(len(judged)) for name in named}
    if ranked:
        for metric in ir_measures.iter_calc(list(named.values()), {query: dict(qrels[query]) for query in ranked}, ranked):
            values[name_of[str(metric.measure)]][row_of[metric.query_id]] = metric.value
    return Evaluation(
        query_ids=tuple(judged),
        values=values,
        without_results=len(judged) - len(ranked),
        depth=max(map(len, ranked.values()), default=0),
        unjudged=len(set(run) - set(judged)),
        own_hits=len(own),
        own_discarded=len(discarded),
    )


@dataclass(frozen=True)
class Comparison:
    """Two runs over the same queries by one metric. `p_value` is two-sided."""

    metric: str
    before: float
    after: float
    p_value: float
    wins: int
    losses: int
    ties: int
    p_floor: float = (
        0.0  # the least p-value that the test could give: at it, the true one may be smaller; 0 where all patterns were counted
    )

    @property
    def p_said(self) -> str:
        """The p-value for people."""
        return said(self.p_value, floor=self.p_floor)


def said(p_value: float, *, floor: float = 0.0) -> str:
    """A p-value for people: 0.0312, 2e-5, or <= 1e-5 where it is the least that the test could give."""
    if p_value <= floor:
        return f"<= {_short(floor)}"
    return f"{p_value:.4f}" if p_value >= 0.0001 else _short(p_value)


def _short(p_value: float) -> str:
    """One digit after the point where it is not 0: 1e-5, 2.3e-5."""
    digits, power = f"{p_value:.1e}".split("e")
    return f"{digits.removesuffix('.0')}e{int(power)}"


def compared(
    metric: str, means: tuple[float, float], differences: NDArray[np.float64], *, seed: int = 0, permutations: int = 100_000
) -> Comparison:
    """Two means side by side, and the paired randomisation test of the differences [n] that they come from."""
    p_value = randomisation_test(differences, seed=seed, permutations=permutations)
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    floor = p_floor(differences, permutations=permutations)
    return Comparison(metric, *means, p_value, wins, losses, len(differences) - wins - losses, floor)


def compare(before: Evaluation, after: Evaluation, *, seed: int = 0, permutations: int = 100_000) -> list[Comparison]:
    """Each metric side by side, with a paired randomisation test over the queries (Smucker et al., CIKM 2007).

    Raises ValueError where the two evaluations are of different queries, or `permutations` is below 1.
    """
    if permutations < 1:
        raise ValueError(f"permutations must be at least 1, got {permutations}")
    if before.query_ids != after.query_ids:
        raise ValueError("the two runs were judged on different queries")
    return [
        compared(
            name, (before.mean(name), after.mean(name)), after.values[name] - before.values[name], seed=seed, permutations=permutations
        )
        for name in before.values
    ]


def p_floor(differences: Sequence[float] | NDArray[np.float64], *, permutations: int = 100_000) -> float:
    """The least p-value that `randomisation_test` of these differences can give since it draws patterns; 0 where it counts them all."""
    return 1 / (permutations + 1) if np.count_nonzero(differences) > _EXACT_UP_TO else 0.0


def randomisation_test(differences: Sequence[float] | NDArray[np.float64], *, seed: int = 0, permutations: int = 100_000) -> float:
    """Two-sided p-value that differences [n] of paired values are this far from 0 by chance.

    Under the null hypothesis each sign is as likely as the other. All sign patterns are counted where at most 16 differences
    are not 0; else `permutations` random ones, the observed pattern counted among them.
    """
    values = np.asarray(differences, dtype=np.float64)
    values = values[values != 0]
    if not len(values):
        return 1.0
    # Sums of the same numbers with other signs differ in the last digits: without the margin, patterns that tie would not be counted.
    observed = abs(values.sum()) - 1e-12 * np.abs(values).sum()
    if len(values) <= _EXACT_UP_TO:
        bits = (np.arange(2 ** len(values))[:, None] >> np.arange(len(values))) & 1
        return float((np.abs((2.0 * bits - 1.0) @ values) >= observed).mean())
    generator = np.random.Generator(np.random.Philox(seed))
    as_far = 0
    at_once = max(1, min(_PATTERNS_AT_ONCE, _MOST_SIGNS // len(values)))
    for start in range(0, permutations, at_once):
        shape = (min(at_once, permutations - start), len(values))
        signs = 2.0 * generator.integers(0, 2, shape, dtype=np.int8) - 1.0
        as_far += int((np.abs(signs @ values) >= observed).sum())
    return (as_far + 1) / (permutations + 1)
