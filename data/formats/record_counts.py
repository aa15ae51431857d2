"""What became of the records of a file: kept, dropped by reason, and of the dropped those that are broken, to look at."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pyarrow as pa

from data.formats.readers import Fault
from data.tables.schemas import QUARANTINE
from data.tables.shards import table_of

MAX_QUARANTINED = 100_000  # broken records kept to look at; all are counted
_FIRST_FAULTS = 10


class RecordCounts:
    """What became of the records of a table, counted as they are read: in = kept + all dropped."""

    def __init__(self) -> None:
        self.kept = 0
        self.dropped: Counter[str] = Counter()  # by reason
        self._broken: Counter[str] = Counter()  # those of the dropped that are faults
        self._faults: list[Fault] = []

    def broken(self, fault: Fault) -> None:
        """Count a broken record, and keep it to look at."""
        self._broken[fault.reason] += 1
        self.dropped[fault.reason] += 1
        if len(self._faults) < MAX_QUARANTINED:  # the wrong file as corpus must not fill the memory with its lines
            self._faults.append(fault)

    def more_broken(self, reason: str, count: int) -> None:
        """Count broken records that come after the first `MAX_QUARANTINED`, which are not kept."""
        self._broken[reason] += count
        self.dropped[reason] += count

    @property
    def broken_by_reason(self) -> dict[str, int]:
        """How many records are broken, by reason."""
        return dict(self._broken)

    @property
    def kept_faults(self) -> list[Fault]:
        """The first `MAX_QUARANTINED` broken records in file order."""
        return self._faults

    @property
    def counts(self) -> dict[str, Any]:
        """{"in": n, "kept": n, "dropped": {reason: n}}."""
        return {"in": self.kept + self.dropped.total(), "kept": self.kept, "dropped": dict(sorted(self.dropped.items()))}

    def as_json(self) -> dict[str, Any]:
        """For a manifest: the counts, and what is told of the broken ones; `of_json` is the way back."""
        return {**self.counts, "broken": dict(self._broken), "first": self._faults[:_FIRST_FAULTS]}

    @staticmethod
    def of_json(values: dict[str, Any]) -> RecordCounts:
        """What `as_json` gave, with the first faults alone."""
        report = RecordCounts()
        report.kept, report.dropped, report._broken = values["kept"], Counter(values["dropped"]), Counter(values["broken"])
        report._faults = [Fault(*fault) for fault in values["first"]]
        return report

    @property
    def bad(self) -> int:
        """How many records are broken."""
        return self._broken.total()

    @property
    def faults(self) -> pa.Table:
        """The first `MAX_QUARANTINED` broken records in file order, schema QUARANTINE."""
        return table_of([fault[: len(QUARANTINE)] for fault in self._faults], QUARANTINE)

    @property
    def reasons(self) -> str:
        """`12 no id, 3 empty text`, of the broken records."""
        by_number = sorted(self._broken.items(), key=lambda item: (-item[1], item[0]))
        return ", ".join(f"{count:,} {reason}" for reason, count in by_number)

    @property
    def said(self) -> str:
        """The broken records by reason, the first ones in full, a line each."""
        return "\n".join([self.reasons, *(f"  {fault}" for fault in self._faults[:_FIRST_FAULTS])])
