"""How far a table is: a bar on a terminal, a line every 30 seconds in a batch log."""

from __future__ import annotations

import sys
import time
from collections import Counter

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

_LOG_SECONDS = 30.0
_NO_RATES = ("cached", "padded tokens", "rows", "cached rows")  # shown in other ways


class Progress:
    """Counts finished shards and the units (texts, pairs, tokens, queries) inside them.

    Units with a meaning of their own: `rows` of the input done and `cached rows` that were no work (with `rows` given they drive the
    estimate of the time left), `cached` pairs, and `tokens` against `padded tokens`.
    """

    def __init__(self, label: str, *, shards: int, rows: int = 0) -> None:
        self._label = label
        self._shards = shards
        self._rows = rows
        self._done = 0
        self._units: Counter[str] = Counter()
        self._started = self._logged = time.monotonic()
        self._bar: Bar | None = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            columns = (TextColumn(f"{self._label:<16}"), BarColumn(), MofNCompleteColumn(), TextColumn("shards {task.fields[figures]}"))
            self._bar = Bar(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True)
            self._bar.start()
            self._bar.add_task(self._label, total=self._shards, figures="")
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._bar.stop()

    def advance(self, unit: str, count: int) -> None:
        """`count` more units are done."""
        self._units[unit] += count
        self._show()

    def shard_done(self) -> None:
        """One more shard is done."""
        self._done += 1
        self._show()

    def figures(self, seconds: float) -> str:
        """Counts, rates, share of padding, cache hits and the time left, as far as they are known after so many seconds."""
        units, seconds = self._units, max(seconds, 1e-9)
        parts = [f"{count:,} {unit} ({count / seconds:,.0f}/s)" for unit, count in units.items() if unit not in _NO_RATES]
        if units["padded tokens"]:
            parts.append(f"{1 - units['tokens'] / units['padded tokens']:.1%} padding")
        if "cached" in units:
            parts.append(f"{units['cached']:,} cached")
        done, total = (units["rows"], self._rows - units["cached rows"]) if self._rows else (self._done, self._shards)
        if 0 < done < total:
            parts.append(f"about {duration(seconds / done * (total - done))} left")
        return ", ".join(parts)

    def _show(self) -> None:
        now = time.monotonic()
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=self._done, figures=self.figures(now - self._started))
        elif now - self._logged >= _LOG_SECONDS:
            self._logged = now
            print(f"{self._label}: {self._done} of {self._shards} shards, {self.figures(now - self._started)}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`45 s`, `12 min`, `3.4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
