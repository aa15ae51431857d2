"""What measured collections let expect of another one."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.advice.evidence import BASE, RECIPES, Measured, Place, Studied, choose, known_evidence, likeness, nearest

HERE = Place(0.9, 0.05, 480)
PLACES = st.builds(Place, st.floats(0, 1), st.floats(0, 1), st.integers(1, 10**6))


def studied(place: Place, **over_base: float) -> Studied:
    recipes = {name: Measured(0.1 + over) for name, over in over_base.items()}
    return Studied("one", place, {BASE: Measured(0.1), **recipes}, "a page")


@given(PLACES, PLACES)
def test_likeness_is_symmetric_and_one_for_the_same(one: Place, other: Place) -> None:
    """Prevents: a collection that is less like itself than like another one."""
    assert likeness(one, other) == pytest.approx(likeness(other, one))
    assert likeness(one, one) == 1 and 0 < likeness(one, other) <= 1


@given(PLACES, st.dictionaries(st.sampled_from(sorted(RECIPES.keys() - {BASE})), st.floats(-0.2, 0), min_size=1))
def test_what_was_never_ahead_is_not_chosen(place: Place, over: dict[str, float]) -> None:
    """Prevents: a dearer recipe that nothing speaks for."""
    assert choose(place, [studied(HERE, **over)]).recipe == BASE
    assert choose(place, []).recipe == BASE


def test_the_nearest_decides_and_what_is_far_away_moves_little() -> None:
    """Prevents: a mean over all collections, and one measurement far away that is followed everywhere."""
    near, far = studied(HERE, adam=0.03), studied(Place(0.5, 0.4, 100_000), adam=-0.06, prod=0.03)
    assert choose(HERE, [near, far]).recipe == "adam"
    assert choose(far.place, [near, far]).recipe == "prod"
    assert choose(HERE, [far]).recipe == BASE  # of a gain of 0.03 so far away less than 0.005 is expected


def test_a_small_gain_is_taken_for_none() -> None:
    """Prevents: dark examples that are scored for a thousandth. Half of a gain that was measured once is expected."""
    assert choose(HERE, [studied(HERE, adam=0.009)]).recipe == BASE
    assert choose(HERE, [studied(HERE, adam=0.011)]).more == pytest.approx(0.0055)
    assert choose(HERE, [studied(HERE, adam=0.008)] * 3).more == pytest.approx(0.006)


def test_a_collection_is_named_once_by_its_nearest_measurement() -> None:
    """Prevents: two collections that speak for a recipe, and are one."""
    near, far = studied(HERE, adam=0.1), studied(Place(0.9, 0.05, 5000), adam=0.2)
    other = replace(studied(Place(0.9, 0.05, 960)), collection="two")
    for order in ([far, other, near], [near, other, far], [other, near, far]):
        assert nearest(HERE, order, count=2) == [near, other] and nearest(HERE, order, count=1) == [near]


def test_the_file_is_whole() -> None:
    """Prevents: a collection without what others are compared with, and a recipe that nobody can ask for."""
    known = known_evidence()
    assert len(known) >= 4 and all(BASE in one.recipes and one.recipes.keys() <= RECIPES.keys() for one in known)
