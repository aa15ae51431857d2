"""How long a run over several hosts may take that met faults: as long as an unbroken one, a little more, and what the faults took from it.

What a fault takes is counted in whole seconds, those of the whole cluster: while one of three hosts is ill, a second is two thirds of one,
whatever the run makes of the others. So seconds in which a run waits though its hosts are well count in full, and too many are seen.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

SLACK_SECONDS = 60.0  # for what is noticed late: a raylet that is cut off, a worker that is stopped


@dataclass
class Times:
    """When a pipeline was run, and when which of its hosts could not work, in seconds of one clock."""

    hosts: int
    runs: list[tuple[float, float]] = field(default_factory=list)
    absences: list[tuple[int, float, float]] = field(default_factory=list)  # (host, from, until); they may overlap

    def whole_seconds(self) -> float:
        """Of all runs: the integral of the share of hosts that could work."""
        return sum(self._of_run(*run) for run in self.runs)

    def _of_run(self, begin: float, end: float) -> float:
        moments = sorted({begin, end, *(moment for _, *both in self.absences for moment in both if begin < moment < end)})
        return sum((until - at) * (1 - self._absent(at, until) / self.hosts) for at, until in itertools.pairwise(moments))

    def _absent(self, begin: float, end: float) -> int:
        return len({host for host, at, until in self.absences if at <= begin and end <= until})


def most_seconds(unbroken: float, *, lost: float = 0.0, hosts: int = 1) -> float:
    """What a pipeline may take, in whole seconds: an unbroken one's, the slack, `lost` seconds of one host's work done again."""
    return unbroken + SLACK_SECONDS + lost / hosts
