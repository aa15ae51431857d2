"""How a command ends: by a signal, at any moment, and by faults that a user can mend."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from data import command
from data.command import STOP_SIGNALS, exit_codes, leave_on_signals, left_at_once, stop_if_asked
from data.errors import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED, UserError


def in_child(work: Callable[[], None]) -> tuple[int, str]:
    """Exit code and error stream of a forked process that does the work."""
    read, write = os.pipe()
    child = os.fork()
    if not child:
        os.dup2(write, 2)
        code = 99
        try:
            work()
        except SystemExit as ended:
            code = int(str(ended.code))
        finally:
            os._exit(code)
    os.close(write)
    with open(read) as errors:
        said = errors.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), said


def kill_self(number: signal.Signals, times: int = 1) -> None:
    for _ in range(times):
        os.kill(os.getpid(), number)
        time.sleep(0.01)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_every_stop_signal_ends_with_75(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: a job dead at once, nothing put in order, where its session is closed (HUP) or its queue gives notice (USR1, USR2)."""
    before = [signal.getsignal(one) for one in STOP_SIGNALS]
    put_in_order = []
    with pytest.raises(SystemExit) as ended, exit_codes():
        try:
            kill_self(number)
        finally:
            put_in_order.append(True)
    assert ended.value.code == EXIT_INTERRUPTED and put_in_order and "the same command goes on from here" in capsys.readouterr().err
    assert [signal.getsignal(one) for one in STOP_SIGNALS] == before


def test_a_signal_is_heard_where_python_is_not() -> None:
    """Prevents: a process that waits half an hour for others that do not come, and hears no Ctrl-C in the meantime."""

    def wait() -> None:
        with exit_codes(), left_at_once():
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
            hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)  # a minute of C code

    began = time.monotonic()
    code, said = in_child(wait)
    assert code == EXIT_INTERRUPTED and "interrupted" in said and time.monotonic() - began < 10
    with left_at_once():
        pass
    assert signal.set_wakeup_fd(-1) == -1


def test_an_ignored_signal_stays_ignored() -> None:
    """Prevents: `nohup prep run` that ends with the session all the same."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with exit_codes():
            kill_self(signal.SIGHUP)
            stop_if_asked()
        leave = in_child(lambda: (leave_on_signals(), kill_self(signal.SIGHUP)))  # type: ignore[arg-type, func-returns-value]
        assert leave[0] == 99
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_before_the_work(number: signal.Signals) -> None:
    """Prevents: a traceback out of some library's import, and exit code 130, for Ctrl-C in the first half second."""

    def begin() -> None:
        leave_on_signals()
        kill_self(number)

    assert in_child(begin) == (EXIT_INTERRUPTED, "interrupted; what is finished is kept, the same command goes on from here\n")


def test_a_second_signal_ends_at_once() -> None:
    """Prevents: a second Ctrl-C in the middle of putting things in order that ends in a traceback and another exit code."""

    def work() -> None:
        with exit_codes():
            try:
                kill_self(signal.SIGINT)
            finally:
                kill_self(signal.SIGTERM)
                time.sleep(10)

    began = time.monotonic()
    code, said = in_child(work)
    assert code == EXIT_INTERRUPTED and "Traceback" not in said and time.monotonic() - began < 5


def test_a_signal_while_an_error_is_told() -> None:
    """Prevents: a traceback of both."""

    def work() -> None:
        def printed(*words: object, **where: object) -> None:
            command.__dict__.pop("print", None)
            kill_self(signal.SIGTERM)

        command.__dict__["print"] = printed
        with exit_codes():
            raise UserError("wrong")

    code, said = in_child(work)
    assert code == EXIT_INTERRUPTED and "Traceback" not in said


@pytest.mark.parametrize(
    "error", [OSError(errno.EROFS, "Read-only file system", "/a/b"), IsADirectoryError(errno.EISDIR, "Is a directory", "/a/b")]
)
def test_faults_of_a_disk_have_no_traceback(error: OSError, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: a traceback where a folder is read-only (`prep cache compact`), or a folder stands where a file is wanted."""
    with pytest.raises(SystemExit) as ended, exit_codes():
        raise error
    assert ended.value.code == EXIT_FAILED and f"error: /a/b: {error.strerror}; see to it" in capsys.readouterr().err


def test_faults_of_ours_keep_their_traceback() -> None:
    """Prevents: a missing file of this program told as the user's fault."""
    with pytest.raises(FileNotFoundError), exit_codes():
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "x")


def test_a_deleted_working_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: FileNotFoundError without a name, from wherever a path is first made absolute."""
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(SystemExit) as ended, exit_codes():
        raise AssertionError("the work began")
    assert ended.value.code == EXIT_BAD_INPUT and "the working directory is gone" in capsys.readouterr().err
