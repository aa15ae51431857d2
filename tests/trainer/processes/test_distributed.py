"""Which GPU is whose, how long one waits for another, and how the waiting is counted. No GPU is needed."""

from __future__ import annotations

import time
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import distributed

from data.errors import RunFailed, UserError
from trainer.processes import distributed as ours
from trainer.processes.waits import Waits


@pytest.mark.parametrize(("place", "shown", "expected"), [(0, 8, 0), (5, 8, 5), (0, 1, 0), (3, 1, 0)])
def test_a_launcher_may_show_all_gpus_or_one(monkeypatch: pytest.MonkeyPatch, place: int, shown: int, expected: int) -> None:
    """Prevents: a refusal where Slurm shows each process its own GPU alone, which is then number 0 in all of them."""
    monkeypatch.setenv("LOCAL_RANK", str(place))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: shown)
    assert ours.own_gpu() == expected


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an error of CUDA about a device's number."""
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match="process 2 of this machine has no GPU: torch sees 2"):
        ours.own_gpu()


def test_two_processes_on_one_gpu_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: nccl's `invalid usage`, where a machine has one GPU and two processes, each of which sees it as its own."""
    for names, said in (("a/1 a/2 b/1", ""), ("a/1 b/1 a/1", "processes 0 and 2 are on the same GPU")):
        store = distributed.HashStore()
        for rank, name in enumerate(names.split()[:2]):
            store.set(f"gpu of {rank}", name)
        if not said:
            ours.refuse_shared_gpu(store, rank=2, size=3, gpu=names.split()[2])
            continue
        with pytest.raises(UserError, match=said):
            ours.refuse_shared_gpu(store, rank=2, size=3, gpu=names.split()[2])


def test_a_group_on_gpus_is_bound_to_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: nccl that guesses a process's GPU by its rank, and a time-out that the setting does not reach."""
    joined: dict[str, Any] = {}
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    store = distributed.HashStore()
    store.set("gpu of 0", "host/first")
    for name, value in {
        "is_available": lambda: True, "device_count": lambda: 1, "set_device": lambda number: joined.update(current=number),
        "get_device_properties": lambda number: SimpleNamespace(uuid="second"),
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(ours, "_store", lambda *_: store)
    monkeypatch.setattr(distributed, "init_process_group", lambda backend, **words: joined.update(words, backend=backend))
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(distributed, "destroy_process_group", lambda: None)
    with ours.joined("cuda", patience=timedelta(minutes=2)) as processes:
        assert (processes.rank, processes.size, processes.patience) == (1, 2, timedelta(minutes=2))
    assert joined["current"] == 0 and joined["device_id"] == torch.device("cuda", 0)
    assert joined["backend"] == "cpu:gloo,cuda:nccl" and joined["timeout"] == timedelta(minutes=2)


def test_the_sentence_names_the_time_that_was_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a message of 30 minutes after one that was set to a half."""

    def gone(_: Any) -> None:
        raise RuntimeError("[../gloo/pair.cc:1] Connection closed by peer")

    monkeypatch.setattr(distributed, "all_reduce", gone)
    with pytest.raises(RunFailed, match=r"has not come for 0.5 min \(Connection closed by peer\)"):
        ours.Distributed(0, 2, timedelta(seconds=30)).wait()


def test_waiting_is_counted_by_the_clock_of_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a slow process that cannot be told from those that wait for it, and a GPU's waits by a host's clock, which runs ahead."""
    waits = Waits()
    with waits.measured(on_device=False):
        time.sleep(0.03)
    assert 0.03 <= waits.taken() < 3 and waits.taken() == 0

    clock = iter((10.0, 510.0, 600.0, 850.0))  # milliseconds

    class Event:
        def __init__(self, *, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = next(clock)

        def elapsed_time(self, later: Any) -> float:
            return float(later.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    for _ in range(2):
        with waits.measured(on_device=True):
            pass
    assert waits.taken() == pytest.approx(0.75)
    waits.clear()
    assert waits.taken() == 0
