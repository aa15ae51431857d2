"""Processes that are started again on the store of those before, played by threads."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch import distributed

from trainer.processes.fresh_store import fresh_part


def started(store: distributed.Store, ranks: list[int], *, size: int, label: str, seconds: float = 30) -> list[str]:
    """What each rank reads of what all have written, as gloo does it, in a start of these ranks alone."""

    def join(rank: int) -> str:
        part = fresh_part(store, rank=rank, size=size, patience=timedelta(seconds=seconds))
        if rank == 0 and size > 2:
            time.sleep(0.1)  # the others read what is there, of whichever start
        part.set(f"address {rank}", f"{label} {rank}")
        return ",".join(value.decode() for value in part.multi_get([f"address {other}" for other in range(size)]))

    with ThreadPoolExecutor(size) as threads:
        return [one.result() for one in [threads.submit(join, rank) for rank in ranks]]


@pytest.mark.parametrize("size", [2, 5])
def test_a_start_sees_nothing_of_the_one_before(size: int) -> None:
    """Prevents: `torchrun --max-restarts` whose second start looks for the others where the dead ones listened, and fails."""
    store = distributed.HashStore()
    store.set_timeout(timedelta(seconds=30))
    for label in ("first", "second", "third"):
        found = started(store, list(range(size))[::-1], size=size, label=label)
        assert set(found) == {",".join(f"{label} {rank}" for rank in range(size))}


def test_a_start_of_which_one_never_came_does_no_harm() -> None:
    """Prevents: starts that are told apart by counting who came, one off for ever after a process that died while it was loading."""
    store = distributed.HashStore()
    store.set_timeout(timedelta(seconds=30))
    for missing in (2, 0):
        with pytest.raises(RuntimeError, match="not all of them came within"):
            started(store, [rank for rank in range(3) if rank != missing], size=3, label="broken", seconds=0.3)
    assert set(started(store, [0, 1, 2], size=3, label="new")) == {"new 0,new 1,new 2"}
