"""What became of lists and candidates: counts by reason, broken ones with file and line, and whether there are too many of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.errors import UserError
from data.formats.readers import RECORD_CHARS, Fault
from data.formats.record_counts import MAX_QUARANTINED
from data.tables.schemas import QUARANTINE
from data.tables.shards import table_of

Lists = NDArray[np.int64]  # numbers of lists, from 0 in the order of reading
_FIRST_FAULTS = 10


class Places:
    """File and line of each list, on disk."""

    def __init__(self, path: Path) -> None:
        self.count = 0
        self._files: dict[str, int] = {}
        self._path = path
        path.touch()

    def add(self, file: str, lines: NDArray[np.int64]) -> int:
        """Take in the lists of a batch; returns the number of the first."""
        number = self._files.setdefault(file, len(self._files))
        with open(self._path, "ab") as places:
            places.write(np.stack([np.full(len(lines), number, np.int64), lines], axis=1).tobytes())
        self.count += len(lines)
        return self.count - len(lines)

    def of(self, one: int) -> tuple[str, int]:
        """Of a list."""
        with open(self._path, "rb") as places:
            places.seek(16 * one)
            number, line = np.frombuffer(places.read(16), np.int64).tolist()
        return list(self._files)[number], line


class ImportReport:
    """Counts for people and for import.json."""

    def __init__(self, places: Places) -> None:
        self.places = places
        self.read: Counter[str] = Counter()  # lists, candidates
        self.kept: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()  # candidates without the broken ones, by reason
        self.told: Counter[str] = Counter()  # what is kept and odd
        self.broken: Counter[str] = Counter()  # by reason
        self.broken_lists = self.broken_candidates = 0
        self._faults: list[Fault] = []

    def fault(self, fault: Fault) -> None:
        """A record that is no list."""
        self.read["lists"] += 1
        self.broken_lists += 1
        self._add(fault)

    def lists(self, reason: str, lists: Lists, *, detail: str = "", records: list[str] | None = None) -> None:
        """Lists that are broken as a whole."""
        self.broken_lists += len(lists)
        self._locate(reason, lists, detail, records)

    def candidates(self, reason: str, lists: Lists, *, detail: str = "", records: list[str] | None = None) -> None:
        """Candidates of these lists that are broken."""
        self.broken_candidates += len(lists)
        self._locate(reason, lists, detail, records)

    def _locate(self, reason: str, lists: Lists, detail: str, records: list[str] | None) -> None:
        if not len(lists):
            return
        room = max(0, MAX_QUARANTINED - len(self._faults))
        for place, one in enumerate(lists[:room].tolist()):
            self._add(Fault(*self.places.of(one), reason, (records[place] if records else "")[:RECORD_CHARS], detail))
        self.broken[reason] += len(lists) - min(len(lists), room)

    def _add(self, fault: Fault) -> None:
        self.broken[fault.reason] += 1
        if len(self._faults) < MAX_QUARANTINED:
            self._faults.append(fault)

    @property
    def is_broken(self) -> bool:
        """Whether anything is."""
        return bool(self.broken)

    @property
    def faults(self) -> pa.Table:
        """The first broken records, schema QUARANTINE."""
        return table_of([fault[: len(QUARANTINE)] for fault in self._faults], QUARANTINE)

    @property
    def reasons(self) -> str:
        """`12 empty text, 3 duplicate id`."""
        return ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.broken.items(), key=lambda item: (-item[1], item[0])))

    @property
    def counts(self) -> dict[str, Any]:
        """All of it, for import.json."""
        parts = {"read": self.read, "kept": self.kept, "left_out": self.dropped, "broken": self.broken, "noted": self.told}
        return {name: dict(sorted(counter.items())) for name, counter in parts.items()}

    def check(self, *, max_bad_fraction: float, quarantine: Path) -> None:
        """Raises UserError where too many lists, or too many candidates, are broken. `quarantine` is where they are listed."""
        for what, broken in (("lists", self.broken_lists), ("candidates", self.broken_candidates)):
            if broken > max_bad_fraction * self.read[what]:
                said = "\n".join([self.reasons, *(f"  {fault}" for fault in self._faults[:_FIRST_FAULTS])])
                raise UserError(
                    f"{broken:,} of {self.read[what]:,} {what} are broken, {broken / max(1, self.read[what]):.2%} "
                    f"(max_bad_fraction allows {max_bad_fraction:.2%}): {said}\n"
                    "Mend the files, or go on without these records by raising max_bad_fraction. The broken records are listed in "
                    f"{quarantine}."
                )
