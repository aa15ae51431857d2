"""How far a table is: a bar on a terminal, a line every 30 seconds in a batch log."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

_LOG_SECONDS = 30.0


class Progress:
    """Counts finished shards and the units (texts, pairs, queries) inside them."""

    def __init__(self, label: str, *, shards: int) -> None:
        self._label, self._shards, self._done, self._units, self._unit = label, shards, 0, 0, ""
        self._started = self._logged = time.monotonic()
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            columns = (TextColumn(f"{self._label:<16}"), BarColumn(), MofNCompleteColumn(), TextColumn("shards {task.fields[rate]}"))
            self._bar = Bar(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True), transient=True)
            self._bar.start()
            self._bar.add_task(self._label, total=self._shards, rate="")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, unit: str, count: int) -> None:
        """`count` more units are done."""
        self._units, self._unit = self._units + count, unit
        self._show()

    def shard_done(self) -> None:
        """One more shard is done."""
        self._done += 1
        self._show()

    @property
    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._started, 1e-9)
        return f"{self._units:,} {self._unit}, {self._units / seconds:,.0f}/s" if self._units else ""

    def _show(self) -> None:
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done, rate=self._rate)
        elif (now := time.monotonic()) - self._logged >= _LOG_SECONDS:
            self._logged = now
            left = (now - self._started) / max(1, self._done) * (self._shards - self._done)
            left_text = f", about {left:.0f} s left" if self._done else ""
            print(f"{self._label}: {self._done} of {self._shards} shards, {self._rate}{left_text}", file=sys.stderr, flush=True)
