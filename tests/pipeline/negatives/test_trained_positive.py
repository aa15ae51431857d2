"""Which positive a list is trained with."""

from __future__ import annotations

from collections import Counter

from pipeline.negatives.trained_positive import choose_positive, first


def test_choice_of_a_positive() -> None:
    """Prevents: always the first positive, or another one on every run."""
    ids = ["a", "b", "c"]
    chosen = [choose_positive(ids, seed=0, query_id=f"q{n}") for n in range(300)]
    assert min(Counter(chosen).values()) > 60 and chosen == [choose_positive(ids[::-1], seed=0, query_id=f"q{n}") for n in range(300)]


def test_the_chosen_one_stands_first() -> None:
    """Prevents: a positive lost or doubled when another is put before it."""
    assert first("b", ["a", "b", "c"]) == ["b", "a", "c"] and first("a", ["a"]) == ["a"]
