"""Whether Ray's head still answers, and the list of its nodes. Asked from a thread, since an answer may never come."""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

from data.errors import EXIT_INTERRUPTED
from pipeline.executors.ray.faults import NO_CLUSTER
from pipeline.executors.ray.nodes import Node

LOOK_SECONDS = 2.0
GONE_SECONDS = 60.0  # a head that is started again, or a switch, takes less
_STEP_SECONDS = 1.0


class HeadWatch:
    """Looks at the nodes every few seconds; ends the process with 75 where the head stays silent, since no call to Ray would return."""

    def __init__(self, ray: Any) -> None:
        """Raises what Ray raises where it does not answer the first time."""
        self._ray = ray
        self._lock = threading.Lock()
        self._nodes = self._ask()
        self._seen = time.monotonic()
        self._end = threading.Event()
        for work in (self._look, self._leave_when_gone):
            threading.Thread(target=work, daemon=True).start()

    def nodes(self) -> tuple[list[Node], float]:
        """The nodes that live, and when that was seen, in seconds of the monotonic clock."""
        with self._lock:
            return self._nodes, self._seen

    def close(self) -> None:
        """Look no more."""
        self._end.set()

    def _ask(self) -> list[Node]:
        return [
            Node(node["NodeID"], node["NodeManagerHostname"], node["Resources"].get("CPU", 0.0), node["Resources"].get("GPU", 0.0))
            for node in self._ray.nodes()
            if node["Alive"]
        ]

    def _look(self) -> None:
        while not self._end.wait(LOOK_SECONDS):
            try:
                asked = time.monotonic()
                nodes = self._ask()
            except Exception:  # of many kinds, each of which means that it does not answer now
                continue
            with self._lock:
                self._nodes, self._seen = nodes, asked

    def _leave_when_gone(self) -> None:
        silent, seen = 0.0, 0.0
        while not self._end.wait(_STEP_SECONDS):
            # Steps are counted, and not the clock's seconds: this process may have been stopped for a while itself.
            silent = silent + _STEP_SECONDS if seen == self.nodes()[1] else 0.0
            seen = self.nodes()[1]
            if silent > GONE_SECONDS:
                sentence = NO_CLUSTER.format(cause=f"its head is silent for {silent:.0f} s")
                sys.stdout.flush()
                os.write(2, f"error: {sentence}\n".encode())
                os._exit(EXIT_INTERRUPTED)
