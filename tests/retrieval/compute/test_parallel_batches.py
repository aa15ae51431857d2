"""Batches, each on a thread of its own."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from retrieval.compute.parallel_batches import side_by_side


@pytest.fixture
def two_threads() -> object:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_as_many_at_a_time_as_torch_has_threads(two_threads: object) -> None:
    """Prevents: one batch after the other; threads of threads; a process that is left with one thread."""
    both, inside = threading.Barrier(2, timeout=30), []

    def compute(batch: int) -> int:
        inside.append(torch.get_num_threads())
        both.wait()  # breaks unless two are in work
        return batch * batch

    assert sorted(side_by_side(compute, [1, 2, 3, 4])) == [1, 4, 9, 16]
    assert inside == [1] * 4 and torch.get_num_threads() == 2
    assert list(side_by_side(compute, [])) == []


def test_the_next_batches_find_the_same_threads(two_threads: object) -> None:
    """Prevents: memory that each window's threads leave behind, a tenth more for 27,000 passages."""

    def names(batch: int) -> str:
        time.sleep(0.01)
        return threading.current_thread().name

    first = set(side_by_side(names, list(range(8))))
    assert set(side_by_side(names, list(range(8)))) == first and len(first) == 2


def test_an_error_is_raised_and_the_rest_is_left(two_threads: object) -> None:
    """Prevents: an hour of computing after a batch has failed."""
    begun = []

    def compute(batch: int) -> None:
        begun.append(batch)
        time.sleep(0.02)
        if batch == 1:
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        list(side_by_side(compute, list(range(1000))))
    assert len(begun) < 100 and torch.get_num_threads() == 2


def test_a_caller_that_stops_leaves_the_rest(two_threads: object) -> None:
    """Prevents: a measurement of ten seconds that scores everything first."""
    begun = []
    for _ in side_by_side(lambda batch: (begun.append(batch), time.sleep(0.02)), list(range(1000))):
        break
    assert len(begun) < 100
