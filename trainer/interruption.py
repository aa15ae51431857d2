"""Pre-emption: a signal that lets the step under way end."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from types import FrameType


@dataclass
class Interruption:
    """Remembers SIGTERM and SIGINT until the step is done; a second one ends the process at once."""

    asked: bool = False

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.asked = True
        signal.signal(number, signal.SIG_DFL)
