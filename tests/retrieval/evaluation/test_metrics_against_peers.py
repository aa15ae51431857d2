"""From a run file to the mean and the p-value, against pytrec_eval and scipy on random runs.

pytrec_eval orders a query's passages by score, ties by id descending; a run here is ordered by score, ties by id ascending
(`data.formats.trec.read_run`). So raw scores are compared where no two are equal, and where some are, under ids that reverse its order of
ties.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data.formats.trec import read_run
from retrieval.evaluation.metrics import Evaluation, compare, evaluate

Qrels = dict[str, dict[str, int]]
Scores = dict[str, dict[str, float]]
RECALLS = (50, 100, 1000)


@dataclass(frozen=True)
class Judged:
    """Labels and raw scores. Some judged queries have no results, some results no labels."""

    qrels: Qrels
    scores: Scores


@st.composite
def judged_runs(draw: st.DrawFn, *, tied: bool) -> Judged:
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    docs = draw(st.lists(st.text("aZ19-é", min_size=1, max_size=5), min_size=12, max_size=130, unique=True))
    qrels: Qrels = {"always": {docs[0]: 3}}
    scores: Scores = {"always": {docs[0]: 0.0}}
    for query in ("q1", "q2", "q10", "Q"):
        if generator.random() < 0.8:
            chosen = generator.choice(len(docs), size=int(generator.integers(1, len(docs))), replace=False)
            qrels[query] = {docs[place]: int(generator.integers(0, 4)) for place in chosen}
        if generator.random() < 0.8:
            chosen = generator.choice(len(docs), size=int(generator.integers(1, len(docs) + 1)), replace=False)
            values = generator.integers(-2, 3, len(chosen)) if tied else generator.permutation(len(chosen)) - len(chosen) // 2
            scores[query] = {docs[place]: float(value) / 4 for place, value in zip(chosen, values, strict=True)}
    return Judged(qrels, scores)


def evaluated(judged: Judged, folder: Path, *, relevant_from: int) -> Evaluation:
    """By way of a run file whose lines are in no order and whose ranks are wrong."""
    lines = [f"{query} Q0 {doc} 7 {score!r} t\n" for query, scores in judged.scores.items() for doc, score in scores.items()]
    (folder / "run").write_text("".join(sorted(lines, reverse=True)), encoding="utf-8")
    return evaluate(judged.qrels, read_run(folder / "run"), relevant_from=relevant_from)


def theirs(qrels: Qrels, scores: Scores, *, relevant_from: int) -> dict[str, dict[str, float]]:
    """pytrec_eval's own values. It has no cut reciprocal rank: a first relevant passage below rank 10 counts 0."""
    names = {"ndcg_cut.10", "recall.50,100,1000", "recip_rank"}
    found = pytrec_eval.RelevanceEvaluator(qrels, names, relevance_level=relevant_from).evaluate(scores)
    return {
        query: {
            "MRR@10": values["recip_rank"] if values["recip_rank"] >= 0.1 - 1e-9 else 0.0,
            "nDCG@10": values["ndcg_cut_10"],
            **{f"Recall@{cut}": values[f"recall_{cut}"] for cut in RECALLS},
        }
        for query, values in found.items()
    }


def assert_same(ours: Evaluation, expected: dict[str, dict[str, float]], judged: Judged) -> None:
    """Query by query, and in the mean over all judged queries."""
    counted = {query for query, labels in judged.qrels.items() if max(labels.values()) > 0}
    per_query = ours.per_query()
    assert per_query.keys() == counted
    for query in counted:
        assert per_query[query] == pytest.approx(expected[query] if query in judged.scores else dict.fromkeys(ours.values, 0.0), abs=1e-9)
    for name in ours.values:
        total = sum(expected[query][name] for query in counted & judged.scores.keys())
        assert ours.mean(name) == pytest.approx(total / len(counted), abs=1e-9)


@settings(deadline=None, max_examples=60)
@given(judged=judged_runs(tied=False), relevant_from=st.sampled_from([1, 2]))
def test_raw_scores_without_ties_give_pytrec_eval_s_values(
    judged: Judged, relevant_from: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Prevents: an order, a cut or a mean that is ours alone, from the file to the figure."""
    ours = evaluated(judged, tmp_path_factory.mktemp("run"), relevant_from=relevant_from)
    assert_same(ours, theirs(judged.qrels, judged.scores, relevant_from=relevant_from), judged)


@settings(deadline=None, max_examples=60)
@given(judged=judged_runs(tied=True), relevant_from=st.sampled_from([1, 2]))
def test_raw_ties_are_judged_by_id_ascending(judged: Judged, relevant_from: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Prevents: the evaluator's order of ties in place of the documented one. Its ids here fall where ours rise."""
    docs = sorted({doc for part in (judged.qrels, judged.scores) for listed in part.values() for doc in listed})
    reversed_id = {doc: f"{len(docs) - place:06d}" for place, doc in enumerate(docs)}
    qrels = {query: {reversed_id[doc]: label for doc, label in labels.items()} for query, labels in judged.qrels.items()}
    scores = {query: {reversed_id[doc]: score for doc, score in listed.items()} for query, listed in judged.scores.items()}
    ours = evaluated(judged, tmp_path_factory.mktemp("run"), relevant_from=relevant_from)
    assert_same(ours, theirs(qrels, scores, relevant_from=relevant_from), judged)


def test_pytrec_eval_judges_ties_the_other_way_round(tmp_path: Path) -> None:
    """Prevents: the test above passing since ties do not matter."""
    judged = Judged({"q": {"a": 1}}, {"q": {"a": 0.5, "b": 0.5}})
    assert evaluated(judged, tmp_path, relevant_from=1).mean("MRR@10") == 1.0
    assert theirs(judged.qrels, judged.scores, relevant_from=1)["q"]["MRR@10"] == 0.5


def of(values: np.ndarray) -> Evaluation:
    queries = tuple(f"q{place}" for place in range(len(values)))
    return Evaluation(queries, {"nDCG@10": values}, without_results=0, depth=10, unjudged=0)


def paired_permutation_test(before: np.ndarray, after: np.ndarray, resamples: float) -> float:
    """scipy's: for each query the two values are exchanged or not."""
    found = stats.permutation_test(
        (before, after), lambda x, y, axis: (y - x).mean(axis), permutation_type="samples", vectorized=True, n_resamples=resamples,
        rng=np.random.default_rng(3),
    )  # fmt: skip
    return float(found.pvalue)


@settings(deadline=None, max_examples=40)
@given(pairs=st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), min_size=2, max_size=10))
def test_the_p_value_of_few_queries_is_scipy_s_exact_one(pairs: list[tuple[int, int]]) -> None:
    """Prevents: an exact test that counts other patterns than the exact test does; queries that tie, dropped, must change nothing."""
    before, after = (np.array(values) / 8 for values in zip(*pairs, strict=True))
    assert compare(of(before), of(after))[0].p_value == pytest.approx(paired_permutation_test(before, after, np.inf), abs=1e-12)


@pytest.mark.parametrize("gain", [0.0, 0.03, 0.08])
def test_the_p_value_of_many_queries_is_scipy_s_within_sampling_error(gain: float) -> None:
    """Prevents: runs compared as two independent samples, whose p-values are larger."""
    generator = np.random.default_rng(6)
    before = generator.random(150)
    after = np.clip(before + generator.normal(gain, 0.25, 150), 0, 1)
    expected, permutations = paired_permutation_test(before, after, 40_000), 40_000
    p_value = compare(of(before), of(after), seed=1, permutations=permutations)[0].p_value
    deviation = math.sqrt(2 * max(expected * (1 - expected), 1e-4) / permutations)
    assert abs(p_value - expected) <= 5 * deviation
