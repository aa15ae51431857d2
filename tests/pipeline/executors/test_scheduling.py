"""Which worker gets which task, on a cluster and a clock that are made up. No Ray."""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import NotAnswering, RunFailed, UserError
from pipeline.executors.ray import scheduling
from pipeline.executors.ray.nodes import Needs, Node, NodeFaults
from pipeline.executors.ray.scheduling import Crew, Limits, Schedule

DETECT = 20.0  # seconds until the list of nodes lacks one that was lost


class Tasks:
    """A queue that keeps account. With `elsewhere`, other jobs hold that many of the tasks until some second, and then lose them."""

    def __init__(self, number: int, *, elsewhere: int = 0, until: float = 0.0, clock: Any = None) -> None:
        self._waiting = [SimpleNamespace(unit=f"{place:03d}", name=f"shard {place}") for place in range(number)]
        self._later = [self._waiting.pop() for _ in range(elsewhere)]
        self._until, self._clock = until, clock
        self.given: Counter[str] = Counter()
        self.returned: Counter[str] = Counter()
        self.done: Counter[str] = Counter()

    def next(self) -> Any:
        if self._later and self._clock() >= self._until:
            self._waiting += self._later
            self._later = []
        task = self._waiting.pop(0) if self._waiting else None
        if task:
            self.given[task.unit] += 1
        return task

    def give_back(self, task: Any) -> None:
        self.returned[task.unit] += 1
        self._waiting.insert(0, task)

    def finished(self, result: Any) -> None:
        self.done[result] += 1

    @property
    def waits(self) -> bool:
        return bool(self._later)

    def __len__(self) -> int:
        return len(self._waiting) + len(self._later)


@dataclass
class Host:
    cpus: int
    alive: bool = True  # for all that is known
    silent: bool = False
    fault: str = ""  # what every task meets here
    broken: bool = False  # no worker can start here
    speed: float = 1.0
    held: int = 0  # CPUs of other runs


@dataclass
class Actor:
    avoid: frozenset[str]
    node: str = ""
    task: Any = None
    hung: bool = False
    orders: int = 0  # that it got
    ready: bool = False


@dataclass
class Cluster:
    """Hosts whose actors take a second to start and `seconds` for a task. Faults are calls at a moment."""

    seconds: float = 4.0
    threads: int = 1
    hosts: dict[str, Host] = field(default_factory=dict)
    now: float = 0.0
    actors: dict[int, Actor] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    most: int = 0  # actors that held CPUs at once
    _agenda: list[Any] = field(default_factory=list)
    _numbers: Any = field(default_factory=count)

    def at(self, when: float, what: Any) -> None:
        heapq.heappush(self._agenda, (when, next(self._numbers), what))

    def listed(self) -> list[Node]:
        return [Node(name, name, host.cpus) for name, host in self.hosts.items() if host.alive]

    def free(self, name: str) -> int:
        host = self.hosts[name]
        return host.cpus - host.held - self.threads * sum(actor.node == name for actor in self.actors.values())

    def kill_host(self, name: str) -> list[scheduling.Event]:
        """Silence at once; its death is known later."""
        lost = [worker for worker, actor in self.actors.items() if actor.node == name]
        self.hosts[name].silent = True
        self.at(self.now + DETECT, lambda: self._bury(name))
        return [scheduling.Lost(worker, "does not answer", sure=False) for worker in lost if self.actors[worker].ready]

    def _bury(self, name: str) -> list[scheduling.Event]:
        self.hosts[name].alive = False
        return []

    def kill_worker(self, place: int) -> list[scheduling.Event]:
        busy = [worker for worker, actor in self.actors.items() if actor.task and not self._silent(actor)]
        if not busy:
            return []
        worker = busy[place % len(busy)]
        del self.actors[worker]
        return [scheduling.Lost(worker, "OOM")]

    def hang_worker(self, place: int, *, spare: str) -> list[scheduling.Event]:
        found = [actor for actor in self.actors.values() if actor.node not in ("", spare)]
        if found:
            found[place % len(found)].hung = True
        return []

    def do(self, action: scheduling.Action) -> None:
        match action:
            case scheduling.Start():
                assert action.worker not in self.actors
                self.actors[action.worker] = Actor(action.avoid)
            case scheduling.Stop():
                self.actors.pop(action.worker, None)
            case scheduling.Give():
                actor = self.actors[action.worker]
                assert actor.ready and actor.task is None, "a task goes to a worker that has answered and does nothing"
                actor.task, actor.orders = action.task, actor.orders + 1
                host = self.hosts[actor.node]
                orders = actor.orders
                self.at(self.now + self.seconds * host.speed, lambda: self._end_of(action.worker, orders))

    def place(self) -> None:
        for worker, actor in self.actors.items():
            fit = [name for name, host in self.hosts.items() if host.alive and name not in actor.avoid and self.free(name) >= self.threads]
            if not actor.node and fit:
                actor.node = max(fit, key=self.free)
                self.at(self.now + 1.0, lambda worker=worker: self._answer(worker))
        self.most = max(self.most, sum(bool(actor.node) for actor in self.actors.values()))

    def _silent(self, actor: Actor) -> bool:
        return actor.hung or (bool(actor.node) and self.hosts[actor.node].silent)

    def _answer(self, worker: int) -> list[scheduling.Event]:
        actor = self.actors.get(worker)
        if actor is None or self._silent(actor):
            return []
        if self.hosts[actor.node].broken:
            del self.actors[worker]
            return [scheduling.StartFailed(worker, actor.node, actor.node, "No module named pipeline")]
        actor.ready = True
        return [scheduling.Ready(worker, actor.node, actor.node)]

    def _end_of(self, worker: int, orders: int) -> list[scheduling.Event]:
        actor = self.actors.get(worker)
        if actor is None or self._silent(actor) or actor.orders != orders:
            return []
        task, actor.task = actor.task, None
        if fault := self.hosts[actor.node].fault:
            return [scheduling.NodeFault(worker, fault, fault, RunFailed(f"{task.name} failed on {actor.node}: {fault}"))]
        return [scheduling.Finished(worker, task.unit)]

    def run(self, queue: Tasks, *, crew: Crew | None = None, end: float = 4000.0, **limits: Any) -> list[str]:
        """Units in the order of finishing."""
        schedule = Schedule(queue, crew or Crew(), NodeFaults(self.said.append), Limits(Needs(self.threads), **limits), self.said.append)
        results: list[str] = []
        while not schedule.over:
            assert self.now < end, "it hangs"
            schedule.look(self.listed(), self.now)
            for action in schedule.decide(self.now):
                self.do(action)
            self.place()
            self.now += 0.5
            events = [scheduling.Heard(worker) for worker, actor in self.actors.items() if actor.task and not self._silent(actor)]
            while self._agenda and self._agenda[0][0] <= self.now:
                events += heapq.heappop(self._agenda)[2]() or []
            for event in events:
                results += schedule.happened(event, self.now)
        for action in schedule.end():
            self.do(action)
        assert queue.done == Counter(results) and set(queue.done.values()) <= {1}, "each task finishes once"
        assert all(given == 1 + queue.returned[unit] for unit, given in queue.given.items()), "nothing is given back twice"
        return results


def hosts(*cpus: int, **more: Any) -> dict[str, Host]:
    return {f"c{place}": Host(number, **more) for place, number in enumerate(cpus, 1)}


FAULTS = st.lists(
    st.tuples(
        st.sampled_from(["kill", "die", "hang", "join", "fault", "broken", "held"]), st.floats(0, 60), st.integers(0, 5), st.integers(1, 3)
    ),
    max_size=8,
)


@pytest.mark.medium
@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    FAULTS,
    st.integers(1, 25),
    st.integers(1, 2),
    st.sampled_from([None, None, 2, 5]),
    st.integers(0, 3),
)
def test_every_task_finishes_once_while_one_good_node_lives(
    cpus: list[int], script: list[tuple[str, float, int, int]], tasks: int, threads: int, workers: int | None, elsewhere: int
) -> None:
    """Prevents: a run that hangs for ever, drops a shard or counts one twice after nodes and workers died, hung, joined or failed."""
    cluster = Cluster(threads=threads, hosts={"good": Host(threads), **hosts(*cpus)})
    names = [f"c{place}" for place in range(1, len(cpus) + 1)]
    deaths = sum(kind == "die" for kind, *_ in script)
    limit = None if workers is None else workers + sum(kind == "hang" for kind, *_ in script)  # one that hangs keeps its place
    for kind, when, place, size in script:
        name = names[place % len(names)]
        host = cluster.hosts[name]
        if kind == "kill":
            cluster.at(when, lambda name=name: cluster.kill_host(name))
        elif kind == "die":
            cluster.at(when, lambda place=place: cluster.kill_worker(place))
        elif kind == "hang":
            cluster.at(when, lambda place=place: cluster.hang_worker(place, spare="good"))
        elif kind == "join":
            cluster.at(when, lambda place=place, size=size: cluster.hosts.setdefault(f"new{place}", Host(size)) and [])
        else:
            value = {"fault": f"fault of {name}", "broken": True, "held": size}[kind]
            cluster.at(when, lambda host=host, kind=kind, value=value: setattr(host, kind, value))
    queue = Tasks(tasks + elsewhere, elsewhere=elsewhere, until=30.0, clock=lambda: cluster.now)
    results = cluster.run(queue, workers=limit, retries=deaths)
    assert sorted(results) == [f"{place:03d}" for place in range(tasks + elsewhere)]


def test_a_lost_node_costs_its_tasks_only() -> None:
    """Prevents: a run that waits for the nodes' death to be certain, or counts it as a failure of the shard."""
    cluster = Cluster(hosts=hosts(1, 1, 1))
    cluster.at(6.0, lambda: cluster.kill_host("c2"))
    results = cluster.run(queue := Tasks(12), retries=0)
    assert len(results) == 12 and sum(queue.returned.values()) == 1
    assert cluster.now < 40  # 12 tasks of 4 s on two workers, and one that was lost


def test_the_tail_does_not_wait_for_the_lost() -> None:
    """Prevents: the last shard, on a node that died, which nobody takes over since the others have stopped."""
    cluster = Cluster(hosts=hosts(1, 1), seconds=30.0)
    cluster.at(20.0, lambda: cluster.kill_host("c2"))
    assert len(cluster.run(Tasks(2), retries=1)) == 2 and cluster.now < 65  # begun again at 20 s, before the death is certain
    cluster = Cluster(hosts=hosts(1, 1), seconds=30.0)
    cluster.at(20.0, lambda: cluster.kill_host("c2"))
    assert len(cluster.run(Tasks(2), retries=0)) == 2  # begun again when it is


def test_cpus_that_are_no_multiple_of_the_threads() -> None:
    """Prevents: a worker more than any node has room for, whose shard waits for ever: three nodes of 3 CPUs hold three workers of 2."""
    cluster = Cluster(hosts=hosts(3, 3, 3), threads=2)
    assert len(cluster.run(Tasks(12))) == 12 and cluster.most == 3 and cluster.now < 25


def test_a_worker_that_dies_on_a_living_node_fails_the_shard_in_the_end() -> None:
    """Prevents: a shard that takes each worker's memory, started again for ever."""
    cluster = Cluster(hosts=hosts(2))
    for when in range(1, 200):
        cluster.at(when + 0.2, lambda: cluster.kill_worker(0))
    with pytest.raises(RunFailed, match=r"shard \d+: its worker died 3 times \(last on c1: OOM\)"):
        cluster.run(Tasks(4), retries=2)


def test_a_broken_node_is_left_out_by_name() -> None:
    """Prevents: a node without the package, or with a full disk, that ends a run which others could finish."""
    cluster = Cluster(hosts=hosts(1, 1, 1))
    cluster.hosts["c1"].broken = True
    cluster.hosts["c2"].fault = "Read-only file system"
    assert len(cluster.run(Tasks(9))) == 9
    assert sorted(cluster.said) == [
        "warning: c1 gets no work from here on: No module named pipeline",
        "warning: c2 gets no work from here on: Read-only file system",
    ]


def test_no_node_is_left() -> None:
    """Prevents: a run that waits where every node was found to be of no use, or that does not name each."""
    cluster = Cluster(hosts=hosts(1, 1, broken=True))
    with pytest.raises(RunFailed, match=r"c1: No module named pipeline; c2: No module named pipeline"):
        cluster.run(Tasks(3))
    cluster = Cluster(hosts={**hosts(0), "only": Host(2, fault="No space left")})
    with pytest.raises(RunFailed, match=r"shard . failed on only: No space left"):
        cluster.run(Tasks(3))


def test_a_disk_that_goes_in_the_middle_is_for_later() -> None:
    """Prevents: a batch queue that gives a run up for good because the store of its last node was not mounted for a minute."""
    cluster = Cluster(hosts=hosts(2))
    cluster.at(8.0, lambda: setattr(cluster.hosts["c1"], "fault", "No such file"))
    with pytest.raises(NotAnswering, match=r"shard \d+ failed on c1: No such file"):
        cluster.run(Tasks(20))


def test_what_goes_on_two_nodes_in_the_middle_is_for_later() -> None:
    """Prevents: a batch queue that gives a run up for good because two of three nodes lost the store for a minute."""
    cluster = Cluster(hosts=hosts(1, 1, 1))
    for name in ("c1", "c2"):
        cluster.at(8.0, lambda name=name: setattr(cluster.hosts[name], "fault", "No such file"))
    with pytest.raises(NotAnswering, match=r"failed on c.: No such file"):
        cluster.run(Tasks(60))


def test_what_fails_alike_on_two_nodes_is_the_work() -> None:
    """Prevents: all nodes given up, one after the other, for a shard that fails anywhere."""
    cluster = Cluster(hosts=hosts(1, 1, 1, 1, fault="Read-only file system"))
    with pytest.raises(RunFailed, match=r"failed on c.: Read-only"):
        cluster.run(Tasks(1))
    assert cluster.said == []


def test_no_cpus_yet() -> None:
    """Prevents: a refusal where a head without CPUs has an autoscaler behind it, which sees a demand only if a worker is asked for."""
    cluster = Cluster(hosts=hosts(0))
    cluster.at(100.0, lambda: cluster.hosts.update(new=Host(2)))
    assert len(cluster.run(Tasks(6))) == 6
    (said,) = cluster.said
    assert said.startswith("waiting for workers: a worker needs 1 CPUs, and no node has room for it (the largest has 0 CPUs)")


@pytest.mark.parametrize(("grows", "why"), [(True, "others hold what Ray has (2 CPUs"), (False, "processes start slowly here")])
def test_why_nobody_answers_yet(grows: bool, why: str) -> None:
    """Prevents: others that are blamed for a slow start, in a Ray that nobody else is in."""
    said: list[str] = []
    schedule = Schedule(Tasks(2), Crew(), NodeFaults(said.append), Limits(Needs(1), grows=grows), said.append)
    for now in range(0, 2 * int(scheduling.WAIT_SECONDS), 5):
        schedule.look([Node("one", "one", 2)], float(now))
        schedule.decide(float(now))
    (line,) = said
    assert line.startswith("waiting for workers") and why in line


def test_a_node_that_joins_is_used_at_once() -> None:
    """Prevents: new nodes that idle until the next table."""
    cluster = Cluster(hosts=hosts(1))
    cluster.at(10.0, lambda: cluster.hosts.update(late=Host(4)))
    cluster.run(Tasks(40))
    assert cluster.now < 50  # 160 s of work


def test_the_limit_is_no_demand() -> None:
    """Prevents: more workers than runner.workers, and a run that waits for so many."""
    cluster = Cluster(hosts=hosts(8, 8))
    cluster.run(Tasks(20), workers=3)
    assert cluster.most == 3
    assert len(Cluster(hosts=hosts(1)).run(Tasks(3), workers=8)) == 3


def test_a_hung_worker_delays_only_its_shard() -> None:
    """Prevents: a run that waits for a stopped worker, and a copy of each task that is merely a little slower."""
    cluster = Cluster(hosts={**hosts(1, 1, 1), "slow": Host(1, speed=2.0)})
    cluster.at(8.0, lambda: cluster.hang_worker(0, spare=""))
    results = cluster.run(queue := Tasks(20))
    assert len(results) == 20 and cluster.now < 60 and max(queue.given.values()) == 1


def test_the_only_two_tasks_and_one_hangs() -> None:
    """Prevents: a hung shard that nobody takes over, since too few were finished for a median."""
    cluster = Cluster(hosts=hosts(1, 1))
    cluster.at(3.0, lambda: cluster.hang_worker(0, spare=""))
    assert len(cluster.run(Tasks(2))) == 2 and cluster.now < 60


def test_no_copy_of_a_question() -> None:
    """Prevents: a measurement of speed that is made twice at once, each time slower."""
    cluster = Cluster(hosts=hosts(1, 1), seconds=200.0)
    cluster.run(Tasks(1), copies=False, workers=1)
    assert cluster.most == 1


def test_two_runs_on_one_cluster_both_end() -> None:
    """Prevents: idle workers of one run on the CPUs that the other's wait for."""
    cluster = Cluster(hosts=hosts(1, 1))
    crew = Crew()
    cluster.run(Tasks(6), crew=crew)
    assert len(cluster.actors) == 2, "the next table starts at once"
    slow = Cluster(hosts=hosts(1, 1))
    slow.hosts["c1"].speed = 20.0
    held = []
    slow.at(60.0, lambda: held.append([actor.node for actor in slow.actors.values()]) or [])
    slow.run(Tasks(4), copies=False)
    assert held == [["c1"]], "the one that waits for the tail was stopped, and so was the demand for more"


def test_a_fault_of_the_input_ends_it() -> None:
    """Prevents: bad input that is tried on every node."""
    crew = Crew()
    schedule = Schedule(Tasks(2), crew, NodeFaults(print), Limits(Needs(1)), print)
    schedule.look([Node("a", "a", 2)], 0.0)
    starts = [action.worker for action in schedule.decide(0.0)]
    schedule.happened(scheduling.Ready(starts[0], "a", "a"), 1.0)
    schedule.decide(1.0)
    with pytest.raises(UserError, match="line 3 is no JSON"):
        schedule.happened(scheduling.Fatal(starts[0], UserError("line 3 is no JSON")), 2.0)
    assert schedule.happened(scheduling.Finished(99, "of a worker that was stopped"), 2.0) == []
