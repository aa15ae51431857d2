"""Figures of lists and pools against plain loops, and the advice that they lead to."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from data.tables.schemas import CandidateKind
from pipeline.advice.evidence import RECIPES, Measured, Place, Studied, known_evidence
from pipeline.advice.facts import Headroom, ListFacts, OneList, OnePool, facts_of_lists, headroom_of, overlap
from pipeline.advice.rules import Advice, Facts, advise
from trainer import recipes

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "recipes" / "study"))

from methods import METHODS  # noqa: E402

P, N, R, M = CandidateKind.POSITIVE, CandidateKind.NEGATIVE, CandidateKind.REINFORCED_NEGATIVE, CandidateKind.NOISY_POSITIVE
TEXTS = ("a b c d e", "a b c d e f", "x y z", "a b x", "a [MASK]")


def make_list(*logits: float) -> OneList:
    """p+, two negatives, a mixed and a masked passage."""
    return OneList(np.array([P, N, N, R, M], np.int8), np.array(logits, np.float64), TEXTS)


def test_figures_of_lists() -> None:
    """Prevents: advice from figures that count dark examples among negatives, or p+ among those above it."""
    found = facts_of_lists([make_list(2.0, 3.0, -1.0, 2.5, 2.0), make_list(5.0, 0.0, 1.0, 6.0, 1.0)])
    softmax = [math.exp(2) / (math.exp(2) + math.exp(3) + math.exp(-1)), math.exp(5) / (math.exp(5) + math.exp(0) + math.exp(1))]
    assert found.lists == 2 and found.pairs == 10
    assert found.sure == 0.5
    assert found.confidence == pytest.approx(sum(map(math.log, softmax)) / 2)
    assert found.above == {N: 0.25, R: 1.0, M: 0.0}
    assert found.margin == pytest.approx((1.0 + 4.5) / 2)
    assert found.overlap == pytest.approx((1 + 0 + 0 + 0) / 8)
    assert found.nearly_positive == 0.5  # of both lists the first negative: 5 of 6 words


def test_shared_probability_is_the_perplexity() -> None:
    """Prevents: a spread that is one of dark examples where it should be one of negatives."""
    one = make_list(1.0, 1.0, 1.0, 1.0, 1.0)
    found = facts_of_lists([one])
    assert found.shared == pytest.approx(3) and found.shared_with_dark == pytest.approx(5)


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=8), st.lists(st.integers(-3, 3), min_size=1, max_size=8))
def test_overlap_is_the_share_of_pairs_in_the_wrong_order(positives: list[int], negatives: list[int]) -> None:
    """Prevents: ties that count whole, or pairs of the wrong direction."""
    pairs = [(p, n) for p in positives for n in negatives]
    expected = sum(1.0 if n > p else 0.5 if n == p else 0.0 for p, n in pairs) / len(pairs)
    assert overlap(np.array(positives, float), np.array(negatives, float)) == pytest.approx(expected)


def test_headroom_is_of_the_same_passages_in_two_orders() -> None:
    """Prevents: a teacher that gets credit for positives beyond the cutoff, or for passages that the student did not find."""
    behind = np.zeros(12, bool)
    behind[11] = True  # the student's rank 12: beyond the cutoff
    first = OnePool(np.arange(12, dtype=float), behind)  # the teacher's first
    second = OnePool(np.array([1.0, 2.0]), np.array([True, False]))  # the teacher's second
    none = OnePool(np.array([1.0]), np.array([False]))
    found = headroom_of([first, second, none])
    assert (found.student, found.teacher) == (pytest.approx(1 / 3), pytest.approx(0.5))
    assert found.found == pytest.approx(2 / 3) and found.queries == 3


OF_LISTS = ListFacts(100, 1000, 0.97, -0.01, {N: 0.02, R: 0.12, M: 0.02}, 13.0, 0.03, 1.05, 2.5, 0.0)
SURE = Facts(OF_LISTS, Headroom(100, 0.9, 0.5, 0.6, 0.001), 128, 0.0)
UNSURE = replace(SURE, lists=replace(SURE.lists, sure=0.73, above={N: 0.17, R: 0.38, M: 0.01}))


# On one ADAM is ahead, on the other MarginMSE, which forgets less there.
SHARP = Studied("sharp", Place(0.97, 0.02, 128), {"hard_kd": Measured(0.05, -0.04), "adam_positive": Measured(0.09, -0.03)}, "a page")
BLUNT = Studied("blunt", Place(0.73, 0.17, 128), {"hard_kd": Measured(0.01, -0.04), "margin_mse": Measured(0.04, -0.01)}, "a page")


def advised(facts: Facts) -> list[Advice]:
    return advise(facts, [SHARP, BLUNT])


def test_a_teacher_that_is_no_better_has_nothing_to_teach() -> None:
    """Prevents: a recipe advised where the student would be taught its own order, or a worse one."""
    (found,) = advised(replace(SURE, headroom=Headroom(100, 0.9, 0.6, 0.58, 0.01)))
    assert "no better order" in found.why and "dual_encoder" in found.settings


def test_a_difference_that_is_chance_is_called_so() -> None:
    """Prevents: a bill for a teacher of which a larger sample would have shown that it is no better."""
    found = advised(replace(SURE, headroom=Headroom(20, 0.9, 0.5, 0.52, 0.4)))
    assert "budget_pairs" in found[0].settings and found[1].settings.startswith("train.recipe")
    worse = advised(replace(SURE, headroom=Headroom(4, 0.9, 0.52, 0.5, 0.9)))
    assert "budget_pairs" in worse[0].settings and "no better order" in worse[1].why and len(worse) == 2


@pytest.mark.parametrize(("facts", "recipe", "order"), [(SURE, "adam_positive", "sharp blunt"), (UNSURE, "margin_mse", "blunt sharp")])
def test_the_recipe_is_that_of_the_nearest_collection(facts: Facts, recipe: str, order: str) -> None:
    """Prevents: advice against what was measured on a collection of the same figures, or with another one's figures first."""
    first = advised(facts)[0]
    assert first.settings == RECIPES[recipe].how
    assert re.findall("sharp|blunt", first.evidence) == order.split()


def test_what_is_advised_has_its_figures_beside_those_of_hard_kd() -> None:
    """Prevents: an advice whose own recipe, or what it is compared with, is left out of the figures for being none of the best."""
    others = {name: Measured(0.2) for name in ("cl_drd", "prod", "rand_kd", "adam", "listwise")}
    far = replace(SHARP, collection="far", place=Place(0.2, 0.6, 10**6), recipes={**SHARP.recipes, **others})
    (first, *_) = advise(SURE, [SHARP, far])
    assert first.settings == RECIPES["adam_positive"].how and "+0.020 test MRR@10" in first.why  # half of 0.04
    assert first.evidence.count("ADAM with p+ +0.090") == first.evidence.count("Hard KD +0.050") == 2


def test_a_collection_like_none_is_called_so() -> None:
    """Prevents: figures of a collection that has nothing to do with this one, as if they spoke for it."""
    assert "nothing like this" in advised(replace(SURE, queries=10**6))[0].why
    assert "nothing like this" not in advised(replace(SURE, queries=256))[0].why


def test_a_lower_rate_is_advised_where_rates_were_measured() -> None:
    """Prevents: a recipe that is praised for what its lower rate does, and a verdict over two students."""
    rates = {name: Measured(0.05, zero, rate) for name, zero, rate in (("hard_kd", -0.05, 3e-4), ("adam", 0.0, 3e-4), ("prod", 0.04, 1e-4))}
    one = Studied("one", SHARP.place, rates, "a page")
    second = advise(SURE, [one] * 3)[1]
    assert "train.learning_rate" in second.settings
    assert "0.0001: +0.040 to +0.040, 3 students; 0.0003: -0.050 to +0.000, 6 students" in second.evidence
    assert not any("learning_rate" in advice.settings for advice in advise(SURE, [one] * 2))


def test_hints_come_with_their_figures_and_say_that_nothing_was_measured() -> None:
    """Prevents: a guess that reads like a finding."""
    facts = replace(UNSURE, several_positives=0.4, lists=replace(UNSURE.lists, nearly_positive=0.02, shared_with_dark=1.1, margin=6.0))
    hints = advised(facts)[1:]
    assert [hint.evidence for hint in hints] == [""] * 4
    assert "17%" in hints[0].why and "2.0%" in hints[1].why and "40%" in hints[2].why and "1.05" in hints[3].why
    (of_margins,) = advised(SURE)[1:]
    assert "zscore" in of_margins.settings and "13.0 above" in of_margins.why and "not measured" in of_margins.evidence


ALL_HINTS = replace(UNSURE.lists, nearly_positive=0.02, shared_with_dark=1.1)
SAID = {
    settings
    for facts in (
        SURE, replace(SURE, headroom=Headroom(100, 0.9, 0.6, 0.58, 0.5)), replace(UNSURE, several_positives=0.4, lists=ALL_HINTS),
        replace(UNSURE, queries=600),
    )
    for one in advise(facts, known_evidence())
    for settings in one.settings.split(", ")
    if "=" in settings
}  # fmt: skip


@pytest.mark.parametrize("said", sorted(SAID))
def test_what_is_advised_can_be_set(said: str, tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: advice that the next command refuses, for a name, a value, or another setting that it needs."""
    given = dict(setting.split("=") for setting in re.findall(r"[a-z_.]+=[^ ,]+", said))
    assert all("." in name for name in given)
    recipes.load({"config": str(tiny_experiment(tmp_path)), **given})


def test_enough_is_advised() -> None:
    """Prevents: the test above of nothing."""
    assert len(SAID) >= 10


@pytest.mark.parametrize("file", ["demo/demo.yaml", "listwise/listwise.yaml", "cl_drd/cl_drd.yaml phase=start"])
@pytest.mark.parametrize("name", sorted(name for name, recipe in RECIPES.items() if "=" in recipe.how))
def test_a_recipe_is_the_same_over_any_file(name: str, file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: words that train something else than was measured, because the file has other settings of what they leave out."""
    monkeypatch.chdir(ROOT)
    words = f"config=recipes/{file} {RECIPES[name].how}".split()
    found = recipes.load(dict(word.split("=", 1) for word in words))
    (own,) = METHODS[name].trainings
    measured = recipes.load({"config": "recipes/study/study.yaml", "phase": own.data, **own.settings})
    assert found.train.objective == measured.train.objective and not found.curriculum.enabled
    lists = found.hard_negatives
    assert (lists.sampler, lists.canonical_source) == (measured.hard_negatives.sampler, measured.hard_negatives.canonical_source)
    assert found.dark_examples.reinforced == (name in ("adam", "adam_positive")) == bool(found.dark_examples.mask_ratios)
    if found.dark_examples.reinforced:
        assert found.dark_examples.mask_ratios == measured.dark_examples.mask_ratios


def test_phases_that_are_advised_are_in_their_file() -> None:
    """Prevents: a name that nothing answers to."""
    known = yaml.safe_load((ROOT / "recipes/compare/compare.yaml").read_text())["phases"]
    for recipe in RECIPES.values():
        if "=" not in recipe.how:
            names = re.findall(r"(?:cl_drd|prod)[a-z_]*", recipe.how)
            assert len(names) >= 2 and set(names) <= known.keys() and recipe.how.endswith("of recipes/compare/compare.yaml")
