"""What `prep plan` says of an exact search."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.config.settings import Experiment
from data.tables.manifest import Manifest, ShardRecord
from pipeline.plan import TablePlan
from pipeline.report import search_cost
from pipeline.stage import Stored
from pipeline.stages import pools
from retrieval.search.devices.choice import Choice, Work


def test_the_faster_one_is_named_with_both_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a GPU rented for a search that the processor does sooner, or hours at a processor beside an idle GPU, and nobody told."""
    asked: list[tuple[Work, tuple[str, ...]]] = []

    def chosen(work: Work, devices: tuple[str, ...], *, threads: int) -> Choice:
        asked.append((work, devices))
        return Choice(bool(devices), 7200.0, 36.0 if devices else None)

    monkeypatch.setattr(search_cost, "choose", chosen)
    monkeypatch.setattr(search_cost, "gpus", lambda: ("cuda:0", "cuda:1"))
    monkeypatch.setattr(search_cost, "device_is_here", lambda device: True)
    on_gpu = lines(planned(tmp_path, device="cuda"))
    assert on_gpu == [
        "exact search of at most 500 queries among 9,000 passages: about 2.0 h of a processor's 1 threads; "
        "about 36 s of this machine's GPUs, the vectors once read; the GPUs search"
    ]
    assert asked == [(Work(500, 9000, 770, 100), ("cuda:0", "cuda:1"))]
    assert lines(planned(tmp_path, device="cpu")) == [
        "exact search of at most 500 queries among 9,000 passages: about 2.0 h of a processor's 1 threads"
    ]
    assert "prep plan stage=pools" in lines(planned(tmp_path, device="cpu"), measuring=False)[0]
    monkeypatch.setattr(search_cost, "device_is_here", lambda device: False)
    assert "not on this machine" in lines(planned(tmp_path, device="cuda"))[0]
    assert lines(planned(tmp_path, device="cpu", **{"search": {"index": "ivf"}})) == []


def planned(folder: Path, *, device: str, **more: Any) -> tuple[Experiment, TablePlan]:
    experiment = Experiment.model_validate(
        {"store": str(folder), "ingest": {"path": str(folder)}, "student": {"model": "m"}, "teacher": {"model": "t"},
         "runner": {"device": device}, **more}
    )  # fmt: skip

    def stored(rows: int) -> Stored:
        return Stored(folder, Manifest("embed", "", "", {}, [ShardRecord("part", rows, rows * 1540, "")], {}))

    inputs = {"embed.queries": stored(1000), "embed.corpus": stored(9000)}
    return experiment, TablePlan(pools.table(experiment), shard_count=2, stale={0: "never built"}, inputs=inputs)


def lines(given: tuple[Experiment, TablePlan], *, measuring: bool = True) -> list[str]:
    return search_cost.format_search_cost(*given, measuring=measuring)
