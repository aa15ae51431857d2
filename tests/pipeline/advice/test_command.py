"""`prep advise` on a tiny experiment: what it scores, what it reads, what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from data.config.settings import Experiment, load
from data.errors import UserError
from pipeline.advice import sampling
from pipeline.advice.command import run_advice
from pipeline.advice.reading import pools_of, positives_of
from pipeline.advice.sampling import Samples, refuse_early, samples_of

BUDGET = 5000
CURRICULUM = {"curriculum.enabled": True, "curriculum.iterations": "[2/3/4]", "curriculum.retrieved": 20, "curriculum.near_rank": 8}


def labels_of(*, train: int = 14, dev: int = 4, of_each: int = 1) -> pl.DataFrame:
    """Labels above 0 as `ingest.qrels` has them, `of_each` a query."""
    queries = [(split, f"{split}{number}") for split, count in (("train", train), ("dev", dev)) for number in range(count)]
    return pl.DataFrame([query for query in queries for _ in range(of_each)], schema=["split", "query_id"], orient="row")


def sampled(given: Experiment, *, budget_pairs: int, labels: pl.DataFrame | None = None) -> Samples:
    return samples_of(given, labels_of() if labels is None else labels, budget_pairs=budget_pairs)


def advised(config: Path, **overrides: Any) -> list[str]:
    lines: list[str] = []
    experiment = load({"config": str(config), **{name: str(value) for name, value in overrides.items()}})
    run_advice(experiment, budget_pairs=BUDGET, say=lines.append)
    return lines


@pytest.mark.medium
def test_the_run_that_follows_scores_none_of_the_pairs_again(
    tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]], count_scored: list[int]
) -> None:
    """Prevents: a sample that is paid twice, by another draw or another text than the run's own."""
    config = tiny_experiment(tmp_path)
    lines = advised(config)
    told = next(place for place, line in enumerate(lines) if line.startswith("only 4 queries"))  # 4 dev queries
    assert told < next(place for place, line in enumerate(lines) if line.startswith("pool_scores"))  # before the teacher's bill
    facts = json.loads(lines[-1])["facts"]
    assert facts["lists"]["lists"] == 14 and facts["queries"] == 14  # all of this collection
    scored = sum(count_scored)
    assert scored > 0
    prep_run(config)
    assert sum(count_scored) == scored
    assert json.loads(advised(config)[-1]) == json.loads(lines[-1]) and sum(count_scored) == scored


@pytest.mark.medium
def test_pools_are_in_the_students_order_with_their_positives(
    tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a headroom of pools without positives, or with logits of other passages."""
    monkeypatch.setattr(sampling, "DEPTH", 5)
    config = tiny_experiment(tmp_path)
    advised(config)
    held_out = sampled(load({"config": str(config)}), budget_pairs=BUDGET).held_out
    pools = list(pools_of(held_out))
    assert pools and all(len(pool.logits) == 5 for pool in pools)
    assert any(pool.positive.any() for pool in pools)
    assert all(np.isfinite(pool.logits).all() for pool in pools)


@pytest.mark.medium
def test_a_curriculum_of_the_file_is_said_to_be_left_out(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: figures of hard negatives that pass for those of the lists that are trained."""
    lines = advised(tiny_experiment(tmp_path), **CURRICULUM)
    assert any(line.startswith("curriculum: its lists are not looked at") for line in lines)
    assert not any(line.startswith("curriculum") for line in advised(tiny_experiment(tmp_path)))


def experiment(config: Path, **overrides: Any) -> Experiment:
    return load({"config": str(config), **{name.replace("__", "."): str(value) for name, value in overrides.items()}})


@pytest.mark.parametrize("of_each", [1, 40])
def test_samples_stay_within_the_budget(of_each: int, tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: a price that is only known when it is paid, and one that is several times the budget where queries have many labels."""
    config, labels = tiny_experiment(tmp_path), labels_of(train=1000, dev=1000, of_each=of_each)
    for budget in (2_100, 10_000, 10**6):
        samples = sampled(experiment(config), budget_pairs=budget, labels=labels)
        lists, held_out = samples.lists.hard_negatives.queries or 0, samples.held_out.hard_negatives.queries or 0
        assert lists * (1 + 3 + 3 + 5) + held_out * (50 + of_each) <= budget
        assert 20 <= lists <= 400 and 20 <= held_out <= 200
    with pytest.raises(UserError, match=r"budget_pairs=1,259: .* are 1,260 pairs" if of_each == 1 else r"are 2,040 pairs"):
        sampled(experiment(config), budget_pairs=1259, labels=labels)


def test_a_split_without_a_label_above_0_is_not_looked_at(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: a collection that trains well, and that prep advise refuses for a dev split of zeros."""
    samples = sampled(experiment(tiny_experiment(tmp_path)), budget_pairs=BUDGET, labels=labels_of(dev=0))
    assert samples.split == "train" and samples.trains_on_split


def test_the_queries_that_count_are_those_trained_on(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: a recipe for many queries, where `hard_negatives.queries` leaves few of a large split."""
    config, labels = tiny_experiment(tmp_path), labels_of(train=1000)
    assert positives_of(experiment(config), labels) == (1000, 0.0)
    assert positives_of(experiment(config, hard_negatives__queries=128), labels)[0] == 128
    assert positives_of(experiment(config), pl.concat([labels, labels.filter(pl.col("query_id") < "train2")]))[1] == pytest.approx(0.112)


def test_rules_of_the_experiment_do_not_shape_the_sample(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: advice on rules from lists that these rules have cleaned already; and whole pools scored for them."""
    given = experiment(
        tiny_experiment(tmp_path), hard_negatives__false_negatives__max_score=1, hard_negatives__positives="each",
        dark_examples__reinforced="false", dark_examples__mask_ratios="[0.3]",
    )  # fmt: skip
    lists = sampled(given, budget_pairs=BUDGET).lists
    assert not lists.hard_negatives.uses_pool_scores and lists.hard_negatives.positives == "one"
    assert lists.dark_examples.reinforced and lists.dark_examples.mask_ratios == (0.3,)


def test_what_cannot_be_looked_at_is_refused(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: stages run for a sample that no teacher can read, or that says nothing."""
    config = tiny_experiment(tmp_path)
    with pytest.raises(UserError, match=r"budget_pairs=100: .* raise it"):
        refuse_early(experiment(config), budget_pairs=100)
    without = experiment(config, teacher__backend="none", dark_examples__reinforced="false", dark_examples__mask_ratios="[]")
    with pytest.raises(UserError, match=r"teacher\.backend=none: prep advise has the teacher read"):
        refuse_early(without, budget_pairs=BUDGET)
