"""Batches one after the other: each once, put together ahead, read late, and no thread left behind."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import RunFailed
from retrieval.batches.in_turn import OutOfMemory, by_budget, in_turn


class Sums:
    """A device with room for so many tokens, whose results are the rows themselves."""

    def __init__(self, room: int, batch_tokens: int) -> None:
        self.room, self.batch_tokens, self.refused = room, batch_tokens, 0
        self.said: list[tuple[str, int]] = []

    def assemble(self, rows: list[int], length: int) -> tuple[list[int], int]:
        self.said.append(("assemble", rows[0]))
        return rows, length

    def launch(self, batch: tuple[list[int], int]) -> Callable[[], list[int]]:
        rows, length = batch
        if len(rows) * length > self.room:
            self.refused += 1
            raise OutOfMemory("full")
        self.said.append(("launch", rows[0]))

        def read() -> list[int]:
            self.said.append(("read", rows[0]))
            return [10 * row for row in rows]

        return read


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 30), max_size=60), room=st.integers(30, 300), batch_tokens=st.integers(1, 2000))
def test_every_row_once_with_its_own_result(lengths: list[int], room: int, batch_tokens: int) -> None:
    """Prevents: results of one batch written to the rows of another, or rows lost where a batch is refused while one is on its way."""
    device = Sums(room, batch_tokens)
    found = [(rows, results) for rows, results in by_budget(lengths, budget=device, device=device, what="pair")]
    assert sorted(row for rows, _ in found for row in rows) == list(range(len(lengths)))
    assert all(results == [10 * row for row in rows] for rows, results in found)
    assert all(len(rows) * lengths[rows[0]] <= room and lengths[rows[0]] == max(lengths[row] for row in rows) for rows, _ in found)
    assert device.refused <= 12 and not threads()


def test_a_sequence_that_never_fits_is_told() -> None:
    """Prevents: a loop without end."""
    device = Sums(20, 1000)
    with pytest.raises(RunFailed, match="a text of 50 tokens does not fit"):
        list(by_budget([3, 50, 4], budget=device, device=device, what="text"))


def test_a_batch_is_launched_before_the_last_one_is_read() -> None:
    """Prevents: a device that waits for the host between two batches."""
    device = Sums(1000, 1)
    assert [rows for rows, _ in in_turn([[0], [1], [2]], [1, 1, 1], device)] == [[0], [1], [2]]
    others = [said for said in device.said if said[0] != "assemble"]
    assert others == [("launch", 0), ("launch", 1), ("read", 0), ("launch", 2), ("read", 1), ("read", 2)]


def test_the_next_batch_is_assembled_while_one_runs() -> None:
    """Prevents: a host that prepares nothing while the device computes; and one that prepares the whole window, in memory."""
    second, made = threading.Event(), []

    class Slow(Sums):
        def assemble(self, rows: list[int], length: int) -> Any:
            made.append(rows[0])
            if rows[0] == 1:
                second.set()
            return super().assemble(rows, length)

        def launch(self, batch: Any) -> Any:
            assert second.wait(10), "nothing was assembled meanwhile"
            return super().launch(batch)

    running = in_turn([[row] for row in range(9)], [1] * 9, Slow(1000, 1))
    next(running)
    assert len(made) <= 5  # two launched, one in hand at most, two that wait
    assert [rows for rows, _ in running] == [[row] for row in range(1, 9)]


@pytest.mark.parametrize("fails", ["assemble", "launch", "read"])
def test_errors_reach_the_caller_and_the_thread_ends(fails: str) -> None:
    """Prevents: logits of pairs that were never scored; a process that hangs in a thread which nobody waits for."""

    class Broken(Sums):
        def assemble(self, rows: list[int], length: int) -> Any:
            if fails == "assemble" and rows[0] == 3:
                raise ValueError("broken")
            return super().assemble(rows, length)

        def launch(self, batch: Any) -> Any:
            if fails == "launch" and batch[0][0] == 3:
                raise ValueError("broken")
            read = super().launch(batch)

            def reads() -> list[int]:
                if fails == "read" and batch[0][0] == 3:
                    raise ValueError("broken")
                return read()

            return reads

    device, found = Broken(1000, 1), []
    with pytest.raises(ValueError, match="broken"):
        for rows, _ in by_budget([1] * 9, budget=device, device=device, what="pair"):
            found.append(rows)
    assert found[:2] == [[0], [1]] and [3] not in found and not threads()


def test_a_caller_who_leaves_ends_the_thread() -> None:
    """Prevents: threads that outlive a run which a signal ended."""
    device = Sums(1000, 1)
    with pytest.raises(KeyboardInterrupt), contextlib.closing(by_budget([1] * 50, budget=device, device=device, what="pair")) as batches:
        for _ in batches:
            raise KeyboardInterrupt
    assert not threads()
