"""The jobs that work on one store, as they see each other.

    STORE/claims/jobs/<job>           written again and again while the job lives: host, process, how long its silence is patience
    STORE/claims/jobs/apart-<job>     the same of one that claims nothing, claims=off
    STORE/claims/<table>.<unit>.<n>   the job that does a unit of a table, see `pipeline.sharing.claims`

A job whose file is gone has ended. One that has been silent for longer than it said is dead, and so is one of this machine whose process is
gone. Times are those of the store's own clock: a job's silence is counted from its file to the newest one of whoever looks.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from data.errors import UserError
from data.files.leftovers import ABANDONED_SECONDS, process_start, this_place
from data.store.place import Listed, Place
from retrieval.compute.settled import FOLDER as SETTLED

FOLDER = "claims"
JOBS = f"{FOLDER}/jobs"
_APART = "apart-"  # what the names of jobs begin with that claim nothing
_BEATS = 20  # signs of life in the time after which a silent job is dead


@dataclass(frozen=True)
class Holder:
    """What a job says of itself."""

    host: str
    place: str  # `data.files.leftovers.this_place`, where its process can be asked for
    process: int
    started: str  # by the kernel's clock: numbers of processes are used again
    seconds: float  # of silence after which it is dead

    @staticmethod
    def here(seconds: float) -> Holder:
        """This process."""
        return Holder(platform.node(), this_place(), os.getpid(), process_start(os.getpid()) or "", seconds)

    @staticmethod
    def parse(content: bytes | None) -> Holder | None:
        """What a job's file says; None where there is none, or it is none."""
        try:
            return Holder(**json.loads(content or b"null"))
        except (ValueError, TypeError):
            return None

    @property
    def ended(self) -> bool:
        """Whether its process is known to be gone; False where this machine cannot tell."""
        return self.place == this_place() and process_start(self.process) not in ("", self.started)


class Job:
    """This job, and what it sees of the others."""

    def __init__(
        self,
        place: Place,
        *,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        holder: Holder | None = None,
        name: str = "",
        apart: bool = False,
    ) -> None:
        """`apart` is one that claims nothing: it gives signs of life alone, so that others can be told."""
        self.place = place
        self.name = (_APART if apart else "") + (name or uuid.uuid4().hex[:12])
        self._holder = holder or Holder.here(seconds)
        self._clock = clock
        self._beaten = clock()
        self._known: dict[str, Holder | None] = {}
        self.began_alone = False
        self.not_shared_with: list[str] = []  # hosts of jobs that lived when this one began, and with which nothing is shared

    @property
    def is_apart(self) -> bool:
        """Whether it claims nothing."""
        return self.name.startswith(_APART)

    @property
    def _file(self) -> str:
        return f"{JOBS}/{self.name}"

    def beat(self) -> None:
        """Give a sign of life."""
        self.place.put(self._file, json.dumps(asdict(self._holder)).encode())
        self._beaten = self._clock()

    def leave(self) -> None:
        """This job has ended: what it holds is free from now on."""
        self.place.delete(self._file)

    @contextlib.contextmanager
    def alive(self) -> Iterator[Job]:
        """Signs of life from another thread, as long as the block lasts. What `began_alone` and `not_shared_with` tell is of its start."""
        over = threading.Event()

        def go_on() -> None:
            while not over.wait(self._holder.seconds / _BEATS):
                with contextlib.suppress(OSError, UserError):  # a store that does not answer now may do so at the next one
                    self.beat()

        self.beat()
        self._sweep()
        thread = threading.Thread(target=go_on, name="signs of life", daemon=True)
        thread.start()
        try:
            yield self
        finally:
            over.set()
            thread.join()
            with contextlib.suppress(OSError, UserError):  # others wait a little longer
                self.leave()

    def look(self) -> Look:
        """The jobs and claims as they are now."""
        listed = self.place.files(FOLDER)
        own = listed.get(self._file)
        if own is None:  # somebody tidied up; nobody is taken for dead before this job knows what time it is
            self.beat()
        now = None if own is None else own.changed + self._clock() - self._beaten
        names = {name for name in listed if name.startswith(f"{JOBS}/")}
        return Look(self, listed, {name.rpartition("/")[2] for name in names if self._lives(name, listed[name], now)})

    def _lives(self, name: str, listed: Listed, now: float | None) -> bool:
        job = name.rpartition("/")[2]
        if job == self.name:
            return True
        if self._known.get(job) is None:  # never written otherwise
            self._known[job] = Holder.parse(self.place.read(name))
        holder = self._known[job]
        if holder is None or holder.ended:
            return False
        return now is None or now - listed.changed <= holder.seconds

    def _has_ended(self, job: str) -> bool:
        holder = self._known.get(job)
        return holder is not None and holder.ended

    def _sweep(self) -> None:
        """Remove what jobs left that died long ago, the signs of life of those known to be dead, and what was half made when they died.

        It stands in nobody's way, but would pile up.
        """
        look = self.look()
        own = look.listed.get(self._file)
        if own is None:
            return
        self.began_alone = look.alone  # of jobs that begin at once each sees the others, since it has given its sign before it looks
        self.not_shared_with = look.hosts(apart=not self.is_apart)
        for folder in (FOLDER, SETTLED):
            self.place.sweep(folder, now=own.changed)
        old = {name for name, file in look.listed.items() if own.changed - file.changed > ABANDONED_SECONDS}
        for name in sorted(look.listed):
            job = name.rpartition("/")[2]
            if name.startswith(f"{JOBS}/") and job not in look.living and (name in old or self._has_ended(job)):
                self.place.delete(name)
        for key in {name.rpartition(".")[0] for name in old if not name.startswith(f"{JOBS}/")}:
            versions = [name for name in look.listed if name.rpartition(".")[0] == key]
            if not any(look.lives(look.holder_of(name) or "") for name in versions):
                for name in versions:
                    self.place.delete(name)


class Look:
    """What one listing says: files, jobs that live, and who holds what."""

    def __init__(self, job: Job, listed: dict[str, Listed], living: set[str]) -> None:
        self.listed = listed
        self.living = living
        self._job = job

    @property
    def alone(self) -> bool:
        """Whether no other job lives on this store."""
        return self.living <= {self._job.name}

    def lives(self, job: str) -> bool:
        """Whether a job lives. One that the listing does not show is asked for once more: listings may be older than a claim."""
        if job in self.living or f"{JOBS}/{job}" in self.listed:
            return job in self.living
        holder = Holder.parse(self._job.place.read(f"{JOBS}/{job}"))
        return holder is not None and not holder.ended

    def holder_of(self, name: str) -> str | None:
        """The job that a file names; None where it is gone."""
        content = self._job.place.read(name)
        return None if content is None else content.decode(errors="replace")

    def newest(self, claim: str) -> int | None:
        """The newest generation of a claim `claims/<table>.<unit>`; None where there is none."""
        found = [int(end) for name in self.listed if (end := _after(name, f"{claim}.")).isdecimal()]
        return max(found, default=None)

    def hosts(self, *, apart: bool = False) -> list[str]:
        """Where the other living jobs run; with `apart` those alone that claim nothing."""
        holders = [self._job._known.get(job) for job in self.living if not apart or job.startswith(_APART)]
        return sorted({holder.host for holder in holders if holder is not None})


def _after(name: str, start: str) -> str:
    return name[len(start) :] if name.startswith(start) else ""
