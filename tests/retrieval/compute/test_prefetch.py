from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from retrieval.compute.prefetch import Prefetched, ahead, behind


def test_same_items_in_order() -> None:
    """Prevents: a batch lost or repeated between two threads."""
    assert list(Prefetched(lambda: iter(range(500)), ahead=3)) == list(range(500))
    assert list(Prefetched(lambda: iter(()), ahead=1)) == []


def test_errors_come_where_the_item_would_be() -> None:
    """Prevents: a damaged shard that ends the run as if it were finished."""

    def breaks() -> Iterator[int]:
        yield 1
        raise OSError("disk")

    items = iter(Prefetched(breaks, ahead=4))
    assert next(items) == 1
    with pytest.raises(OSError, match="disk"):
        next(items)


def test_no_more_than_asked_for_are_made_ahead() -> None:
    """Prevents: a whole epoch in memory."""
    made = []

    def numbers() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    items = Prefetched(numbers, ahead=3)
    time.sleep(0.3)
    assert len(made) == 3
    next(iter(items))
    items.close()
    assert len(made) < 10 and not any(thread.name == "prefetch" for thread in threading.enumerate())


def test_waiting_is_counted() -> None:
    """Prevents: a trainer that waits for its data and says that it does not."""

    def slow() -> Iterator[int]:
        for number in range(3):
            time.sleep(0.1)
            yield number

    slowly = Prefetched(slow, ahead=2)
    list(slowly)
    assert 0.25 < slowly.waited < 3
    quickly = Prefetched(lambda: iter(range(3)), ahead=3)
    time.sleep(0.3)
    list(quickly)
    assert quickly.waited < 0.1


def test_items_are_made_ahead_and_errors_come_through() -> None:
    """Prevents: a window left out, or a failed write that nobody hears of."""
    assert list(ahead(range(5))) == list(range(5)) and list(ahead([])) == []

    def breaks() -> Any:
        yield 1
        raise OSError("tokenizer")

    items = ahead(breaks())
    assert next(items) == 1
    with pytest.raises(OSError, match="tokenizer"):
        next(items)

    def fails() -> None:
        raise OSError("full")

    done: list[int] = []
    with behind() as write:
        for number in range(20):
            write(done.append, number)
    assert done == list(range(20))
    with pytest.raises(OSError, match="full"), behind() as write:
        write(fails)


def test_one_is_made_ahead_and_a_user_who_leaves_ends_the_thread() -> None:
    """Prevents: one window of texts more in memory than the stage says, and threads that outlive their shard."""
    made: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(9):
            made.append(number)
            yield number

    items = ahead(numbers())
    assert next(items) == 0
    time.sleep(0.1)
    assert made == [0, 1]
    items.close()  # type: ignore[attr-defined]
    assert made == [0, 1] and not any(thread.name == "prefetch" for thread in threading.enumerate())
