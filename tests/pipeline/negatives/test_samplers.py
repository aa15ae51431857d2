"""Samplers: pure functions of seed and ids; each against a plain reading of its rule."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from scipy.stats import chi2

from data.config.settings import HardNegatives
from data.digests import hash64, hash64_after
from data.errors import UserError
from pipeline.negatives.samplers import (
    NotAsked,
    Window,
    by_hash,
    halved_levels,
    interleave,
    preferred,
    round_robin,
    sampler_key,
    score_strata,
    simans,
    stratified,
)

IDS = [f"d{number}" for number in range(30)]
POOL = [f"d{number}" for number in range(60)]
WEIGHTS = st.lists(st.integers(1, 9), min_size=1, max_size=4)


def window(doc_ids: list[str], seed: int = 0, *, count: int = 2, **given: Any) -> Window:
    """A rank window of query q, with settings of `hard_negatives` and fields of its own."""
    own = {name: given.pop(name) for name in [*given] if name in HardNegatives.model_fields}
    return Window("q", doc_ids, count, hash64_after(seed, "negatives", "q", 0), HardNegatives(**own), **given)


def test_the_uniform_sample_is_pinned() -> None:
    """Prevents: another hash or order, after which every stored sample, and the logits paid for it, would be of no use."""
    chosen = by_hash(POOL, hash64_after(0, "negatives", "q", 0))[:5]
    assert chosen == ["d35", "d23", "d4", "d27", "d38"]
    assert chosen == sorted(POOL, key=lambda doc_id: hash64(0, "negatives", "q", 0, doc_id))[:5]


@given(WEIGHTS, st.integers(0, 60))
def test_turns_keep_the_shares_and_grow(weights: list[int], count: int) -> None:
    """Prevents: a mixture off by more than one turn from its shares, or a larger m that takes from a source what a smaller gave it."""
    listed = round_robin(weights, count)
    assert listed == round_robin(weights, count + 7)[:count]
    for source, weight in enumerate(weights):
        assert abs(listed.count(source) - count * weight / sum(weights)) <= len(weights) - 1 + 1e-9


@given(WEIGHTS, st.data(), st.integers(0, 20), st.integers(0, 20))
def test_sources_take_turns_without_repeats_and_help_each_other(weights: list[int], data: st.DataObject, one: int, other: int) -> None:
    """Prevents: a passage drawn twice, fewer negatives than the windows hold, or a larger m that drops one of the smaller."""
    lists = st.lists(st.sampled_from(IDS), max_size=12, unique=True)
    windows = [data.draw(lists) for _ in weights]
    small, large = sorted((one, other))
    few, _ = interleave(windows, round_robin(weights, small))
    many, backfilled = interleave(windows, round_robin(weights, large))
    there = set().union(*windows)
    assert len(many) == len(set(many)) == min(large, len(there)) and many[: len(few)] == few and set(many) <= there
    alone = [set(window).difference(*(w for n, w in enumerate(windows) if n != place)) for place, window in enumerate(windows)]
    for place, own in enumerate(alone):
        if len(own) >= large:
            assert not backfilled[place], "a source with enough passages of its own needs no help"


def test_what_others_gave_is_counted() -> None:
    """Prevents: a mixture asked for that is not the mixture trained on, and nobody hears of it."""
    chosen, backfilled = interleave([["a"], ["b", "c", "d", "e"], ["f"]], round_robin([2, 1, 1], 6))
    assert chosen == ["a", "b", "f", "c", "d", "e"] and backfilled == [2, 0, 0]
    assert interleave([["a"], ["a", "b"]], [0, 1]) == (["a", "b"], [0, 0]), "drawn once, the next source goes on to its next"


def inclusion(weights: list[float], count: int) -> list[float]:
    """The chance that each is among `count` drawn one after the other in proportion to the weights: all orders added up."""
    chances = [0.0] * len(weights)
    for order in itertools.permutations(range(len(weights)), count):
        left, chance = sum(weights), 1.0
        for place in order:
            chance *= weights[place] / left
            left -= weights[place]
        for place in order:
            chances[place] += chance
    return chances


@pytest.mark.parametrize(("a", "b"), [(0.5, 0.0), (3.0, -0.4)])
def test_simans_draws_by_its_formula(a: float, b: float) -> None:
    """Prevents: a sign of a or b the wrong way round, or keys that favour the best ranked."""
    ids, scores, positive = IDS[:5], [3.1, 2.6, 2.2, 1.4, 0.3], 2.4
    weights = [math.exp(-a * (score - positive - b) ** 2) for score in scores]
    rounds, count = 4000, 2
    drawn: Counter[str] = Counter()
    firsts: Counter[str] = Counter()
    for seed in range(rounds):
        order = simans(window(ids, seed, simans_a=a, simans_b=b, student_scores=scores, positive_score=positive))
        drawn.update(order[:count])
        firsts.update(order[:1])
    expected = np.array([weight / sum(weights) for weight in weights]) * rounds
    found = np.array([firsts[doc_id] for doc_id in ids])
    assert ((found - expected) ** 2 / expected).sum() < chi2.ppf(0.9999, df=len(ids) - 1)
    for doc_id, chance in zip(ids, inclusion(weights, count), strict=True):
        assert abs(drawn[doc_id] / rounds - chance) < 4.5 * math.sqrt(chance * (1 - chance) / rounds)


def test_simans_with_scores_far_off() -> None:
    """Prevents: weights that are all 0 in floating point, so that the order is that of the ids."""
    scores = [-200.0, -100.0, -150.0]
    far_off = window(IDS[:3], simans_a=1.0, simans_b=0.0, student_scores=scores, positive_score=0.0)
    assert simans(far_off) == ["d1", "d2", "d0"]


def plainly_stratified(logits: dict[str, float], count: int, hashes: dict[str, int]) -> list[str]:
    """The rule word by word: targets by linear interpolation of the sorted logits, the nearest that is left."""
    ordered = sorted(logits.values())
    left, chosen = dict(logits), []
    for place in range(count):
        level = 1 - place / (count - 1) if count > 1 else 0.5
        position = level * (len(ordered) - 1)
        low = min(math.floor(position), len(ordered) - 1)
        high = min(low + 1, len(ordered) - 1)
        target = ordered[low] + (position - low) * (ordered[high] - ordered[low])
        best = min(left, key=lambda doc_id: (round(abs(left[doc_id] - target), 9), hashes[doc_id]))
        chosen.append(best)
        del left[best]
    return chosen


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=25), st.integers(1, 12), st.integers(0, 3))
def test_stratified_by_a_plain_reading(values: list[int], count: int, seed: int) -> None:
    """Prevents: quantiles of the wrong end or by rank alone, a passage taken twice, ties by where they stand."""
    ids = IDS[: len(values)]
    logits = {doc_id: value / 4 for doc_id, value in zip(ids, values, strict=True)}
    given_ids = window(ids, seed, count=count, teacher_logits=[logits[doc_id] for doc_id in ids])
    order = stratified(given_ids)
    assert sorted(order) == sorted(ids)
    count = min(count, len(ids))
    hashes = {doc_id: given_ids.hashed(doc_id) for doc_id in ids}
    expected = plainly_stratified(logits, count, hashes)
    assert [logits[doc_id] for doc_id in order[:count]] == [logits[doc_id] for doc_id in expected] and order[:count] == expected
    if count > 1:
        assert logits[order[0]] == max(logits.values()) and logits[order[count - 1]] == min(logits.values())


def plainly_anchored(logits: dict[str, float], levels: list[float], hashes: dict[str, int]) -> list[str]:
    """Anchors at shares of the way from the least logit to the greatest, the nearest passage that is left to each."""
    least, greatest = min(logits.values()), max(logits.values())
    left, chosen = dict(logits), []
    for level in levels[: len(logits)]:
        anchor = least + level * (greatest - least)
        best = min(left, key=lambda doc_id: (round(abs(left[doc_id] - anchor), 9), hashes[doc_id]))
        chosen.append(best)
        del left[best]
    return chosen


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=25), st.integers(1, 12), st.integers(0, 3))
def test_score_strata_by_a_plain_reading(values: list[int], count: int, seed: int) -> None:
    """Prevents: anchors at ranks instead of scores, at the wrong ends, or a passage taken twice."""
    ids = IDS[: len(values)]
    logits = {doc_id: value / 4 for doc_id, value in zip(ids, values, strict=True)}
    given_ids = window(ids, seed, count=count, teacher_logits=[logits[doc_id] for doc_id in ids])
    order = score_strata(given_ids)
    assert sorted(order) == sorted(ids)
    count = min(count, len(ids))
    levels = [1 - place / (count - 1) for place in range(count)] if count > 1 else [0.5]
    assert order[:count] == plainly_anchored(logits, levels, {doc_id: given_ids.hashed(doc_id) for doc_id in ids})


@given(st.integers(2, 10), st.lists(st.floats(0, 0.02), max_size=30), st.floats(-20, 20), st.floats(0.5, 30))
def test_score_strata_cover_the_range(count: int, crowd: list[float], least: float, width: float) -> None:
    """Prevents: negatives that crowd where the logits do: here most are near the least one, and few lie between it and the greatest."""
    shares = [*(place / 40 for place in range(41)), *crowd]
    ids = [f"d{number}" for number in range(len(shares))]
    logits = {doc_id: least + width * share for doc_id, share in zip(ids, shares, strict=True)}
    order = score_strata(window(ids, count=count, teacher_logits=list(logits.values())))
    taken = sorted(logits[doc_id] for doc_id in order[:count])
    assert (taken[0], taken[-1]) == (min(logits.values()), max(logits.values()))
    assert max(high - low for low, high in itertools.pairwise(taken)) <= width * (1 / (count - 1) + 1 / 40) + 1e-9


def test_levels_are_halved() -> None:
    """Prevents: a prefix that leaves half of the range bare."""
    assert [part / parts for part, parts in itertools.islice(halved_levels(), 9)] == [1, 0, 0.5, 0.75, 0.25, 0.875, 0.625, 0.375, 0.125]
    for count in range(2, 40):
        levels = sorted(part / parts for part, parts in itertools.islice(halved_levels(), count))
        gaps = [high - low for low, high in itertools.pairwise(levels)]
        assert max(gaps) <= 2 * min(gaps) and max(gaps) < 2 / (count - 1)


MIXED = ["uniform", "top", "simans", "stratified", "score_strata"]


def mixed_window(names: dict[str, int], size: int, m: int, seed: int) -> Window:
    """A window of `size` passages with scores and logits of their own, sampled by a mixture."""
    chance = np.random.default_rng(seed)
    scores, logits = (np.sort(chance.normal(size=size))[::-1].round(2).tolist(), (chance.integers(-20, 20, size) / 4).tolist())
    text = ",".join(f"{name}:{weight}" for name, weight in names.items())
    given_scores = {"student_scores": scores, "positive_score": 0.5, "teacher_logits": logits, "positive_logit": 3.0}
    return window(POOL[:size], seed, count=m, sampler=text, num_negatives=m, **given_scores)


@settings(max_examples=50)
@given(
    st.dictionaries(st.sampled_from(MIXED), st.integers(1, 9), min_size=2), st.integers(1, 60), st.integers(1, 25), st.integers(1, 25),
    st.integers(0, 99),
)  # fmt: skip
def test_a_larger_mixture_holds_the_smaller_one(names: dict[str, int], size: int, one: int, other: int, seed: int) -> None:
    """Prevents: another m that throws away the logits of the last one, since the strata of a mixture moved with it."""
    small, large = sorted((one, other))
    few, many = (list(preferred(mixed_window(names, size, m, seed))) for m in (small, large))
    assert len(few) == min(small, size) and len(set(many)) == len(many) == min(large, size)
    assert many[: len(few)] == few


@settings(max_examples=40)
@given(st.dictionaries(st.sampled_from(MIXED), st.integers(1, 9), min_size=2), st.integers(1, 25), st.integers(0, 99))
def test_a_mixture_keeps_its_shares(names: dict[str, int], m: int, seed: int) -> None:
    """Prevents: ten of the best ranks where four were asked for; a sampler that gives a turn away since another took its first choice."""
    drawn = mixed_window(names, 60, m, seed)
    order = list(preferred(drawn))
    alone = {}
    for name in names:
        one = HardNegatives(sampler=name, num_negatives=m)
        levels = [part / parts for part, parts in itertools.islice(halved_levels(), m)]
        logits = dict(zip(drawn.doc_ids, drawn.teacher_logits, strict=True))
        hashes = {doc_id: drawn.hashed(doc_id) for doc_id in drawn.doc_ids}
        if name == "score_strata":
            alone[name] = plainly_anchored(logits, levels, hashes)
        elif name == "stratified":
            ordered = sorted(logits.values())
            targets = [float(np.interp(level * 59, range(60), ordered)) for level in levels]
            left, alone[name] = dict(logits), []
            for target in targets:
                alone[name].append(min(left, key=lambda doc_id: (round(abs(left[doc_id] - target), 9), hashes[doc_id])))
                del left[alone[name][-1]]
        else:
            alone[name] = list(preferred(replace(drawn, settings=one)))
    taken: list[str] = []
    turns = Counter[str]()
    for number in range(1, m + 1):  # whoever is furthest behind, the first of equals, takes its best passage that is left
        name = max(names, key=lambda name: (number * names[name] - sum(names.values()) * turns[name], -list(names).index(name)))
        turns[name] += 1
        taken.append(next(doc_id for doc_id in alone[name] if doc_id not in taken))
    assert order == taken
    for name, weight in names.items():
        assert abs(turns[name] - m * weight / sum(names.values())) <= len(names) - 1


def test_ten_by_four_and_six() -> None:
    """Prevents: shares that are those of another m, or mixtures spelt otherwise that make everything stale."""
    logits = {doc_id: float(number) for number, doc_id in enumerate(POOL[:20])}
    drawn = window(POOL[:20], count=10, sampler="top:4,score_strata:6", num_negatives=10, teacher_logits=list(logits.values()))
    order = list(preferred(drawn))
    assert set(POOL[:4]) <= set(order) and {"d19", "d14", "d5"} <= set(order) and len(order) == 10
    assert HardNegatives(sampler="top:2, score_strata:3") == HardNegatives(sampler="top:4,score_strata:6")
    assert HardNegatives(sampler="top:3").sampler == "top"


@pytest.mark.parametrize(("text", "said"), [
    ("top:0,uniform", "the weight of sampler top must be a number above 0"), ("top,top:2", "names top twice"),
    ("top,uniorm", "nearest: uniform"), ("top:2@3", "a sampler is NAME or NAME:WEIGHT"), ("", "a sampler is NAME or NAME:WEIGHT"),
])  # fmt: skip
def test_bad_mixtures_are_refused(text: str, said: str) -> None:
    """Prevents: a misspelt share that counts for another."""
    with pytest.raises(ValidationError, match=said):
        HardNegatives(sampler=text)


def test_a_mixture_has_the_needs_of_its_parts() -> None:
    """Prevents: SimANS over another source's scores, equal draws that nobody hears of, logits that the teacher is not asked for."""
    assert HardNegatives(sampler="top:4,stratified:6").uses_pool_scores and not HardNegatives(sampler="top,uniform").uses_pool_scores
    assert HardNegatives(sampler="top,uniform", draws=2).draws == 2
    with pytest.raises(ValidationError, match="chooses the same negatives in every draw"):
        HardNegatives(sampler="top,stratified", draws=2)
    with pytest.raises(ValidationError, match="goes by the student's scores"):
        HardNegatives(sampler="top,simans", source="bm25")


OWN = """
def some(window): return window.doc_ids[:2]
def another(window): return ["d9"]
def twice(window): return ["d1", "d1"]
"""


def test_a_sampler_of_ones_own_is_taken_at_its_word_and_no_further(plugin_folder: Callable[..., Path]) -> None:
    """Prevents: passages of nowhere, or one taken twice, that are dropped without a word, so that a query has fewer negatives."""
    plugin_folder({"mylab/own.py": OWN})

    def order(name: str) -> list[str]:
        return list(preferred(window(["d0", "d1", "d2"], sampler=f"mylab.own:{name}")))

    assert order("some") == ["d0", "d1"]
    for name in ("another", "twice"):
        with pytest.raises(UserError, match=f"mylab.own:{name}: of query q it returned other ids"):
            order(name)


PEEKS = """
def peeks(window): return sorted(window.doc_ids, key=lambda doc_id: window.teacher_logits[0])
peeks.version = 3
def shares(window): return window.doc_ids[: window.count]
"""


def test_samplers_of_ones_own_in_a_mixture(plugin_folder: Callable[..., Path]) -> None:
    """Prevents: one that reads what another asked for, a version that no fingerprint has, a share that it is not told."""
    plugin_folder({"mylab/mixed.py": PEEKS})
    drawn = window(POOL[:9], count=6, sampler="mylab.mixed:peeks,stratified", num_negatives=6, teacher_logits=[0.0] * 9)
    with pytest.raises(UserError, match="it reads teacher_logits, which it does not ask for"):
        preferred(drawn)
    mixed = HardNegatives(sampler="top:2,mylab.mixed:shares:1,mylab.mixed:peeks:1")
    versions = [{"plugin": "mylab.mixed:shares", "version": 0}, {"plugin": "mylab.mixed:peeks", "version": 3}]
    assert sampler_key(mixed) == {"plugins": versions} and sampler_key(HardNegatives(sampler="top,uniform")) == {}
    shares = list(preferred(window(POOL[:9], count=6, sampler="mylab.mixed:shares:1,top:2", num_negatives=6)))
    assert shares == POOL[:6]


@pytest.mark.parametrize("read", [list, len, sorted], ids=lambda read: read.__name__)
def test_scores_that_were_not_asked_for_are_refused(read: Callable[..., object]) -> None:
    """Prevents: a sampler that sorts by nothing, without a word, since it forgot to say what it needs."""
    with pytest.raises(UserError, match=r'reads teacher_logits, which it does not ask for; set its attribute needs = {"teacher_logits"}'):
        read(NotAsked("teacher_logits", HardNegatives()))
