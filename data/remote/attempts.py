"""Calls of an object store's package: tried again where the fault passes, and told in words for the user where it does not.

A request waits 20 s for an answer and is sent up to four times; that is the business of the store's package (`s3.client_options`). What
fails in spite of that, or in the middle of a body, is begun again here, with growing pauses, unless 75 s are over. So a store that
accepts and never answers ends a command within two minutes, and so does one that is down. An upload that another process ended is begun
again after any time.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from data.errors import NotAnswering, RunFailed, UserError

READ_SECONDS, CONNECT_SECONDS = 20, 10  # without a byte of an answer
REQUEST_ATTEMPTS = 4
WORK_ATTEMPTS = 8
PATIENCE = 75.0  # seconds after which nothing is begun again
ATTEMPTS_VARIABLE = "AWS_MAX_ATTEMPTS"  # of botocore; 1 has everything tried once
_FIRST_PAUSE, _LONGEST_PAUSE = 0.2, 8.0  # seconds

# By name, since the packages that they come from need not be installed.
_NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError", "UnauthorizedSSOTokenError"}
_PASSING = {
    "HTTPClientError", "IncompleteReadError", "ResponseParserError", "FlexibleChecksumError",  # botocore
    "ClientConnectionError", "ClientPayloadError", "FSTimeoutError",  # aiohttp, fsspec
    "IncompleteRead", "ConnectionError", "TimeoutError", "CutBody",
}  # fmt: skip
_LASTING = {"SSLError", "InvalidProxiesConfigError"}  # kinds of those above, but of this machine's settings
_PASSING_CODES = (
    "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "Throttling", "ConditionalRequestConflict",
    "NoSuchUpload",  # of an upload in parts whose end was carried out, and asked for again since the answer was lost
)  # fmt: skip

_ENDED_BY_OTHERS = ("NoSuchUpload",)  # another process has put the same object: the store is there, however long this one has worked

T = TypeVar("T")


class CutBody(OSError):
    """Fewer bytes came than were asked for, or others than were sent."""


def attempts(usual: int) -> int:
    """How often something is tried at most."""
    given = os.environ.get(ATTEMPTS_VARIABLE, "")
    return min(usual, int(given)) if given.isdigit() and int(given) else usual


def attempted(address: str, work: Callable[[], T]) -> T:
    """The result of `work`, which may be begun several times; so it must be something that can be done twice.

    Raises UserError in words: no such bucket, no credentials, access refused. NotAnswering where the fault passes, but not soon.
    """
    begun = time.monotonic()
    for number in range(attempts(WORK_ATTEMPTS) - 1):
        try:
            return work()
        except Exception as error:  # each package has kinds of its own
            if not is_passing(error) or (time.monotonic() - begun > PATIENCE and answer_code(error) not in _ENDED_BY_OTHERS):
                raise explanation(error, address) from error
        time.sleep(random.uniform(0.5, 1) * min(_LONGEST_PAUSE, _FIRST_PAUSE * 2**number))
    with explained(address):
        return work()


@contextlib.contextmanager
def explained(address: str) -> Iterator[None]:
    """Around calls of the store's package alone: whatever it raises is the store's, the network's or the address's fault."""
    try:
        yield
    except Exception as error:
        raise explanation(error, address) from error


def is_passing(error: BaseException) -> bool:
    """Whether the same call may well succeed in a while: no answer, a server's fault, a body that was cut."""
    return any(_passes(one) for one in _chain(error))


def _passes(error: BaseException) -> bool:
    names = {kind.__name__ for kind in type(error).__mro__}
    if names & _LASTING:
        return False
    return bool(names & _PASSING) or _status(error) in (408, 429) or 500 <= _status(error) < 600 or answer_code(error) in _PASSING_CODES


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was translated from."""
    seen: BaseException | None = error
    while seen is not None:
        yield seen
        seen = seen.__cause__


def answer_code(error: BaseException) -> str:
    """The word of an answer of S3 that an error was made from, as `NoSuchKey`; "" where there was none."""
    responses = (getattr(one, "response", None) for one in _chain(error))
    return next((str(one.get("Error", {}).get("Code", "")) for one in responses if isinstance(one, dict)), "")


def _status(error: BaseException) -> int:
    """The HTTP status of an answer, 0 where the error has none."""
    response = getattr(error, "response", None)
    found = response.get("ResponseMetadata", {}).get("HTTPStatusCode") if isinstance(response, dict) else None
    for value in (found, getattr(error, "status_code", None), getattr(error, "status", None), getattr(error, "code", None)):
        if isinstance(value, int):
            return value
    return 0


def explanation(error: Exception, address: str) -> UserError:
    """What an error of the store's package means for the user."""
    if isinstance(error, UserError):
        return error
    scheme = address.split("://")[0]
    kind = type(error).__name__
    said = " ".join(str(error).split())[:300]
    if isinstance(error, ImportError):
        remedy = "pip install -c constraints.txt -e '.[s3]'" if scheme in ("s3", "s3a") else "install it"
        return UserError(f"{address}: addresses {scheme}:// need a package that is not installed ({said}): {remedy}")
    if isinstance(error, ValueError) and "Protocol not known" in said:
        return UserError(f"{address}: unknown kind of address {scheme}://; known are s3://, gs:// and all others of fsspec")
    if isinstance(error, FileNotFoundError) and not is_passing(error):
        return UserError(f"{address}: no such bucket" if is_of_bucket(error) else f"{address}: nothing there")
    if kind in _NO_CREDENTIALS:
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; FSSPEC_S3_ANON=true reads public buckets"
        return UserError(f"{address}: no credentials ({said}); {remedy}" if scheme == "s3" else f"{address}: no credentials ({said})")
    if isinstance(error, PermissionError):
        return UserError(f"{address}: access is refused ({said}): wrong credentials, or they lack this right")
    if is_passing(error):
        remedy = "check the network, and AWS_ENDPOINT_URL where the store is not Amazon's" if scheme == "s3" else "check the network"
        return NotAnswering(f"{address}: the store does not answer ({said or kind}); start the same command again later, or {remedy}")
    return RunFailed(f"{address}: {kind}: {said}; start the same command again if the store was at fault")


def is_of_bucket(error: BaseException) -> bool:
    """Whether what was not found is the bucket, not the object."""
    return "bucket does not exist" in str(error)
