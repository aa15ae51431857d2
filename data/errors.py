"""Errors that a user can act on, and the exit codes of the three commands."""

from __future__ import annotations

from pathlib import Path

EXIT_COMPLETE = 0
EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_NOTHING_LEFT = 3
EXIT_INTERRUPTED = 75  # sysexits' EX_TEMPFAIL: a batch queue may start the same command again


def first_line(error: BaseException) -> str:
    """What an error of other people's code says, in one line; its kind where it says nothing."""
    said = f"no {error}" if isinstance(error, KeyError) else str(error)
    lines = [line.strip() for line in said.splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]


class UserError(Exception):
    """Bad configuration or input. The message says what was found, what was expected and what to change."""

    exit_code = EXIT_BAD_INPUT


class RunFailed(UserError):
    """The input was fine, the work failed (a full disk, a shard that failed on every try). Finished shards stay."""

    exit_code = EXIT_FAILED


class NotAnswering(UserError):
    """What is needed does not answer now; the same command goes on later."""

    exit_code = EXIT_INTERRUPTED


class NothingLeft(UserError):
    """A selection keeps no query: no fault, there is nothing left to learn. A sequence of rounds ends here."""

    exit_code = EXIT_NOTHING_LEFT


class DamagedShard(RunFailed):
    """A Parquet file is cut short, has a flipped byte, was not written here, or is not the file that the manifest records.

    `path` is the file where its content is at fault, None where it is missing or could not be read for another reason.
    """

    def __init__(self, message: str, *, path: Path | None = None) -> None:
        super().__init__(message)
        self.path = path
