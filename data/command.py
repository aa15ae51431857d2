"""How the three commands end: errors for users become a message and an exit code, an interrupt becomes 75."""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from data.errors import EXIT_FAILED, EXIT_INTERRUPTED, UserError
from data.terminal import printable, take_any_text

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# What terminals and batch systems send before they kill: a closed session HUP; Slurm TERM, or what --signal names; Grid Engine USR1 and
# USR2 (-notify), and XCPU at a soft limit of CPU time; LSF USR2.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)


def is_full_disk(error: BaseException) -> bool:
    """Whether the error says that the disk is full; the safetensors library says it in words only."""
    return getattr(error, "errno", None) in FULL_DISK or "no space left" in str(error).lower()


# The exception of a signal is lost where it arrives in a destructor or a callback of C code; this is not.
_asked_to_stop = threading.Event()


def stop_if_asked() -> None:
    """Between two pieces of work: end here if a signal asked for it."""
    if _asked_to_stop.is_set():
        raise KeyboardInterrupt


def heard_signals() -> list[signal.Signals]:
    """The stop signals, without those that the parent had ignored: nohup means HUP to be, a shell's `&` INT."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Around a command's work. A fault of ours keeps its traceback."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        _asked_to_stop.set()
        raise KeyboardInterrupt

    take_any_text()
    _asked_to_stop.clear()
    for number in heard_signals():
        signal.signal(number, interrupt)
    try:
        yield
    except UserError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept, the same command goes on from here", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except Exception as error:
        if not is_full_disk(error):
            raise
        print(f"error: no space left on the disk ({error}); free some and start the same command again, it goes on", file=sys.stderr)
        raise SystemExit(EXIT_FAILED) from None
