"""A store whose file system is unmounted under a run, which may be killed before it comes back: the next run ends in the same bytes."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.hosts import Hosts, wait_for
from support.stores import distinct_pairs

from data.errors import EXIT_INTERRUPTED

WINDOW = 8  # pairs
TRIED = 1  # pair with which a teacher is tried before the work


SETTINGS = {"teacher.backend": "support.plugin_teachers:Slow", "teacher.segment_pairs": WINDOW}


@pytest.fixture(scope="module")
def unbroken(
    tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Callable[..., Path], prep_run: Any, parquet_files: Callable[[Path], Any]
) -> dict[str, bytes]:
    """The tables of a run whose store stays."""
    config = tiny_experiment(tmp_path_factory.mktemp("unbroken"), **SETTINGS)
    prep_run(config)
    return dict(parquet_files(config.parent / "store"))


@pytest.mark.parametrize(("claims", "killed"), [("on", True), ("on", False), ("off", False)])
def test_a_store_that_is_unmounted_while_pairs_are_scored(
    claims: str, killed: bool, hosts: Hosts, unbroken: dict[str, bytes], tiny_experiment: Callable[..., Path],
    parquet_files: Callable[[Path], dict[str, bytes]],
) -> None:  # fmt: skip
    """Prevents: shards, logits or signs of life on the disk below the mount point, hidden when the store comes back; work of the run before
    that is lost or paid for twice; a run that goes on for hours without a store."""
    host = hosts.boot(1)
    mount = hosts.folder / "mount"
    mount.mkdir()
    config = tiny_experiment(hosts.shared, store=str(mount / "store"), **SETTINGS)
    store, scored = mount / "store", hosts.shared / "scored"
    words = ("prep", "run", f"config={config}", f"claims={claims}")
    process = host.start(*words, log=hosts.shared / "log", ADAM_TEST_SECONDS="0.1", ADAM_TEST_SCORED=str(scored))
    wait_for(lambda: len(list(store.glob("teacher_logits/*/*.parquet"))) > 1, seconds=300, what="the first scores")
    host.hide(mount)
    if killed:
        for one in host.processes("prep run"):
            host.kill(one)
    code = process.wait(timeout=180)
    assert code in (-signal.SIGKILL, 137) if killed else code == EXIT_INTERRUPTED, (hosts.shared / "log").read_text()
    assert killed or "is its file system mounted?" in (hosts.shared / "log").read_text()
    left = host.run("find", mount, "-mindepth", "1").stdout
    assert left == "", "made in the place of the store"
    host.show(mount)
    done = host.run(*words, ADAM_TEST_SCORED=str(scored))
    assert done.returncode == 0, done.stdout + done.stderr
    assert parquet_files(store) == unbroken
    assert sum(map(int, scored.read_text().split())) <= distinct_pairs(store) + TRIED + 2 * WINDOW
    assert not list(store.rglob("*.tmp"))
