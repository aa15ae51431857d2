from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.errors import RunFailed
from trainer.objective.selection import select, selected_count, selected_share


@given(st.integers(1, 50), st.integers(1, 500), st.data(), st.sampled_from([0, 1]))
def test_count_is_the_exact_ceiling(epochs: int, queries: int, data: st.DataObject, count_from: int) -> None:
    """A ceiling of floats selects one query too many where share * b is whole."""
    epoch = data.draw(st.integers(0, epochs - 1))
    share = selected_share(epoch, epochs=epochs, count_from=count_from)
    expected = -(-(2 * epochs - epoch - count_from) * queries // (2 * epochs))
    assert selected_count(share, queries=queries) == max(1, expected)


def test_shares_of_the_paper() -> None:
    """T = 3: shares 1, 5/6, 2/3 counted from 0, and 5/6, 2/3, 1/2 counted from 1 (ADAM, Eq. 8)."""
    assert [selected_share(epoch, epochs=3, count_from=0) for epoch in range(3)] == [1, Fraction(5, 6), Fraction(2, 3)]
    assert [selected_share(epoch, epochs=3, count_from=1) for epoch in range(3)] == [Fraction(5, 6), Fraction(2, 3), Fraction(1, 2)]
    assert selected_count(Fraction(5, 6), queries=6) == 5


@given(st.lists(st.floats(-3, 0).map(lambda x: round(x, 1)), min_size=1, max_size=40), st.integers(0, 5), st.randoms())
def test_selection_ignores_arrival_order(confidence: list[float], epoch: int, random: object) -> None:
    """Ties broken by place in the batch would make the result depend on the number of ranks."""
    ids = [f"q{number:03d}" for number in range(len(confidence))]
    share = selected_share(epoch, epochs=6, count_from=0)
    chosen = {name for name, yes in zip(ids, select(confidence, ids, share), strict=True) if yes}
    expected = sorted(zip([-value for value in confidence], ids, strict=True))[: selected_count(share, queries=len(ids))]
    assert chosen == {name for _, name in expected}
    pairs = list(zip(confidence, ids, strict=True))
    random.shuffle(pairs)  # type: ignore[attr-defined]
    shuffled = select([c for c, _ in pairs], [name for _, name in pairs], share)
    assert chosen == {name for (_, name), yes in zip(pairs, shuffled, strict=True) if yes}


def test_confidence_that_is_no_number_is_an_error() -> None:
    """NaN compares false with everything: it would scramble the order in silence."""
    with pytest.raises(RunFailed, match="q2"):
        select([-1.0, float("nan")], ["q1", "q2"], Fraction(1))
