"""A part of torchrun's store that only the processes of one start use.

torchrun keeps its store when it starts the processes again (`--max-restarts`), and since torch 2.5 no number of the start is in its keys:
gloo and nccl would look for the others at the addresses of the dead. TORCHELASTIC_RESTART_COUNT does not tell starts apart, as each machine
counts its own failures. So the processes find each other by names that each draws anew:

    here <rank>         the name of the latest process of that rank, maybe a dead one
    roll                rank 0's name, which is the start's, and those that it has found
    <start> <rank>      that process has found itself in the roll of this start
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from datetime import timedelta

from torch import distributed

_POLL_SECONDS = 0.05


def fresh_part(store: distributed.Store, *, rank: int, size: int, patience: timedelta) -> distributed.Store:
    """The part of the store for this start, the same in all processes. Raises RuntimeError where one of them does not come in time."""
    own = uuid.uuid4().hex
    if rank == 0:
        _wait_for(lambda: _all_found(store, own, size=size), patience)
        return distributed.PrefixStore(own, store)
    store.set(f"here {rank}", own)
    _wait_for(lambda: own in _roll(store), patience)
    start = _roll(store)[0]
    store.set(f"{start} {rank}", own)
    return distributed.PrefixStore(start, store)


def _roll(store: distributed.Store) -> list[str]:
    return store.get("roll").decode().split() if store.check(["roll"]) else []


def _all_found(store: distributed.Store, start: str, *, size: int) -> bool:
    """Call the roll of those who are here, dead ones too. Whether all have found themselves in it."""
    others = range(1, size)
    if store.check(here := [f"here {rank}" for rank in others]):
        store.set("roll", " ".join([start, *(name.decode() for name in store.multi_get(here))]))
    return bool(store.check([f"{start} {rank}" for rank in others]))


def _wait_for(what: Callable[[], bool], patience: timedelta) -> None:
    deadline = time.monotonic() + patience.total_seconds()
    while not what():
        if time.monotonic() > deadline:
            raise RuntimeError(f"not all of them came within {patience.total_seconds() / 60:g} min")
        time.sleep(_POLL_SECONDS)
