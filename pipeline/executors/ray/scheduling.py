"""Who does which task: the decisions of a run, with no Ray, no clock and no thread in them.

What happened comes in as events, what is to be done goes out as actions; `now` are seconds of any clock that does not go back.

- A task goes only to a worker that has answered. Workers are asked for as far as nodes have room, and one more where the cluster may
  grow: what waits is the demand that an autoscaler sees.
- The death of a node is no failure of a task. The death of a worker on a node that lives is one, and a task has a few.
- What a node cannot do (a full disk, a missing package) is tried on another one; the same fault on two nodes ends the
  run: as the task's, or for later where work was done before, as when a store is unmounted everywhere.
- A task that takes much longer than others, or whose worker is silent, is started elsewhere as well; the first result counts.
- Workers that have had nothing to do for a while are stopped, since other runs may wait for their CPUs.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from data.errors import NotAnswering, RunFailed, UserError
from pipeline.executors.ray.nodes import Needs, Node, NodeFaults

SLOW_FACTOR = 3.0  # times the median of the finished tasks
SLOW_SECONDS = 10.0  # a task that takes less is never called slow
SLOW_AFTER = 5  # finished tasks, from which a median is believed while tasks wait
SILENT_SECONDS = 60.0  # a worker that did not answer for so long is taken for stopped
IDLE_SECONDS = 10.0  # between two tables of small shards a worker should not have to start again
DIED_SECONDS = 5.0  # until the cluster's list of nodes says whether a death was the worker's or its node's
LOST_SECONDS = 45.0  # the same where a worker does not answer: Ray takes about 25 s to give a node up
START_SECONDS = 300.0  # after which a start that is not answered is tried once more, elsewhere perhaps
WAIT_SECONDS = 30.0  # without any worker, before the user is told
AGAIN_SECONDS = 2.0  # after a start that failed for a reason that no node is known for
UNKNOWN_STARTS = 5  # failed starts in a row on nodes that Ray does not name


@dataclass(frozen=True)
class Limits:
    """What the settings allow."""

    needs: Needs
    workers: int | None = None  # at most; None: as many as fit
    retries: int = 2  # deaths of workers that a task may have
    grows: bool = True  # whether nodes may join: a cluster, not the Ray of this machine
    copies: bool = True  # whether a slow task is started a second time


@dataclass(frozen=True)
class Ready:
    """A worker answered for the first time."""

    worker: int
    node: str
    host: str
    refusal: str = ""  # why it must get no task


@dataclass(frozen=True)
class Heard:
    """A worker answered how far it is."""

    worker: int


@dataclass(frozen=True)
class Finished:
    """A worker did its task."""

    worker: int
    result: Any


@dataclass(frozen=True)
class Lost:
    """A worker is gone, or does not answer (`sure`: it died)."""

    worker: int
    cause: str
    sure: bool = True


@dataclass(frozen=True)
class StartFailed:
    """A worker could not start. The node is "" where it is not known."""

    worker: int
    node: str
    host: str
    cause: str


@dataclass(frozen=True)
class NodeFault:
    """A task met what may be a fault of the node. `kind` is the same where the fault is."""

    worker: int
    kind: str
    cause: str
    error: UserError  # that ends the run where there is no other node


@dataclass(frozen=True)
class Fatal:
    """A task met what is wrong on every node."""

    worker: int
    error: UserError


Event = Ready | Heard | Finished | Lost | StartFailed | NodeFault | Fatal


@dataclass(frozen=True)
class Start:
    """Start a worker, on none of these nodes."""

    worker: int
    avoid: frozenset[str]


@dataclass(frozen=True)
class Give:
    """Give a worker a task."""

    worker: int
    task: Any


@dataclass(frozen=True)
class Stop:
    """Stop a worker, whatever it does."""

    worker: int


Action = Start | Give | Stop


@dataclass
class Member:
    """A worker that has answered."""

    node: str
    host: str
    unit: str | None = None  # of the task that it does
    since: float = 0.0  # it does so, or does nothing
    heard: float = 0.0  # when it last answered


@dataclass
class Crew:
    """The workers, which stay from table to table."""

    members: dict[int, Member] = field(default_factory=dict)
    starting: dict[int, float] = field(default_factory=dict)  # worker -> when it was asked for
    numbers: Iterator[int] = field(default_factory=count)

    def idle(self) -> list[int]:
        """Those that do nothing, who became free last comes first: the others may be stopped soon."""
        return sorted((worker for worker, member in self.members.items() if member.unit is None), key=lambda one: -self.members[one].since)


@dataclass
class _Order:
    """A task under way, and who does it. The first is not always the one that finishes."""

    task: Any
    workers: dict[int, float]  # -> since when


@dataclass(frozen=True)
class _Loss:
    """A death of which it is not known yet whether it was the worker's alone."""

    unit: str
    node: str
    host: str
    cause: str
    at: float
    due: float


class Schedule:
    """One table's tasks, from the first to the last."""

    def __init__(self, queue: Any, crew: Crew, faults: NodeFaults, limits: Limits, say: Callable[[str], None]) -> None:
        self._queue, self._crew, self._faults, self._limits, self._say = queue, crew, faults, limits, say
        self._nodes: dict[str, Node] = {}
        self._looked = float("-inf")
        self._orders: dict[str, _Order] = {}
        self._elsewhere: dict[str, Any] = {}  # unit -> a task that waits for another node than those that it failed on
        self._failed_on: dict[str, dict[str, NodeFault]] = {}  # unit -> node -> the fault
        self._held: dict[str, Any] = {}  # unit -> a task that may have had too many deaths
        self._losses: list[_Loss] = []
        self._deaths: Counter[str] = Counter()
        self._seconds: list[float] = []
        self._dry = False  # the queue has no task for us now, though it may have one later
        self._unknown_starts = 0
        self._start_again = float("-inf")
        self._waits_since: float | None = None
        self._said_waiting = False
        self._stops: list[Stop] = []

    @property
    def over(self) -> bool:
        """Whether every task is done."""
        return not (self._orders or self._elsewhere or self._held or len(self._queue) or self._queue.waits)

    def does_for_the_first_time(self, worker: int) -> bool:
        """Whether nobody did this worker's task before it: two that count the same work would count it twice."""
        member = self._crew.members.get(worker)
        order = self._orders.get(member.unit) if member and member.unit else None
        return order is not None and next(iter(order.workers)) == worker

    # What happened.

    def look(self, nodes: Sequence[Node], now: float) -> None:
        """The nodes that live, as of `now`."""
        self._nodes = {node.id: node for node in nodes}
        self._looked = now
        for worker, member in list(self._crew.members.items()):
            if member.node not in self._nodes:
                self._stops.append(Stop(worker))
                self._lost(Lost(worker, f"{member.host} is lost"), now)
        self._judge(now)

    def happened(self, event: Event, now: float) -> list[Any]:
        """Take an event in. Returns the result of a task, once for each task, or nothing.

        Raises UserError and its kinds where the run must end.
        """
        match event:
            case Finished():
                return self._finished(event, now)
            case Ready():
                self._ready(event, now)
            case Heard():
                if event.worker in self._crew.members:
                    self._crew.members[event.worker].heard = now
            case Lost():
                self._lost(event, now)
            case StartFailed():
                self._start_failed(event, now)
            case NodeFault():
                self._node_fault(event, now)
            case Fatal():
                if event.worker in self._crew.members:
                    raise event.error
        return []

    def _ready(self, event: Ready, now: float) -> None:
        if self._crew.starting.pop(event.worker, None) is None:
            return
        self._unknown_starts = 0
        if event.refusal:
            self._faults.leave_out(event.node, event.host, event.refusal)
            self._stops.append(Stop(event.worker))
            return
        self._faults.worked(event.node, starting=True)
        self._crew.members[event.worker] = Member(event.node, event.host, since=now, heard=now)

    def _finished(self, event: Finished, now: float) -> list[Any]:
        order = self._free(event.worker, now)
        if order is None:
            return []
        task, began = order.task, order.workers.pop(event.worker)
        self._faults.worked(self._crew.members[event.worker].node, starting=False)
        self._seconds.append(now - began)
        del self._orders[task.unit]
        for worker in order.workers:  # the same task, later or on a slower node
            del self._crew.members[worker]
            self._stops.append(Stop(worker))
        self._queue.finished(event.result)
        return [event.result]

    def _free(self, worker: int, now: float) -> _Order | None:
        """The worker does nothing from now on. Returns what it did; None for one that is not known any more."""
        member = self._crew.members.get(worker)
        if member is None or member.unit is None:
            return None
        order = self._orders[member.unit]
        member.unit, member.since, member.heard = None, now, now
        return order

    def _lost(self, event: Lost, now: float) -> None:
        if self._crew.starting.pop(event.worker, None) is not None:
            self._count_unknown_start(event.cause, now)
        member = self._crew.members.get(event.worker)
        order = self._free(event.worker, now)
        if member is None:
            return
        del self._crew.members[event.worker]
        if not event.sure:
            self._stops.append(Stop(event.worker))  # it may live, and finish what another one does now
        if order is None:
            return
        del order.workers[event.worker]
        due = now + (DIED_SECONDS if event.sure else LOST_SECONDS)
        self._losses.append(_Loss(order.task.unit, member.node, member.host, event.cause, now, due))
        if not order.workers:
            del self._orders[order.task.unit]
            self._held[order.task.unit] = order.task
        self._judge(now)

    def _judge(self, now: float) -> None:
        """Tell deaths of workers from deaths of nodes, and try the tasks again that had few of the first."""
        for loss in list(self._losses):
            gone = loss.node not in self._nodes
            if gone or (now >= loss.due and self._looked > loss.at):
                self._losses.remove(loss)
                self._deaths[loss.unit] += not gone
                if self._deaths[loss.unit] > self._limits.retries and (loss.unit in self._held or loss.unit in self._orders):
                    name = (self._held.get(loss.unit) or self._orders[loss.unit].task).name
                    raise RunFailed(f"{name}: its worker died {self._deaths[loss.unit]} times (last on {loss.host}: {loss.cause})")
        open_losses = Counter(loss.unit for loss in self._losses)
        for unit in [unit for unit in self._held if self._deaths[unit] + open_losses[unit] <= self._limits.retries]:
            task = self._held.pop(unit)
            if unit in self._failed_on:
                self._elsewhere[unit] = task
            else:
                self._queue.give_back(task)
                self._dry = False

    def _start_failed(self, event: StartFailed, now: float) -> None:
        if self._crew.starting.pop(event.worker, None) is None:
            return
        self._stops.append(Stop(event.worker))
        if not event.node:
            self._count_unknown_start(event.cause, now)
        elif event.node in self._nodes:  # else it died meanwhile, and that is all
            self._faults.failed(event.node, event.host, event.cause, starting=True)

    def _count_unknown_start(self, cause: str, now: float) -> None:
        """Tries of one moment are one: a node with many may have died."""
        if now < self._start_again:
            return
        self._start_again = now + AGAIN_SECONDS
        self._unknown_starts += 1
        if self._unknown_starts >= UNKNOWN_STARTS:
            raise RunFailed(f"no worker can start, {self._unknown_starts} tries in a row: {cause}")

    def _node_fault(self, event: NodeFault, now: float) -> None:
        member = self._crew.members.get(event.worker)
        order = self._free(event.worker, now)
        if member is None or order is None:
            return
        task = order.task
        del order.workers[event.worker]
        failed_on = self._failed_on.setdefault(task.unit, {})
        alike = [node for node, fault in failed_on.items() if fault.kind == event.kind and node != member.node]
        failed_on[member.node] = event
        if alike or not self._other_nodes(task.unit):
            raise self._of_now(event.error)
        self._faults.failed(member.node, member.host, event.cause, starting=False)
        if not order.workers:
            del self._orders[task.unit]
            self._elsewhere[task.unit] = task

    def _other_nodes(self, unit: str) -> list[str]:
        """Nodes with room for a worker that this task has not failed on."""
        failed_on = self._failed_on.get(unit, {})
        return [node.id for node in self._usable() if node.id not in failed_on]

    # What is to be done.

    def decide(self, now: float) -> list[Action]:
        """What is to be done now. Raises RunFailed where no node is left."""
        self._refuse_if_none_is_left()
        gives = [*self._assign(now)]
        gives += self._copy_slow(now)
        stops = [*self._release(now)]
        starts = [*self._start(now)]
        self._say_what_it_waits_for(now)
        found, self._stops = self._stops, []
        return [*found, *stops, *gives, *starts]

    def end(self) -> list[Action]:
        """What is to be done when all is over: stop those that nobody needs."""
        found = [*self._stops, *map(Stop, self._crew.starting)]
        self._crew.starting.clear()
        return [*found]

    def _usable(self) -> list[Node]:
        return [node for node in self._nodes.values() if node.id not in self._faults.left_out and self._limits.needs.fit(node)]

    def _refuse_if_none_is_left(self) -> None:
        fitting = [node for node in self._nodes.values() if self._limits.needs.fit(node)]
        reasons = self._faults.reasons(fitting)
        if reasons and len(reasons) == len(fitting) and not any(member.unit for member in self._crew.members.values()):
            raise self._of_now(
                RunFailed(f"no node is left that can do the work ({'; '.join(reasons)}): mend one and start the same command again")
            )
        for unit in self._elsewhere:
            if not self._other_nodes(unit):
                raise self._of_now(list(self._failed_on[unit].values())[-1].error)

    def _of_now(self, error: UserError) -> UserError:
        """What ends a run of a cluster that did some work: what was there is gone, and the same command goes on when it is back."""
        return NotAnswering(str(error)) if self._limits.grows and self._faults.have_worked else error

    def _assign(self, now: float) -> Iterator[Give]:
        """Tasks to those that do nothing."""
        asks = True
        for worker in self._crew.idle():
            node = self._crew.members[worker].node
            if node in self._faults.left_out:
                continue
            unit = next((unit for unit in self._elsewhere if node not in self._failed_on[unit]), None)
            if unit is not None:
                yield self._give(worker, self._elsewhere.pop(unit), now)
            elif asks:
                task = self._queue.next()
                asks, self._dry = task is not None, task is None
                if task is not None:
                    yield self._give(worker, task, now)

    def _give(self, worker: int, task: Any, now: float) -> Give:
        member = self._crew.members[worker]
        member.unit, member.since, member.heard = task.unit, now, now
        self._orders.setdefault(task.unit, _Order(task, {})).workers[worker] = now
        return Give(worker, task)

    def _copy_slow(self, now: float) -> Iterator[Give]:
        """Slow tasks to those that do nothing, of other nodes first."""
        for order in self._slow(now):
            used = {self._crew.members[worker].node for worker in order.workers} | set(self._failed_on.get(order.task.unit, ()))
            free = [worker for worker in self._crew.idle() if self._crew.members[worker].node not in self._faults.left_out]
            if free:
                yield self._give(min(free, key=lambda worker: self._crew.members[worker].node in used), order.task, now)

    def _slow(self, now: float) -> list[_Order]:
        """Tasks that a worker without work would do well to do, too; none while there are others to be done."""
        if not self._limits.copies or self._tasks_left():
            return []
        enough = len(self._seconds) >= SLOW_AFTER or (self._seconds and not len(self._queue))
        allowed = max(SLOW_SECONDS, SLOW_FACTOR * statistics.median(self._seconds)) if enough else float("inf")
        found = []
        for order in self._orders.values():
            newest = max(order.workers.values())
            patience = 2.0 ** (len(order.workers) - 1)
            silent = all(now - self._crew.members[worker].heard > SILENT_SECONDS for worker in order.workers)
            if now - newest > allowed * patience or (silent and now - newest > SILENT_SECONDS):
                found.append(order)
        return found

    def _tasks_left(self) -> int:
        """Tasks that a worker could begin now."""
        return len(self._elsewhere) + (0 if self._dry else len(self._queue))

    def _release(self, now: float) -> Iterator[Stop]:
        """Stop those on nodes that are left out, those that cannot do what is left, and those that have long had nothing to do."""
        keep = bool(len(self._queue) or self._queue.waits)  # one must be there to ask for what comes back
        for worker in self._crew.idle():
            member = self._crew.members[worker]
            if member.node in self._faults.left_out or self._elsewhere:
                yield self._drop(worker)
            elif not self._tasks_left() and now - member.since > IDLE_SECONDS:
                if keep:
                    keep = False
                    continue
                yield self._drop(worker)

    def _drop(self, worker: int) -> Stop:
        del self._crew.members[worker]
        return Stop(worker)

    def _start(self, now: float) -> Iterator[Action]:
        """Ask for the workers that are missing, or for none of those that are on their way."""
        for worker in [worker for worker, since in self._crew.starting.items() if now - since > START_SECONDS]:
            del self._crew.starting[worker]
            yield Stop(worker)
        wanted = self._wanted(now) - len(self._crew.starting)
        if wanted < 0 and not self._wanted(now):
            for worker in list(self._crew.starting):
                del self._crew.starting[worker]
                yield Stop(worker)
        for _ in range(wanted if now >= self._start_again else 0):
            worker = next(self._crew.numbers)
            self._crew.starting[worker] = now
            yield Start(worker, self._faults.left_out | self._all_failed_on())

    def _wanted(self, now: float) -> int:
        """How many should be on their way."""
        crew = self._crew
        idle = sum(member.unit is None for member in crew.members.values())
        work = self._tasks_left() + len(self._slow(now))
        if not work and not crew.members and (len(self._queue) or self._queue.waits):
            work = 1
        room = sum(map(self._limits.needs.fit, self._usable())) - len(crew.members)
        room = max(room, 1 if self._limits.grows else 0)
        if self._limits.workers is not None:
            room = min(room, self._limits.workers - len(crew.members))
        return max(0, min(work - idle, room))

    def _all_failed_on(self) -> frozenset[str]:
        """Nodes on which every task that is left has failed."""
        if not self._elsewhere or len(self._queue):
            return frozenset()
        return frozenset.intersection(*(frozenset(self._failed_on[unit]) for unit in self._elsewhere))

    def _say_what_it_waits_for(self, now: float) -> None:
        """A word, once, where there is no worker."""
        if self._crew.members or not self._crew.starting:
            self._waits_since = None
            return
        self._waits_since = now if self._waits_since is None else self._waits_since
        if self._said_waiting or (self._usable() and now - self._waits_since < WAIT_SECONDS):
            return
        self._said_waiting = True
        needs, nodes = self._limits.needs, list(self._nodes.values())
        cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
        if self._usable() and not self._limits.grows:  # nobody else is in a Ray of our own
            self._say("waiting for workers: their processes start slowly here, as they do on a busy machine or from a slow disk")
            return
        if self._usable():
            self._say(f"waiting for workers: each needs {needs}, and others hold what Ray has ({cpus:.0f} CPUs and {gpus:.0f} GPUs)")
            return
        most = f"the largest has {max(node.cpus for node in nodes):.0f} CPUs" if nodes else "there is none"
        self._say(
            f"waiting for workers: a worker needs {needs}, and no node has room for it ({most}); it goes on as soon as one joins "
            "(or lower runner.threads or runner.gpus)"
        )
