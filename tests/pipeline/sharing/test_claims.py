"""Claims among jobs that live, die, stall and race for each other's units, on a store of memory with a clock that is set by hand."""

from __future__ import annotations

import os
import subprocess
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from data.files.leftovers import ABANDONED_SECONDS, process_start, this_place
from data.store.place import Listed, LocalPlace
from pipeline.executors.tasks import ShardTask, TaskResult
from pipeline.sharing.claims import Claims
from pipeline.sharing.jobs import FOLDER, JOBS, Holder, Job
from pipeline.sharing.queue import SharedTasks
from pipeline.stage import Piece

SECONDS = 600.0
TABLE = f"{FOLDER}/embed.corpus-0a"


class Ended(BaseException):
    """A job was killed."""


@dataclass
class Memory:
    """A `Place` in memory. Before each request `turn` is called, where other jobs may come in between."""

    turn: Callable[[], None] = lambda: None
    now: float = 1e9
    held: dict[str, tuple[bytes, float, int]] = field(default_factory=dict)
    address: str = "memory"
    root: Path = Path()
    writes: int = 0

    def files(self, below: str = "") -> dict[str, Listed]:
        self.turn()
        start = f"{below}/" if below else ""
        return {name: Listed(len(one[0]), one[1], str(one[2])) for name, one in self.held.items() if name.startswith(start)}

    def read(self, name: str) -> bytes | None:
        self.turn()
        return self.held[name][0] if name in self.held else None

    def put(self, name: str, content: bytes) -> None:
        self.turn()
        self.writes += 1
        self.held[name] = (content, self.now, self.writes)

    def put_if_absent(self, name: str, content: bytes) -> bool:
        self.turn()
        if name in self.held:
            return False
        self.writes += 1
        self.held[name] = (content, self.now, self.writes)
        return True

    def delete(self, name: str) -> None:
        self.turn()
        self.held.pop(name, None)

    def sweep(self, below: str, *, now: float) -> None:
        pass


def task(shard: int, count: int) -> ShardTask:
    return ShardTask("embed.corpus", "embed/corpus-0a", "0a", (shard,), count, {}, {}, {}, 1)


def elsewhere(number: int) -> Holder:
    return Holder(f"host{number}", f"place{number}", number + 1, "1", SECONDS)


class Races:
    """Jobs in threads, of which only one runs at a time, from one request of the store to the next; who, the test chooses."""

    def __init__(self, jobs: int, units: int) -> None:
        self.place = Memory(self._turn)
        self.units = units
        self.built: set[int] = set()
        self.builders: Counter[tuple[int, int]] = Counter()  # (shard, job)
        self.stalled: set[int] = set()
        self.ever_stalled: set[int] = set()
        self.killed: set[int] = set()
        self.faults: list[BaseException] = []
        self._goes = [threading.Lock() for _ in range(jobs)]
        self._back = threading.Lock()
        for lock in (*self._goes, self._back):
            lock.acquire()
        self._numbers: dict[int, int] = {}
        self.jobs = [
            Job(self.place, seconds=SECONDS, clock=lambda: self.place.now, holder=elsewhere(number), name=f"job{number}")
            for number in range(jobs)
        ]
        self.beaten = [self.place.now] * jobs
        for job in self.jobs:
            job.beat()
        self.threads = [threading.Thread(target=self._life, args=(number,), daemon=True) for number in range(jobs)]
        for thread in self.threads:
            thread.start()

    def _turn(self) -> None:
        number = self._numbers.get(threading.get_ident())
        if number is None:  # the test itself, or a sign of life
            return
        self._back.release()
        self._goes[number].acquire()
        if number in self.killed:
            raise Ended

    def _life(self, number: int) -> None:
        self._numbers[threading.get_ident()] = number
        self._goes[number].acquire()
        try:
            self._work(number)
        except Ended:
            pass
        except BaseException as fault:
            self.faults.append(fault)
        finally:
            self._numbers.pop(threading.get_ident())
            self._back.release()

    def _work(self, number: int) -> None:
        queue = SharedTasks(
            [task(shard, self.units) for shard in range(self.units)],
            Claims(self.jobs[number], TABLE),
            unit=lambda one: one.unit,
            is_there=self._is_there,
            is_over=lambda: False,
            marks=False,
            say=lambda line: None,
            clock=lambda: self.place.now,
        )
        while len(queue) or queue.waits:
            if (one := queue.next()) is None:
                self._turn()
                continue
            self._turn()  # its work
            self.built.add(one.shards[0])
            self.builders[one.shards[0], number] += 1
            queue.finished(TaskResult(one, 0.0))

    def _is_there(self, one: ShardTask) -> bool:
        self._turn()
        return one.shards[0] in self.built

    def living(self) -> list[int]:
        return [number for number, thread in enumerate(self.threads) if thread.is_alive() and number not in self.killed]

    def step(self, number: int) -> None:
        if self.threads[number].is_alive():
            self._goes[number].release()
            self._back.acquire()
            if number not in self._numbers.values():  # it has ended
                self.threads[number].join(10)

    def wait(self, seconds: float) -> None:
        """Time passes; whoever lives and does not stall gives its signs of life."""
        for _ in range(max(1, round(seconds / 30))):
            self.place.now += min(seconds, 30)
            for number in self.living():
                if number not in self.stalled and self.place.now - self.beaten[number] >= 30:
                    self.jobs[number].beat()
                    self.beaten[number] = self.place.now


ACTIONS = st.one_of(
    st.tuples(st.just("step"), st.integers(0, 3)),
    st.tuples(st.just("step"), st.integers(0, 3)),
    st.tuples(st.just("step"), st.integers(0, 3)),
    st.tuples(st.just("wait"), st.sampled_from([1, 10, 60, 700])),
    st.tuples(st.just("kill"), st.integers(0, 3)),
    st.tuples(st.just("stall"), st.integers(0, 3)),
    st.tuples(st.just("wake"), st.integers(0, 3)),
)


@pytest.mark.medium
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(jobs=st.integers(1, 4), units=st.integers(1, 6), actions=st.lists(ACTIONS, max_size=80))
def test_no_unit_is_done_by_two_that_live_and_all_is_done_while_one_lives(jobs: int, units: int, actions: list[tuple[str, int]]) -> None:
    """Prevents: two jobs that pay for the same shard, and a shard that nobody builds because a dead job had it."""
    races = Races(jobs, units)
    for action, value in actions:
        living = races.living()
        if action == "wait":
            races.wait(value)
        elif value >= jobs or value not in living:
            continue
        elif action == "kill":
            if len(living) > 1:
                races.killed.add(value)
                races.step(value)
        elif action == "stall":
            races.stalled.add(value)
            races.ever_stalled.add(value)
        elif action == "wake":
            races.stalled.discard(value)
        elif value not in races.stalled:
            races.step(value)
    races.stalled.clear()
    for _ in range(2000):
        if not (living := races.living()):
            break
        for number in living:
            races.step(number)
        races.wait(20)
    assert not races.living() and not races.faults, races.faults
    assert races.built == set(range(units))
    for shard in range(units):
        done_by = [number for number in range(jobs) if races.builders[shard, number] and number not in races.ever_stalled]
        assert len(done_by) <= 1 and all(races.builders[shard, number] <= 1 for number in range(jobs)), (shard, races.builders)
    left = {name for name in races.place.held if not name.startswith(f"{JOBS}/")}
    assert not left or races.ever_stalled or races.killed, left


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(1, 2), max_size=40))
@example([1, 2] * 20)
def test_of_two_that_want_a_dead_job_s_unit_one_gets_it(order: list[int]) -> None:
    """Prevents: the shard of a job that died being built by all the others, who all see its claim run out in one moment."""
    races = Races(3, 1)
    while not races.jobs[0].place.files(FOLDER).keys() - {f"{JOBS}/job{number}" for number in range(3)}:
        races.step(0)
    for _ in range(8):
        for number in (1, 2):
            races.step(number)
    races.killed.add(0)
    races.step(0)
    races.wait(SECONDS + 100)
    for number in [*order, *[1, 2] * 200]:
        races.step(number)
        races.wait(0.1)
    assert not races.living() and not races.faults, races.faults
    assert races.builders[0, 1] + races.builders[0, 2] == 1


def pair(place: Memory | LocalPlace, *, clock: Callable[[], float], **holders: Holder) -> list[Job]:
    jobs = [Job(place, seconds=SECONDS, clock=clock, holder=holder, name=name) for name, holder in holders.items()]
    for job in jobs:
        job.beat()
    return jobs


def test_a_silent_job_is_dead_after_what_it_said_by_the_store_s_clock() -> None:
    """Prevents: hosts whose clocks differ by an hour that take each other for dead, or a dead one for alive."""
    place = Memory()
    ours = [5.0]  # this host's clock, which has nothing to do with the store's
    one, two = pair(place, clock=lambda: ours[0], one=elsewhere(1), two=elsewhere(2))
    assert Claims(one, TABLE).take("00000")
    claims = Claims(two, TABLE)
    assert not claims.take("00000") and claims.state("00000", two.look()) == "held"
    place.now, ours[0] = place.now + SECONDS - 1, ours[0] + SECONDS - 1
    assert claims.state("00000", two.look()) == "held"
    place.now, ours[0] = place.now + 2, ours[0] + 2
    two.beat()
    assert claims.state("00000", two.look()) == "lost"
    assert claims.take_over("00000", two.look())
    one.beat()  # it was only asleep
    assert Claims(one, TABLE).state("00000", one.look()) == "held"


def test_a_job_that_left_holds_nothing() -> None:
    """Prevents: ten minutes of waiting for a job that was stopped in good order."""
    place = Memory()
    one, two = pair(place, clock=lambda: 0.0, one=elsewhere(1), two=elsewhere(2))
    assert Claims(one, TABLE).take("00000")
    one.leave()
    assert Claims(two, TABLE).state("00000", two.look()) == "lost"


def test_a_killed_process_of_this_machine_holds_nothing(tmp_path: Path) -> None:
    """Prevents: ten minutes of waiting for a job that was killed on this very machine."""
    process = subprocess.Popen(["sleep", "60"])
    try:
        started = process_start(process.pid)
        there = Holder("here", this_place(), process.pid, str(started), SECONDS)
        one, two = pair(LocalPlace(tmp_path), clock=lambda: 0.0, one=there, two=Holder.here(SECONDS))
        assert Claims(one, TABLE).take("00000")
        claims = Claims(two, TABLE)
        assert claims.state("00000", two.look()) == "held"
    finally:
        process.kill()
        process.wait()
    assert claims.state("00000", two.look()) == "lost"
    again = Holder("here", this_place(), os.getpid(), "1", SECONDS)  # its number, given to another process
    assert again.ended and not Holder.here(SECONDS).ended


def test_a_claim_whose_answer_was_lost_is_one_s_own() -> None:
    """Prevents: a job that waits for itself: its request was answered by a broken connection, and repeated."""
    place = Memory()
    (one,) = pair(place, clock=lambda: 0.0, one=elsewhere(1))
    place.put(f"{TABLE}.00000.0", b"one")
    claims = Claims(one, TABLE)
    assert not claims.take("00000") and claims.state("00000", one.look()) == "own"
    claims.done("00000")
    assert set(place.held) == {f"{JOBS}/one"}


def test_jobs_that_live_cut_a_round_alike() -> None:
    """Prevents: two jobs with other workers that cut the same windows differently, and score the pairs of each twice."""
    place = Memory()
    one, two = pair(place, clock=lambda: 0.0, one=elsewhere(1), two=elsewhere(2))
    first, second = [Piece(0, "half", {"of": 2})], [Piece(0, "whole")]
    assert Claims(one, TABLE).agreed(0, [0, 1, 2], lambda: first) == first
    assert Claims(two, TABLE).agreed(0, [1, 2], lambda: second) == first
    assert Claims(two, TABLE).agreed(0, [1, 3], lambda: second) == second  # of a shard that the first one did not want
    Claims(one, TABLE).done("half", marked=True)
    assert Claims(two, TABLE).is_marked("half")
    one.leave()
    assert Claims(two, TABLE).agreed(0, [1, 2], lambda: second) == second  # alone, it owes nothing to those that ended
    assert not Claims(two, TABLE).is_marked("half")


def test_what_jobs_left_long_ago_is_removed() -> None:
    """Prevents: a store whose folder of claims grows with every kill; and a claim that is removed under a job that lives."""
    place = Memory()
    old, alive = pair(place, clock=lambda: place.now, old=elsewhere(1), alive=elsewhere(2))
    assert Claims(old, TABLE).take("00000") and Claims(old, TABLE).take("00001") and Claims(alive, TABLE).take("00001", 1)
    place.now += ABANDONED_SECONDS + 1
    alive.beat()
    new = Job(place, seconds=SECONDS, clock=lambda: place.now, holder=elsewhere(3), name="new")
    with new.alive():
        assert set(place.held) == {f"{JOBS}/alive", f"{JOBS}/new", f"{TABLE}.00001.0", f"{TABLE}.00001.1"}
    assert f"{JOBS}/new" not in place.held


def test_signs_of_life_go_on_where_the_store_did_not_answer_once(tmp_path: Path) -> None:
    """Prevents: a job that is dead for the others from the first hiccup of a network file system on."""
    place = LocalPlace(tmp_path)
    beats, heard = [0], threading.Event()

    class Failing(Job):
        def beat(self) -> None:
            beats[0] += 1
            if beats[0] == 2:
                raise OSError(116, "Stale file handle")
            super().beat()
            if beats[0] > 3:
                heard.set()

    with Failing(place, seconds=0.2).alive():
        assert heard.wait(20)
    assert place.files(JOBS) == {}


def test_the_first_job_on_a_store_begins_with_the_first_shard() -> None:
    """Prevents: a run of one's own that builds its shards in another order each time; and jobs that begin at the same shard."""
    place, orders = Memory(), {}
    one, two = (Job(place, seconds=SECONDS, holder=elsewhere(number), name=name) for number, name in ((1, "one"), (2, "two")))
    with one.alive(), two.alive():
        for job in (one, two):
            tasks = SharedTasks(
                [task(shard, 64) for shard in range(64)], Claims(job, f"{FOLDER}/{job.name}"), unit=lambda one: one.unit,
                is_there=lambda one: False, is_over=lambda: False, marks=False, say=print,
            )  # fmt: skip
            orders[job.name] = [found.shards[0] for _ in range(64) if (found := tasks.next())]
    assert orders["one"] == list(range(64))
    assert orders["two"] != orders["one"] and sorted(orders["two"]) == orders["one"]


@pytest.mark.parametrize(
    ("first", "second", "told"), [(False, False, []), (True, False, ["host0"]), (False, True, ["host0"]), (True, True, ["host0"])]
)
def test_who_shares_nothing_is_told_to_the_next(first: bool, second: bool, told: list[str]) -> None:
    """Prevents: two runs of one store, claims=off, that both pay for all of it, and no word."""
    place = Memory()
    jobs = [
        Job(place, seconds=SECONDS, clock=lambda: place.now, holder=elsewhere(number), apart=apart)
        for number, apart in enumerate((first, second))
    ]
    with jobs[0].alive(), jobs[1].alive():
        assert [job.not_shared_with for job in jobs] == [[], told]
    assert not place.files(JOBS)
