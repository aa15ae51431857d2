"""Claims: of several jobs that want a unit of a table (a shard, a piece) one does it.

A claim is a file that only one job can make: `claims/<table>.<unit>.0`. Where its job died before the unit was done, the file
stays, and `….1` is made beside it, again by one job only; the newest generation counts. They are removed when the unit is done, in no other
case: so whoever can make `….0` of a unit that was claimed before finds the unit done, if it looks once the claim is its own.

A unit appears whole or not at all, and always with the same bytes. So a claim that is wrong costs work, never a byte.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict

from data.store.place import Place
from pipeline.plan import TablePlan
from pipeline.sharing.jobs import FOLDER, Job, Look
from pipeline.stage import Piece


class Claims:
    """The claims on one table, as one job makes them."""

    def __init__(self, job: Job, table: str) -> None:
        """`table` is what the names of its claims begin with."""
        self.job = job
        self._table = table
        self._held: dict[str, int] = {}  # unit -> generation

    @staticmethod
    def of(plan: TablePlan, job: Job) -> Claims:
        """On the table of a plan."""
        return Claims(job, _of(plan))

    def take(self, unit: str, generation: int = 0) -> bool:
        """Whether the unit is this job's from now on. To be asked for what nobody holds, or with the next generation of what is lost."""
        taken = self.job.place.put_if_absent(f"{self._table}.{unit}.{generation}", self.job.name.encode())
        if taken:
            self._held[unit] = generation
        return taken

    def state(self, unit: str, look: Look) -> str:
        """`free`, `held` by a job that lives, `lost` by one that died, or `own`: put here by a request whose answer was lost."""
        newest = look.newest(f"{self._table}.{unit}")
        holder = None if newest is None else look.holder_of(f"{self._table}.{unit}.{newest}")
        if holder is None:
            return "free"
        if holder == self.job.name:
            assert newest is not None
            self._held[unit] = newest
            return "own"
        return "held" if look.lives(holder) else "lost"

    def take_over(self, unit: str, look: Look) -> bool:
        """Whether this job is the one that goes on with a lost unit."""
        newest = look.newest(f"{self._table}.{unit}")
        return self.take(unit, 0 if newest is None else newest + 1)

    def done(self, unit: str, *, marked: bool = False) -> None:
        """The unit is there. With `marked` a file says so, since it leaves none of its own."""
        if marked:
            self.job.place.put(f"{self._table}.{unit}.done", b"")
        for generation in range(self._held.pop(unit, 0) + 1):
            self.job.place.delete(f"{self._table}.{unit}.{generation}")

    def is_marked(self, unit: str) -> bool:
        """Whether a unit without a file was done by a job of now."""
        return self.job.place.read(f"{self._table}.{unit}.done") is not None

    def agreed(self, number: int, shards: Sequence[int], cut: Callable[[], list[Piece]]) -> list[Piece]:
        """The pieces of a round, the same in all jobs that live: how it is cut may hang on a job's workers, or on when it began."""
        name = f"{self._table}.round{number}.cut"
        noted = self._noted_cut(name)
        if noted is not None and self.job.look().alone:  # of jobs that ended: what they did is there, or is done again
            for piece in noted[1]:
                self.job.place.delete(f"{self._table}.{piece.name}.done")
            self.job.place.delete(name)
            noted = None
        if noted is None:
            pieces = cut()
            content = json.dumps({"shards": list(shards), "pieces": [asdict(piece) for piece in pieces]}).encode()
            if self.job.place.put_if_absent(name, content):
                return pieces
            noted = self._noted_cut(name)
        return noted[1] if noted is not None and set(shards) <= noted[0] else cut()

    def _noted_cut(self, name: str) -> tuple[set[int], list[Piece]] | None:
        """(shards, pieces) that a job has settled; None where none has."""
        try:
            noted = json.loads(self.job.place.read(name) or b"null")
            return set(noted["shards"]), [Piece(**piece) for piece in noted["pieces"]]
        except (ValueError, KeyError, TypeError):
            return None


def forget_claims(plan: TablePlan, place: Place) -> None:
    """The table is complete: nothing of it is claimed any more."""
    for name in place.files(FOLDER):
        if name.startswith(f"{_of(plan)}."):
            place.delete(name)


def _of(plan: TablePlan) -> str:
    return f"{FOLDER}/{plan.table.stage}.{plan.folder.name}"
