"""A pipeline over several hosts that meets a fault every few seconds: it ends in the bytes of an unbroken run, and little is paid twice."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.collection import write_collection
from support.hosts import Host, Hosts
from support.stores import distinct_pairs

WINDOW = 16  # pairs
SLOW = {"ADAM_TEST_SECONDS": "0.16"}  # of a pair: the work must last longer than the faults
KINDS = ("node", "worker", "driver", "partition", "stopped", "full disk", "no store")
HEALED_SECONDS = {"node": 6.0, "partition": 20.0, "stopped": 9.0, "full disk": 6.0, "no store": 6.0}
MOST_SECONDS = 300  # of one run between two faults of the driver; unbroken it takes a quarter of it


class Faults:
    """Faults of workers' hosts, each of which is mended some seconds later."""

    def __init__(self, hosts: Hosts, chance: random.Random) -> None:
        self._hosts, self._chance = hosts, chance
        self._menders: list[threading.Timer] = []
        self._ill: set[int] = set()
        self.lost_workers = 0

    def happen(self, kind: str) -> bool:
        """False where it cannot happen now: the host that it would meet is still ill, or has no worker."""
        if kind == "driver":
            for process in self._hosts[1].processes("prep run"):
                self._hosts[1].kill(process)
            self.lost_workers += 4
            return True
        number = self._chance.choice((2, 3, 4))
        host = self._hosts[number]
        if number in self._ill or len(self._ill) == 2 or (kind in ("worker", "stopped") and not host.workers()):
            return False
        self._ill.add(number)
        self.lost_workers += 1
        mend = {"node": self._off, "worker": self._killed, "partition": self._cut_off, "stopped": self._stopped}.get(kind, self._spoilt)
        heal = mend(number, host, kind)
        timer = threading.Timer(HEALED_SECONDS.get(kind, 0.0), self._mended, (number, heal))
        timer.start()
        self._menders.append(timer)
        return True

    def _mended(self, number: int, heal: Callable[[], object]) -> None:
        with contextlib.suppress(subprocess.CalledProcessError):  # the host is gone: the test is over
            heal()
        self._ill.discard(number)

    def _off(self, number: int, host: Host, kind: str) -> Callable[[], object]:
        host.power_off()
        return lambda: (self._hosts.boot(number, setup=_setup(host)), self._join(number))

    def _killed(self, number: int, host: Host, kind: str) -> Callable[[], object]:
        for process in host.workers()[:1]:
            host.kill(process)
        return lambda: None

    def _cut_off(self, number: int, host: Host, kind: str) -> Callable[[], object]:
        """Ray ends a raylet that was cut off for long: it is started again, as a watchdog of a cluster does."""
        self._hosts.cut_off(number)

        def heal() -> None:
            self._hosts.cut_off(number, healed=True)
            host.power_off()
            self._hosts.boot(number, setup=_setup(host))
            self._join(number)

        return heal

    def _stopped(self, number: int, host: Host, kind: str) -> Callable[[], object]:
        processes = host.workers()
        host.pause(processes)
        return lambda: host.resume(processes)

    def _spoilt(self, number: int, host: Host, kind: str) -> Callable[[], object]:
        """Of a host's temporary folder, which is full, or of the store, which is not mounted."""
        if kind == "no store":
            host.hide(self._hosts.shared)
            return lambda: host.show(self._hosts.shared)
        host.run("sh", "-c", "dd if=/dev/zero of=$TMPDIR/full bs=64k || true")
        return lambda: host.run("sh", "-c", "rm -f $TMPDIR/full")

    def _join(self, number: int) -> None:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):  # a cluster of one host less does as well
            self._hosts.start_ray(number)

    def mended(self) -> None:
        for timer in self._menders:
            timer.join()


def _setup(host: Host) -> str:
    return f"mount -t tmpfs -o size=64m tmp {host.folder / 'tmp'}"


@pytest.mark.parametrize("seed", [0])
def test_a_pipeline_with_twenty_faults_ends_in_the_same_bytes(
    seed: int, hosts: Hosts, tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Any,
    parquet_files: Callable[[Path], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Prevents: a run that hangs, fails for good, gives other bytes or pays twice because something of its cluster was lost."""
    settings: dict[str, Any] = {
        "ingest.path": write_collection(hosts.shared / "collection", passages=300, train=90), "ingest.corpus_shards": 6,
        "ingest.query_shards": 12, "teacher.backend": "support.plugin_teachers:Slow", "teacher.segment_pairs": WINDOW,
        "runner.retries": 20,  # workers are killed more often than they do a task
    }  # fmt: skip
    unbroken = tiny_experiment(tmp_path / "unbroken", **settings)
    prep_run(unbroken)
    config = tiny_experiment(hosts.shared / "broken", **settings, **{"runner.kind": "ray"})
    scored = hosts.shared / "scored"
    for number in (1, 2, 3, 4):
        host = hosts.boot(number)
        host.power_off()
        hosts.boot(number, setup=_setup(host))
        hosts.start_ray(number, cpus=0 if number == 1 else 1)

    chance = random.Random(seed)
    waiting = [*KINDS * 3][:20]
    chance.shuffle(waiting)
    faults = Faults(hosts, chance)
    codes: list[int] = []
    for attempt in range(12):
        log = hosts.shared / f"run-{attempt}.log"
        words = ("prep", "run", f"config={config}", f"runner.address={hosts.address()}")
        process = hosts[1].start(*words, log=log, ADAM_TEST_SCORED=str(scored), **SLOW)
        started = time.monotonic()
        while process.poll() is None:
            assert time.monotonic() - started < MOST_SECONDS, log.read_text()
            time.sleep(chance.uniform(1.5, 4.0))
            begun = next((config.parent / "store" / "embed").glob("*/*.parquet"), None)
            runs = begun and process.poll() is None and hosts[1].processes("prep run")
            happened = next((kind for kind in waiting if faults.happen(kind)), None) if runs else None
            if happened:
                waiting.remove(happened)
        codes.append(process.returncode)
        if process.returncode == 0:
            break
        assert process.returncode in (-signal.SIGKILL, 137, 75), log.read_text()
    faults.mended()
    assert codes[-1] == 0 and not waiting, f"{codes}, faults that did not happen: {waiting}"

    store = config.parent / "store"
    assert parquet_files(store) == parquet_files(unbroken.parent / "store")
    paid = sum(map(int, scored.read_text().split()))
    assert paid <= distinct_pairs(store) + 2 * WINDOW * faults.lost_workers
