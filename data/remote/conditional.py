"""Putting an object only where there is none: of several that try at once, on any number of machines, one is told that it did.

S3, Google's and Azure's stores have a put on that condition, and it is used. Some servers of the S3 protocol ignore the condition, which
is tried out once for a bucket by two puts of one name. There, and on stores of other kinds, whoever tries puts an object of its own into
the hidden folder `.NAME.claims`, lists that folder, and

- sees no other, and then no NAME either: puts NAME, then removes what lies in the folder;
- sees others, and its own is the oldest: lists again;
- sees an older one: removes its own, waits, and tries again where NAME does not appear.

That needs a store whose listings show what was put before, and no common clock: of two that try at once, the second to put its claim sees
the first one's, or the claim is gone and NAME is there. What a killed process left counts for 30 s, by the store's own times, or on the
machine on which it was killed until it is seen to be dead for 3 s, since a claim's name says who put it. A process that took a third of
the 30 s between its claim and NAME begins again. Whoever is the only one to try makes six requests.
"""

from __future__ import annotations

import errno
import os
import random
import threading
import time
import uuid
from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from data.errors import NotAnswering
from data.files.leftovers import process_start, this_place
from data.remote import s3
from data.remote.attempts import attempted

STALE_SECONDS = 30.0
DEAD_SECONDS = 3.0  # in which a request that a process had sent before it was killed is carried out
LIMIT_SECONDS = 120.0
FORGOTTEN_SECONDS = 600.0  # an object of that age that served to make another is a killed process's
PAUSE_SECONDS = 0.2
_GOOGLE_AND_AZURE = {"gs", "gcs", "az", "abfs", "abfss"}

_known: dict[tuple[str, str], bool] = {}
_lock = threading.Lock()


P = TypeVar("P", bound="_Path")


class _Path(Protocol):
    """What is used of a `RemotePath`."""

    @property
    def address(self) -> str: ...
    def child(self: P, name: str) -> P: ...
    def sibling(self: P, name: str) -> P: ...
    def exists(self) -> bool: ...
    def find(self) -> Any: ...
    def put_bytes(self, content: bytes) -> Any: ...
    def delete(self) -> None: ...


def has_condition(filesystem: Any, path: _Path) -> bool:
    """Whether the store takes a put on the condition that there is no such object. On S3 it is tried out once for a bucket."""
    if not s3.is_s3(filesystem):
        protocol = filesystem.protocol
        return bool(_GOOGLE_AND_AZURE.intersection((protocol,) if isinstance(protocol, str) else protocol))
    bucket = path.address.split("://")[1].split("/")[0]
    with _lock:
        key = (str(filesystem._fs_token), bucket)
        if key not in _known:
            _known[key] = _tried_out(filesystem, path.sibling(f".probe-{uuid.uuid4().hex}"))
        return _known[key]


def _tried_out(filesystem: Any, probe: _Path) -> bool:
    def create() -> bool:
        try:
            return s3.create(filesystem, probe.address, b"")
        except OSError as error:
            if error.errno == errno.ENOSYS:  # a server that says so
                return True
            raise

    try:
        return attempted(probe.address, create) and not attempted(probe.address, create)
    finally:
        probe.delete()


def create(filesystem: Any, path: _Path, content: bytes) -> bool:
    """By the store's own condition."""

    def work() -> bool:
        if s3.is_s3(filesystem):
            return s3.create(filesystem, path.address, content)
        try:
            filesystem.pipe_file(path.address, content, mode="create")
        except FileExistsError:
            return False
        return True

    return attempted(path.address, work)


def settle(path: _Path, content: bytes) -> bool:
    """By claims, on a store without such a condition."""
    claims = path.sibling(f".{path.address.rsplit('/', 1)[-1]}.claims")
    begun, rivals = time.monotonic(), _Rivals()
    while not path.exists():
        # Others are looked for when this try has failed: mostly there are none, and the claim's own listing shows those that are.
        if _claimed(claims, path, content, rivals):
            return True
        if time.monotonic() - begun > LIMIT_SECONDS:
            raise NotAnswering(f"{path.address}: others try to make it, for {LIMIT_SECONDS:.0f} s; start the same command again")
        time.sleep(random.uniform(0.5, 1) * PAUSE_SECONDS)
        while time.monotonic() - begun < STALE_SECONDS and any(map(rivals.may_put, claims.find())):
            time.sleep(random.uniform(0.5, 1) * PAUSE_SECONDS)
    return False


class _Rivals:
    """Who else may put NAME, as one try after the other sees them."""

    def __init__(self) -> None:
        self._dead: dict[str, float] = {}  # claim -> when its process was first seen to be gone

    def may_put(self, name: str) -> bool:
        """Whether the process of a claim lives, as far as this machine can tell, or may have sent a request before it was killed."""
        if not _is_of_the_dead(name):
            return True
        now = time.monotonic()
        return now - self._dead.setdefault(name, now) <= DEAD_SECONDS


def _claimed(claims: _Path, path: _Path, content: bytes, rivals: _Rivals) -> bool:
    """One claim, which is kept while it is the oldest. Returns whether it was the only one in time, and NAME was put."""
    own, begun, made = f"{this_place()}-{os.getpid()}-{uuid.uuid4().hex}", time.monotonic(), False
    claims.child(own).put_bytes(b"claim")
    try:
        while True:
            seen = claims.find()
            if own not in seen:  # somebody has put NAME, and tidied up
                return False
            recent = {name: claim.changed for name, claim in seen.items() if seen[own].changed - claim.changed <= STALE_SECONDS}
            counted = [(changed, name) for name, changed in recent.items() if rivals.may_put(name)]
            late = time.monotonic() - begun > STALE_SECONDS / 3
            if late or min(counted)[1] != own:
                return False
            if len(counted) == 1:
                made = not path.exists() and _put_in_time(claims, path, content, tidy=seen, until=begun + STALE_SECONDS / 3)
                return made
            time.sleep(random.uniform(0.5, 1) * PAUSE_SECONDS)
    finally:
        if not made:  # else it was removed with the others
            claims.child(own).delete()


def _is_of_the_dead(name: str) -> bool:
    """Whether a claim is of a process of this machine that is gone. False where this machine cannot tell."""
    place, _, rest = name.partition("-")
    process = rest.partition("-")[0]
    return place == this_place() and process.isdecimal() and process_start(int(process)) is None


def _put_in_time(claims: _Path, path: _Path, content: bytes, *, tidy: Iterable[str], until: float) -> bool:
    if time.monotonic() > until:
        return False
    path.put_bytes(content)
    for name in tidy:  # claims of killed processes, too: from now on NAME is what is seen
        claims.child(name).delete()
    return True
