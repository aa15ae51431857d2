"""Metrics against formulas written out here and against pytrec_eval; the paired test against scipy and plain enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import pytrec_eval
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from data.formats.trec import Run
from retrieval.evaluation.metrics import Evaluation, compare, compared, evaluate, own_passages, randomisation_test, said

Qrels = dict[str, dict[str, int]]


def reference(labels: dict[str, int], ranked: list[str], *, relevant_from: int) -> dict[str, float]:
    """The five metrics of one query, from their definitions."""
    relevant = {doc for doc, label in labels.items() if label >= relevant_from}
    first = next((rank for rank, doc in enumerate(ranked[:10], 1) if doc in relevant), None)
    gains = [max(labels.get(doc, 0), 0) for doc in ranked[:10]]
    ideal = sorted((label for label in labels.values() if label > 0), reverse=True)[:10]

    def dcg(values: list[int]) -> float:
        return sum(value / math.log2(rank + 1) for rank, value in enumerate(values, 1))

    recalls = {f"Recall@{cut}": len(relevant & set(ranked[:cut])) / len(relevant) if relevant else 0.0 for cut in (50, 100, 1000)}
    return {"MRR@10": 1 / first if first else 0.0, "nDCG@10": dcg(gains) / dcg(ideal), **recalls}


@st.composite
def judged_runs(draw: st.DrawFn) -> tuple[Qrels, Run]:
    """Labels and a run with tied scores, queries without results, queries without labels and unjudged passages."""
    docs = [f"d{number}" for number in range(draw(st.integers(1, 130)))]
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    qrels: Qrels = {"always": {docs[0]: 2}}
    run: Run = {}
    for query in ("q1", "q2", "q3", "q4"):
        if generator.random() < 0.8:
            judged = generator.choice(docs, size=min(len(docs), int(generator.integers(1, 60))), replace=False)
            qrels[query] = {str(doc): int(generator.integers(0, 4)) for doc in judged}
        if generator.random() < 0.7:
            listed = generator.choice(docs, size=int(generator.integers(1, len(docs) + 1)), replace=False)
            scored = [(str(doc), float(generator.integers(0, 3))) for doc in listed]
            run[query] = sorted(scored, key=lambda entry: (-entry[1], entry[0]))
    return qrels, run


@settings(deadline=None, max_examples=60)
@given(judged=judged_runs(), relevant_from=st.sampled_from([1, 2]))
def test_metrics_equal_their_definitions(judged: tuple[Qrels, Run], relevant_from: int) -> None:
    """Prevents: ties reordered by the evaluator, and judged queries without results left out of the mean."""
    qrels, run = judged
    evaluation = evaluate(qrels, run, relevant_from=relevant_from)
    counted = sorted(query for query, labels in qrels.items() if max(labels.values()) > 0)
    assert list(evaluation.query_ids) == counted
    expected = {q: reference(qrels[q], [doc for doc, _ in run.get(q, [])], relevant_from=relevant_from) for q in counted}
    for query, values in evaluation.per_query().items():
        assert values == pytest.approx(expected[query], abs=1e-6)
    for name in evaluation.values:
        assert evaluation.mean(name) == pytest.approx(sum(values[name] for values in expected.values()) / len(counted), abs=1e-6)
    assert evaluation.without_results == len(set(counted) - set(run))
    assert evaluation.unjudged == len(set(run) - set(counted))


@settings(deadline=None, max_examples=40)
@given(judged=judged_runs())
def test_metrics_equal_pytrec_eval_where_ranks_are_its_scores(judged: tuple[Qrels, Run]) -> None:
    """Prevents: a slip that the formulas above share. pytrec_eval has no cut reciprocal rank, so it judges the first ten alone."""
    qrels, run = judged
    ours = evaluate(qrels, run).per_query()
    ranks = {query: {doc: float(1000 - rank) for rank, (doc, _) in enumerate(entries)} for query, entries in run.items()}
    deep = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10", "recall.50,100,1000"}).evaluate(ranks)
    top = {query: dict(list(scores.items())[:10]) for query, scores in ranks.items()}
    first = pytrec_eval.RelevanceEvaluator(qrels, {"recip_rank"}).evaluate(top)
    for query in ours.keys() & deep.keys():
        theirs = {
            "MRR@10": first[query]["recip_rank"],
            "nDCG@10": deep[query]["ndcg_cut_10"],
            **{f"Recall@{cut}": deep[query][f"recall_{cut}"] for cut in (50, 100, 1000)},
        }
        assert ours[query] == pytest.approx(theirs, abs=1e-6)


def test_the_order_of_the_run_is_judged_not_the_evaluators() -> None:
    """Prevents: pytrec_eval sorts ties by id descending, which would swap the first two passages here."""
    evaluation = evaluate({"q": {"a": 1}}, {"q": [("a", 1.0), ("b", 1.0)]})
    assert evaluation.per_query()["q"]["MRR@10"] == 1.0


def test_a_query_with_only_labels_below_the_threshold_counts() -> None:
    """Prevents: relevant_from=2 on TREC DL silently averages over fewer queries than the published figures do."""
    qrels = {"q1": {"a": 2}, "q2": {"a": 1}, "q3": {"a": 0}}
    run: Run = {query: [("a", 1.0)] for query in ("q1", "q2", "q3")}
    evaluation = evaluate(qrels, run, relevant_from=2)
    assert evaluation.query_ids == ("q1", "q2")
    assert evaluation.mean("MRR@10") == 0.5
    assert evaluation.mean("nDCG@10") == 1.0
    assert evaluation.unjudged == 1


def test_an_empty_run_gives_zeros() -> None:
    """Prevents: a run that failed and is empty looks like a division by nothing, or is reported over no query."""
    evaluation = evaluate({"q1": {"a": 1}, "q2": {"b": 1}}, {})
    assert (evaluation.mean("nDCG@10"), evaluation.without_results, evaluation.depth) == (0.0, 2, 0)


@pytest.mark.parametrize("relevant_from", [0, 3])
def test_a_threshold_that_no_label_reaches_is_refused(relevant_from: int) -> None:
    """Prevents: a threshold of 0, which takes every judged passage for relevant; a threshold too high, which gives all zeros."""
    with pytest.raises(ValueError, match=r"relevant_from must|no query has a label"):
        evaluate({"q": {"a": 2}}, {"q": [("a", 1.0)]}, relevant_from=relevant_from)


@settings(deadline=None, max_examples=40)
@given(values=st.lists(st.integers(-4, 4).map(lambda step: step / 7), min_size=1, max_size=9))
def test_few_queries_are_enumerated_exactly(values: list[float]) -> None:
    """Prevents: a sampled p-value, or one that misses the ties, where all sign patterns can be counted."""
    observed = abs(sum(values))
    patterns = list(itertools.product((-1, 1), repeat=len(values)))
    as_far = sum(abs(sum(sign * value for sign, value in zip(signs, values, strict=True))) >= observed - 1e-9 for signs in patterns)
    assert randomisation_test(values) == pytest.approx(as_far / len(patterns))


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.06])
def test_many_queries_agree_with_scipy(shift: float) -> None:
    """Prevents: a one-sided count, or signs drawn once for all permutations."""
    differences = np.random.default_rng(4).normal(shift, 0.3, 200)
    theirs = stats.permutation_test(
        (differences, np.zeros(200)), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples", n_resamples=20_000,
        vectorized=True, rng=np.random.default_rng(1),
    )  # fmt: skip
    ours = randomisation_test(differences, seed=2, permutations=20_000)
    assert ours == pytest.approx(theirs.pvalue, abs=4 * math.sqrt(0.25 / 20_000) + 1e-4)


def test_the_p_value_is_never_zero_and_repeats() -> None:
    """Prevents: `p = 0.0` after a finite number of permutations, and a table that changes when it is made again."""
    differences = np.full(100, 0.5)
    assert randomisation_test(differences, permutations=999) == 1 / 1000
    noisy = np.random.default_rng(0).normal(0.03, 0.3, 80)
    assert randomisation_test(noisy, seed=5, permutations=3000) == randomisation_test(noisy, seed=5, permutations=3000)


def test_no_difference_gives_one() -> None:
    """Prevents: the +1 correction makes identical runs look different."""
    assert randomisation_test([0.0] * 50) == 1.0


def of(values: list[float], queries: tuple[str, ...] = ("a", "b", "c")) -> Evaluation:
    return Evaluation(queries, {"MRR@10": np.asarray(values)}, without_results=0, depth=10, unjudged=0)


def test_compare_counts_wins_losses_and_ties() -> None:
    """Prevents: before and after exchanged."""
    row = compare(of([0.1, 0.5, 0.5]), of([0.4, 0.2, 0.5]))[0]
    assert (row.wins, row.losses, row.ties) == (1, 1, 1)
    assert row.after - row.before == pytest.approx(0.0)
    assert compare(of([0.0, 0.0, 0.0]), of([1.0, 1.0, 1.0]))[0].p_value == 0.25


def test_runs_judged_on_different_queries_are_not_compared() -> None:
    """Prevents: a pairing by place, of one query's value with another's."""
    with pytest.raises(ValueError, match="different queries"):
        compare(of([0, 0, 0]), of([0, 0, 0], ("a", "b", "d")))


QUORA: tuple[Qrels, Run] = (
    {"q1": {"a": 1}, "q2": {"b": 1}},
    {"q1": [("q1", 9.0), ("a", 8.0)], "q2": [("q2", 9.0), ("c", 8.0), ("b", 7.0)]},
)


def test_a_querys_own_passage_is_left_out_as_beir_does() -> None:
    """Prevents: duplicate-question collections whose every query finds itself first, so that no MRR can be above 0.5."""
    qrels, run = QUORA
    assert own_passages(qrels, [run])
    counted, left_out = evaluate(qrels, run), evaluate(qrels, run, without_own=qrels.keys())
    assert (counted.mean("MRR@10"), counted.own_hits, counted.own_discarded) == (pytest.approx((1 / 2 + 1 / 3) / 2), 2, 0)
    assert (left_out.mean("MRR@10"), left_out.own_hits, left_out.own_discarded) == (0.75, 2, 2)
    pruned = {query: {doc: -float(rank) for rank, (doc, _) in enumerate(entries) if doc != query} for query, entries in run.items()}
    theirs = pytrec_eval.RelevanceEvaluator(qrels, {"ndcg_cut.10"}).evaluate(pruned)
    assert left_out.mean("nDCG@10") == pytest.approx(sum(one["ndcg_cut_10"] for one in theirs.values()) / 2)


@pytest.mark.parametrize(
    ("qrels", "run"),
    [
        ({"7": {"7": 1}, "8": {"9": 1}}, {"7": [("7", 1.0)], "8": [("8", 1.0)]}),  # a question's answer has its id
        ({"7": {"1": 1}, "8": {"9": 1}}, {"7": [("1", 2.0), ("7", 1.0)], "8": [("9", 2.0), ("8", 1.0)]}),  # numbers that meet
        ({"7": {"1": 1}}, {"7": [("1", 1.0)]}),
        ({"7": {"1": 1}}, {}),
    ],
)
def test_ids_that_are_equal_by_chance_are_counted(qrels: Qrels, run: Run) -> None:
    """Prevents: a labelled answer left out because question and answer have the same number."""
    assert not own_passages(qrels, [run])
    assert evaluate(qrels, run).own_discarded == 0


def test_a_query_that_finds_itself_alone_has_no_result() -> None:
    """Prevents: an evaluator that is given an empty list."""
    evaluation = evaluate({"q1": {"a": 1}}, {"q1": [("q1", 1.0)]}, without_own=("q1",))
    assert (evaluation.mean("MRR@10"), evaluation.without_results) == (0.0, 1)


@pytest.mark.parametrize(
    ("shift", "count", "permutations", "expected"),
    [
        (0.5, 100, 100_000, "<= 1e-5"),
        (0.5, 100, 20_000, "<= 5e-5"),
        (0.5, 100, 999, "<= 1e-3"),
        (0.5, 16, 999, "3.1e-5"),  # 2 of 65,536 patterns: exact, and so no bound
        (0.0, 100, 999, "1.0000"),
    ],
)
def test_a_p_value_at_the_floor_is_said_to_be_a_bound(shift: float, count: int, permutations: int, expected: str) -> None:
    """Prevents: 1e-5 read as the p-value where no drawn pattern was as far, so that more patterns would give less."""
    assert compared("MRR@10", (0.0, shift), np.full(count, shift), permutations=permutations).p_said == expected


def test_small_p_values_above_the_floor_are_said_as_they_are() -> None:
    """Prevents: a bound where a figure was measured."""
    assert [said(p, floor=9.9999e-6) for p in (1.99998e-5, 2.34e-5, 0.00012, 0.3)] == ["2e-5", "2.3e-5", "0.0001", "0.3000"]
