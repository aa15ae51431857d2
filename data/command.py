"""How the three commands begin and end: errors for users become a message and an exit code, a signal that asks to stop becomes 75."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from data.errors import EXIT_FAILED, EXIT_INTERRUPTED, UserError
from data.terminal import printable, take_any_text

FULL_DISK = (errno.ENOSPC, errno.EDQUOT)
# What terminals and batch systems send before they kill: a closed session HUP; Slurm TERM, or what --signal names; Grid Engine USR1 and
# USR2 (-notify), and XCPU at a soft limit of CPU time; LSF USR2.
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGXCPU)
# Faults of a path or of what lies under it, not of this program.
_OF_THE_SYSTEM = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
    errno.EMFILE, errno.ENFILE,
)  # fmt: skip
_INTERRUPTED = "interrupted; what is finished is kept, the same command goes on from here"


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


def leave_on_signals() -> None:
    """For the first lines of a command: a signal ends it at once with 75. Nothing is begun yet, and nothing is left behind."""
    for number in heard_signals():
        signal.signal(number, leave)


def leave(number: int, frame: FrameType | None) -> NoReturn:
    """The handler of a signal after which nothing more is put in order."""
    # An exception would be printed by whatever import it arrives in, or be lost there.
    with contextlib.suppress(OSError):
        os.write(2, f"{_INTERRUPTED}\n".encode())
    os._exit(EXIT_INTERRUPTED)


@contextlib.contextmanager
def left_at_once() -> Iterator[None]:
    """Around C code that may wait for minutes, in which Python runs no handler: a signal ends the process from another thread."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        for number in os.read(reader, 1):  # none where the block has ended
            leave(number, None)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)
        watcher.join()
        os.close(reader)


def _interrupt(number: int, frame: FrameType | None) -> None:
    if _asked_to_stop.is_set():
        leave(number, frame)  # a second one does not wait for what the first one has still to put in order
    _asked_to_stop.set()
    raise KeyboardInterrupt


@contextlib.contextmanager
def exit_codes() -> Iterator[None]:
    """Around a command's work. A fault of ours keeps its traceback."""
    take_any_text()
    _asked_to_stop.clear()
    try:
        with contextlib.ExitStack() as restoring, _reported():
            for number in heard_signals():
                restoring.callback(signal.signal, number, signal.signal(number, _interrupt))
            try:
                os.getcwd()
            except OSError as error:  # every relative path would fail, somewhere, with no name
                raise UserError(f"the working directory is gone ({error.strerror}): change to one that is there") from error
            yield
    except KeyboardInterrupt:
        print(_INTERRUPTED, file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None


@contextlib.contextmanager
def _reported() -> Iterator[None]:
    """Faults that a user can mend as a sentence and an exit code."""
    code = EXIT_FAILED
    try:
        yield
        return
    except UserError as error:
        message, code = str(error), error.exit_code
    except Exception as error:
        if is_full_disk(error):
            message = f"no space left on the disk ({error}); free some and start the same command again, it goes on"
        elif isinstance(error, OSError) and error.errno in _OF_THE_SYSTEM:
            message = f"{in_words(error)}; see to it that it can be read and written, then start the same command again, it goes on"
        else:
            raise
    print(f"error: {printable(message)}", file=sys.stderr)
    raise SystemExit(code)


def in_words(error: OSError) -> str:
    """`PATH: Permission denied`, or what a library said of it."""
    return f"{error.filename}: {error.strerror}" if error.filename else str(error)
