"""Logits of an import into the store: none twice, and none beside another one of the same pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from data.logits.declared import DeclaredTeacher
from data.logits.segment import Scores, key_halves
from data.logits.store import LogitStore
from pipeline.interchange.lists_in.counting import ImportReport
from pipeline.interchange.lists_in.grouping import LOGITS
from pipeline.interchange.lists_in.spill import Spill, bucket_ranges
from pipeline.stage import Say


class NewLogits:
    """The logits that the store does not have yet."""

    def __init__(self, root: Path, teacher: DeclaredTeacher, *, say: Say) -> None:
        self.store = LogitStore(root, teacher.namespace, warn=say)
        self._teacher = teacher

    def check(self, logits: Spill, folder: Path, report: ImportReport) -> Spill:
        """Those of `logits` that are not there. One that is there with another score is broken, and the stored one stays.

        The segments that are there are read once for each piece of `logits`; to a new teacher nothing is read.
        """
        if not self.store.segment_paths():
            return logits
        new = Spill(folder / "new_logits", LOGITS, buckets=logits.buckets)
        for buckets in bucket_ranges(logits):
            table = logits.read(buckets)
            keys, own = key_halves(table.column("key")), table.column("logit").to_numpy()
            stored = self.store.lookup(keys).logits
            known = ~np.isnan(stored)
            other = np.flatnonzero(known & (stored != own))
            records = [f"{own[row]:.9g}; {stored[row]:.9g} in the store" for row in other.tolist()]
            lists = table.column("list").to_numpy()[other]
            detail = f"the store has another one of {self._teacher.name}, revision {self._teacher.revision}; it stays"
            report.candidates("another score than the store's", lists, detail=detail, records=records)
            report.told.update({"logits that were in the store already": there} if (there := int(known.sum()) - len(other)) else {})
            new.add(table.filter(pa.array(~known)), keys[~known, 0])
        return new

    def append(self, logits: Spill) -> int:
        """Store them, a segment for each piece of the keys; returns how many."""
        self.store.describe(key=self._teacher.key, name=self._teacher.name)
        for buckets in bucket_ranges(logits):
            table = logits.read(buckets)
            values = table.column("logit").to_numpy()
            scores = Scores(values, np.zeros(len(values), np.int32), np.zeros(len(values), bool))
            self.store.append(key_halves(table.column("key")), scores)
        return logits.rows
