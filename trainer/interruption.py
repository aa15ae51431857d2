"""Pre-emption: a signal that lets the step under way end."""

from __future__ import annotations

import os
import signal
import time
from types import FrameType

from data.command import heard_signals, leave, stop_if_asked

_ECHO_SECONDS = 1.0  # torchrun sends its processes on what the terminal, or the batch system, has sent them already


class GracefulShutdown:
    """Remembers until the step is done that a signal asked to stop. A second one, no echo of the first, ends the process at once."""

    def __init__(self) -> None:
        self._signalled: float | None = None  # when
        self._torchrun = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    def __enter__(self) -> GracefulShutdown:
        self._before = {number: signal.signal(number, self._note) for number in heard_signals()}
        stop_if_asked()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def asked(self) -> bool:
        """Whether the run is to stop; also where torchrun is gone, which a signal that it does not know kills without its processes."""
        return self._signalled is not None or self._torchrun not in (None, os.getppid())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._signalled is None:
            self._signalled = time.monotonic()
        elif time.monotonic() - self._signalled > _ECHO_SECONDS:
            leave(number, frame)
