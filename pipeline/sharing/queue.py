"""The tasks of a table that other jobs may be doing as well: each is claimed before it is started.

    open -> claimed -> done            what this job does
    open -> held by others -> there    what another job does
                           -> open     where that job died, or gave up

A job that others were there before begins at a place of its own among the open tasks, so that they do not run into each other all the time.
It looks for what others have finished only once it has met one.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence

from data.digests import hash64
from pipeline.executors.tasks import ShardTask, TaskResult
from pipeline.sharing.claims import Claims
from pipeline.stage import Say

_LOOK_SECONDS = (0.5, 10.0)  # between two looks at what others hold: at first, and after a long wait


class SharedTasks:
    """A `TaskQueue`."""

    def __init__(
        self,
        tasks: Sequence[ShardTask],
        claims: Claims,
        *,
        unit: Callable[[ShardTask], str],
        is_there: Callable[[ShardTask], bool],
        is_over: Callable[[], bool],
        marks: bool,
        say: Say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """The tasks of a round, or of the table's shards.

        Args:
            unit: what a task is claimed by.
            is_there: whether what it makes is there.
            is_over: whether another job has completed the table.
            marks: a finished task leaves no file of its own, so that a mark is to tell.
        """
        start = 0 if claims.job.began_alone else hash64(0, claims.job.name) % max(1, len(tasks))
        self._open = deque([*tasks[start:], *tasks[:start]])
        self._back: list[ShardTask] = []
        self._held: dict[str, ShardTask] = {}  # by others
        self._claims, self._unit, self._is_there, self._is_over = claims, unit, is_there, is_over
        self._marks, self._say, self._clock = marks, say, clock
        self._pause, self._looked, self._said = _LOOK_SECONDS[0], clock(), False
        self._meets_others = False
        self._may_be_lost = True  # what another has claimed: of jobs that all live it is not asked each time

    def next(self) -> ShardTask | None:
        """One that is this job's from now on; None where others hold all that are left."""
        if self._back:
            return self._back.pop()
        if self._is_due():
            self._look()
        while self._open:
            task = self._open.popleft()
            if self._meets_others and self._is_there(task):
                continue
            unit = self._unit(task)
            if not self._claims.take(unit):
                self._held[unit] = task
                self._meets_others = True
                if self._may_be_lost:  # a job that is started again goes on where it was killed
                    self._look()
                    self._may_be_lost = unit not in self._held
                if self._back:
                    return self._back.pop()
            elif self._is_mine(task):
                return task
        return None

    def _is_mine(self, task: ShardTask) -> bool:
        """Of a task that was claimed: whether it is still to be done. Only now is it certain that nobody else is about to finish it."""
        if not self._is_there(task):
            return True
        self._claims.done(self._unit(task))
        self._meets_others = True
        return False

    def _is_due(self) -> bool:
        return bool(self._held) and self._clock() - self._looked >= self._pause

    def _look(self) -> None:
        """What has become of the tasks that others hold."""
        before = len(self._held)
        look = self._claims.job.look()
        if self._is_over():
            self._held.clear()
            self._open.clear()
        for unit, task in list(self._held.items()):
            state = self._claims.state(unit, look)
            if state == "held":
                continue
            if state == "own" or (state == "lost" and self._claims.take_over(unit, look)):
                del self._held[unit]
                if self._is_mine(task):
                    self._back.append(task)
            elif state == "free":
                del self._held[unit]
                self._open.append(task)
        self._looked = self._clock()
        self._pause = _LOOK_SECONDS[0] if len(self._held) < before else min(2 * self._pause, _LOOK_SECONDS[1])
        if self._held and not self._open and not self._back and not self._said:
            self._said = True
            first = next(iter(self._held.values()))
            hosts = ", ".join(look.hosts()) or "another host"
            self._say(f"{first.label:<16} the last {len(self._held)} of {first.shard_count} are being built by other jobs ({hosts})")

    def give_back(self, task: ShardTask) -> None:
        """It comes first, and stays claimed."""
        self._back.append(task)

    def finished(self, result: TaskResult) -> None:
        """The others may know."""
        self._claims.done(self._unit(result.task), marked=self._marks)

    @property
    def waits(self) -> bool:
        """Whether others hold some: each of them may die. Looks, now and then: who has no worker left would not ask for the next one."""
        if self._is_due():
            self._look()
        return bool(self._held or len(self))  # what was just found free as well: the loop that asks has counted before

    def __len__(self) -> int:
        return len(self._open) + len(self._back)
