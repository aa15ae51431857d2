"""Pre-emption: a signal that lets the step under way end."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from types import FrameType

from data.command import heard_signals, stop_if_asked

_ECHO_SECONDS = 1.0  # torchrun sends its processes on what the terminal, or the batch system, has sent them already


@dataclass
class Interruption:
    """Remembers until the step is done that a signal asked to stop. A second one, no echo of the first, ends the process at once."""

    asked: bool = False

    def __enter__(self) -> Interruption:
        self._before = {number: signal.signal(number, self._note) for number in heard_signals()}
        stop_if_asked()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self.asked:
            self.asked, self._since = True, time.monotonic()
        elif time.monotonic() - self._since > _ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
