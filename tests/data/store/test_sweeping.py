"""What killed processes leave half made in a store's folders of notes, and what is left alone."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path
from typing import Any

from data.files.leftovers import temporary_name, this_place
from data.remote.conditional import FORGOTTEN_SECONDS
from data.store.place import LocalPlace
from data.store.remote import RemotePlace


def test_half_made_objects_go_once_they_are_old(bucket: Any) -> None:
    """Prevents: a folder `.NAME.claims` for each kill, for ever; and the claim removed of a job that is just making NAME."""
    names = ["claims/.a.0.claims/dead", "claims/jobs/.probe-1", "settled/.b.json.claims/dead", "claims/a.1", "claims/.begun"]
    for name in names:
        bucket.put(f"store/{name}", b"claim")
    place, now = RemotePlace(f"{bucket}/store"), time.time()
    place.sweep("claims", now=now)
    assert set(bucket.objects("store")) == set(names)
    place.sweep("claims", now=now + FORGOTTEN_SECONDS + 5)
    assert set(bucket.objects("store")) == {"settled/.b.json.claims/dead", "claims/a.1"}


def test_half_written_files_of_dead_processes_go(tmp_path: Path) -> None:
    """Prevents: temporary files of signs of life that pile up; and one removed that a living process is about to name."""
    with subprocess.Popen(["true"]) as process:
        pass
    place = LocalPlace(tmp_path)
    place.sweep("claims", now=time.time())  # which is not there yet
    place.put("claims/jobs/one", b"")
    own = temporary_name(tmp_path / "claims" / "jobs" / "one")
    dead = own.with_name(f".one.{this_place()}-{process.pid}-0123456789ab.tmp")
    for path in (own, dead):
        path.write_bytes(b"")
    place.sweep("claims", now=time.time())
    assert own.exists() and not dead.exists() and place.read("claims/jobs/one") == b""
