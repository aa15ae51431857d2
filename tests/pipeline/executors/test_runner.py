"""The Ray executor's decisions, without Ray."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from data.errors import RunFailed, UserError
from pipeline.executors.ray.cluster import _init, failed
from pipeline.executors.ray.executor import refuse_if_none_fits
from pipeline.executors.ray.nodes import Needs, Node


@pytest.mark.parametrize(("cpus", "threads", "fit"), [((3, 3, 3), 2, 3), ((8, 8, 8), 4, 6), ((1, 1), 2, 0), ((0, 5), 2, 2)])
def test_workers_are_counted_node_by_node(cpus: tuple[int, ...], threads: int, fit: int) -> None:
    """Prevents: one worker more than any node has room for, whose order waits for ever. Nine CPUs in threes hold three of 2, not four."""
    needs = Needs(threads)
    nodes = [Node(f"n{place}", "host", float(number)) for place, number in enumerate(cpus)]
    assert sum(map(needs.fit, nodes)) == fit
    if fit:
        refuse_if_none_fits(needs, nodes)
    else:
        with pytest.raises(UserError, match=f"needs {threads} CPUs, but Ray has {sum(cpus)} CPUs and 0 GPUs, enough for none"):
            refuse_if_none_fits(needs, nodes)


def test_ray_s_handlers_do_not_stay() -> None:
    """Prevents: SIGTERM that ends `prep run` with 1 and no word, since `ray.init` puts its own handler in the place of ours."""
    before = signal.getsignal(signal.SIGTERM)

    def init(**settings: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if settings:
            raise settings["error"]

    _init(SimpleNamespace(init=init))
    assert signal.getsignal(signal.SIGTERM) == before
    with pytest.raises(KeyboardInterrupt):  # what Ray's handler makes of a signal while it starts
        _init(SimpleNamespace(init=init), error=SystemExit(15))
    with pytest.raises(RunFailed, match=r"^Ray cannot start: the cause; .*runner=local does without it$"):
        _init(SimpleNamespace(init=init), error=ConnectionError("first words\n\nthe cause\n"))
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.medium
def test_a_fault_of_a_worker_s_disk_is_a_sentence() -> None:
    """Prevents: a traceback for a store that is read-only on one host, which is not named."""
    from ray.exceptions import RayTaskError

    cause = PermissionError(13, "Permission denied", "/store/x")
    error = RayTaskError("build", "traceback", cause, pid=1, ip="10.0.0.7").as_instanceof_cause()  # what ray.get raises, without the ip
    assert str(failed("embed, shard 1", error, host="c2")).startswith("embed, shard 1 failed on c2: /store/x: Permission denied; ")
