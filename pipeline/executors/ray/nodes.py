"""The nodes of a cluster as the scheduling sees them, and which of them get no worker any more, with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from pipeline.executors.resources import workers_that_fit

FAULTS_OF_A_NODE = 2  # in a row, before it is left out


@dataclass(frozen=True)
class Node:
    """A node that lives: what it has, whoever uses it now."""

    id: str
    host: str
    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Needs:
    """What one worker holds while it lives."""

    threads: int
    gpus: float = 0.0

    def fit(self, node: Node) -> int:
        """How many such workers the node has room for, were it free."""
        return workers_that_fit(cpus=node.cpus, gpus=node.gpus, threads=self.threads, share=self.gpus)

    def __str__(self) -> str:
        return f"{self.threads} CPUs" + (f" and {self.gpus:g} GPUs" if self.gpus else "")


class NodeFaults:
    """Faults of nodes, and those that are left out after two in a row. Kept for a whole run: a full disk stays full from table to table."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._faults: Counter[tuple[str, bool]] = Counter()  # of (node, whether its worker was starting)
        self._reasons: dict[str, str] = {}
        self.have_worked = False  # whether a task was done anywhere: what lacks later was there

    @property
    def left_out(self) -> frozenset[str]:
        """Ids of the nodes that get no worker."""
        return frozenset(self._reasons)

    def worked(self, node: str, *, starting: bool) -> None:
        """A worker started there, or did a task: faults before it were of the moment."""
        self.have_worked |= not starting
        del self._faults[node, starting]

    def failed(self, node: str, host: str, cause: str, *, starting: bool) -> None:
        """A worker could not start there, or a task met a fault of the node; the second in a row leaves it out."""
        self._faults[node, starting] += 1
        if self._faults[node, starting] >= FAULTS_OF_A_NODE:
            self.leave_out(node, host, cause)

    def leave_out(self, node: str, host: str, cause: str) -> None:
        """Give it no worker from now on, and say so once."""
        if node not in self._reasons:
            self._reasons[node] = f"{host}: {cause}"
            self._say(f"warning: {host} gets no work from here on: {cause}")

    def reasons(self, nodes: Iterable[Node]) -> list[str]:
        """`HOST: cause` of those nodes that are left out."""
        return [self._reasons[node.id] for node in nodes if node.id in self._reasons]
