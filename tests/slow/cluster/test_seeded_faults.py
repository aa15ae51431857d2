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
from support.lost_work import SLACK_SECONDS, Times, most_seconds
from support.stores import distinct_pairs

WINDOW = 16  # pairs
PAIR_SECONDS = 0.1  # of the teacher: the work must last longer than the faults
KINDS = ("node", "worker", "driver", "partition", "stopped", "full disk", "no store")
HEALED_SECONDS = {"node": 6.0, "partition": 20.0, "stopped": 9.0, "full disk": 6.0, "no store": 6.0}
WORKERS = (2, 3, 4)  # hosts; the driver is on 1


class Faults:
    """Faults of workers' hosts, each of which is mended some seconds later."""

    def __init__(self, hosts: Hosts, chance: random.Random) -> None:
        self._hosts, self._chance = hosts, chance
        self._menders: list[threading.Timer] = []
        self._ill: dict[int, float] = {}  # since when
        self.absences: list[tuple[int, float, float]] = []  # of a host from a fault until it was mended
        self.lost_workers = 0

    def happen(self, kind: str) -> bool:
        """False where it cannot happen now: the host that it would meet is still ill, or has no worker."""
        if kind == "driver":
            for process in self._hosts[1].processes("prep run"):
                self._hosts[1].kill(process)
            self.lost_workers += len(WORKERS)
            return True
        number = self._chance.choice(WORKERS)
        host = self._hosts[number]
        if number in self._ill or len(self._ill) == 2 or (kind in ("worker", "stopped") and not host.workers()):
            return False
        self._ill[number] = time.monotonic()
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
        self.absences.append((number, self._ill.pop(number), time.monotonic()))

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


class Pipeline:
    """One experiment on the cluster, each of whose pairs takes time."""

    def __init__(self, hosts: Hosts, config: Path) -> None:
        self.hosts, self.config, self.store = hosts, config, config.parent / "store"
        self._scored = hosts.folder / f"scored-{config.parent.name}"  # seen also where the store is not
        self.times = Times(len(WORKERS))

    def start(self, number: int) -> tuple[subprocess.Popen[str], Path]:
        log = self.config.parent / f"run-{number}.log"
        words = ("prep", "run", f"config={self.config}", f"runner.address={self.hosts.address()}")
        variables = {"ADAM_TEST_SECONDS": str(PAIR_SECONDS), "ADAM_TEST_SCORED": str(self._scored)}
        return self.hosts[1].start(*words, log=log, **variables), log

    @property
    def has_begun(self) -> bool:
        """Whether a worker has built a shard."""
        return next((self.store / "embed").glob("*/*.parquet"), None) is not None

    @property
    def scored_again(self) -> int:
        """Pairs that were scored more than once."""
        return sum(map(int, self._scored.read_text().split())) - distinct_pairs(self.store)


def run_unbroken(pipeline: Pipeline) -> tuple[float, float]:
    """Seconds of a run, and of these until its first worker had built something."""
    began, started = time.monotonic(), 0.0
    process, log = pipeline.start(0)
    while process.poll() is None:
        time.sleep(0.1)
        started = started or (pipeline.has_begun and time.monotonic() - began)
    assert process.returncode == 0, log.read_text()
    return time.monotonic() - began, started


def run_with_faults(
    pipeline: Pipeline, faults: Faults, waiting: list[str], chance: random.Random, *, start: float, most: float
) -> list[int]:
    """Codes of the runs until one ends well. What happens is taken out of `waiting`.

    Of `pipeline.times` a run that goes on may take `start` seconds until it works, and a mended host as long. A host that is given no more
    work, since it failed twice, is absent for the rest of that run.
    """
    times, codes = pipeline.times, list[int]()
    for number in range(12):
        process, log = pipeline.start(number)
        began, left_out = time.monotonic(), dict[int, float]()
        while process.poll() is None:
            assert time.monotonic() - began < most, log.read_text()
            pause = time.monotonic() + chance.uniform(1.5, 3.5)
            while time.monotonic() < pause and process.poll() is None:
                time.sleep(0.1)
            said = log.read_text()
            for host in WORKERS:
                if any(f"{called} gets no work" in said for called in (pipeline.hosts[host].name, pipeline.hosts[host].address)):
                    left_out.setdefault(host, time.monotonic())
            if pipeline.has_begun and process.poll() is None and pipeline.hosts[1].processes("prep run"):
                happened = next((kind for kind in waiting if faults.happen(kind)), None)
                waiting.remove(happened) if happened else None
        ended = time.monotonic()
        times.runs.append((began, ended))
        times.absences += [(host, at, ended) for host, at in left_out.items()]
        times.absences += [(host, began, began + start) for host in WORKERS if number]
        codes.append(process.returncode)
        if process.returncode == 0:
            break
        assert process.returncode in (-signal.SIGKILL, 137, 75), log.read_text()
    faults.mended()
    times.absences += [(host, at, until + start) for host, at, until in faults.absences]
    return codes


def test_what_counts_as_lost() -> None:
    """Prevents: a bound that no run can miss: a host's illness that is taken off twice, or for a time in which nothing ran."""
    times = Times(3, runs=[(0, 90), (100, 200)], absences=[(2, 10, 40), (2, 20, 40), (3, 30, 60), (4, 80, 110), (2, 300, 400)])
    assert times.whole_seconds() == pytest.approx(190 - 30 / 3 - 30 / 3 - 20 / 3)
    assert most_seconds(100, lost=30, hosts=3) == 170
    unbroken, hangs = 50.0, Times(3, runs=[(0, 140)], absences=[(2, 10, 40)])
    assert hangs.whole_seconds() > most_seconds(unbroken, lost=30, hosts=3) > Times(3, runs=[(0, 90)]).whole_seconds()


@pytest.mark.parametrize("seed", [0])
def test_a_pipeline_with_twenty_faults_ends_in_the_same_bytes_and_in_time(
    seed: int, hosts: Hosts, tiny_experiment: Callable[..., Path], parquet_files: Callable[[Path], dict[str, bytes]]
) -> None:
    """Prevents: a run that hangs, fails for good, gives other bytes or pays twice because something of its cluster was lost.

    In time is: the unbroken run of the same work on the same cluster, 60 s for all faults together, and the work that was lost, in whole
    seconds of the cluster (`support.lost_work`). Lost is what a host would have done while it was ill, or while it started again; what all
    would have done while a driver started again; and pairs that were scored once more, or were being scored when a worker was lost. The
    time of a start is that of the unbroken run.
    """
    settings: dict[str, Any] = {
        "ingest.path": write_collection(hosts.shared / "collection", passages=300, train=90), "ingest.corpus_shards": 6,
        "ingest.query_shards": 12, "teacher.backend": "support.plugin_teachers:Slow", "teacher.segment_pairs": WINDOW,
        "runner.kind": "ray", "runner.retries": 20,  # workers are killed more often than they do a task
    }  # fmt: skip
    unbroken, broken = (Pipeline(hosts, tiny_experiment(hosts.shared / name, **settings)) for name in ("unbroken", "broken"))
    for number in (1, *WORKERS):
        host = hosts.boot(number)
        host.power_off()
        hosts.boot(number, setup=_setup(host))
        hosts.start_ray(number, cpus=0 if number == 1 else 1)
    seconds, start = run_unbroken(unbroken)

    chance = random.Random(seed)
    waiting = [*KINDS * 3][:20]
    chance.shuffle(waiting)
    faults = Faults(hosts, chance)
    codes = run_with_faults(broken, faults, waiting, chance, start=start, most=4 * seconds + SLACK_SECONDS)
    assert codes[-1] == 0 and not waiting, f"{codes}, faults that did not happen: {waiting}"

    again = PAIR_SECONDS * (broken.scored_again + WINDOW * faults.lost_workers)
    took, most = broken.times.whole_seconds(), most_seconds(seconds, lost=again, hosts=len(WORKERS))
    runs = [round(end - begin) for begin, end in broken.times.runs]
    print(f"unbroken {seconds:.0f} s, start {start:.0f} s; runs {codes} of {runs} s are {took:.0f} whole seconds, may be {most:.0f}")
    assert parquet_files(broken.store) == parquet_files(unbroken.store)
    assert broken.scored_again <= 2 * WINDOW * faults.lost_workers
    assert took <= most
