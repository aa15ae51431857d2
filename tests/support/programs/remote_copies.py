"""Copies from and to an object store, in blocks of 1,000 bytes, by a process that may die as a machine that is taken away does.

remote_copies.py copy ADDRESS                a table
remote_copies.py copy_killed ADDRESS READS   the same; dies at that block
remote_copies.py put_killed ADDRESS TABLE    puts a table; dies at the third object
remote_copies.py make ADDRESS TURNS TIME N   from that time on, makes the objects 0, 1, ... there with the content N; prints those it made
remote_copies.py local                       paths of this machine, which need no client of an object store
"""

from __future__ import annotations

import importlib
import os
import shutil
import signal
import sys
import tempfile
import time
from typing import Any

from data.remote import cache, object_store


def die_at(owner: Any, name: str, last: int) -> None:
    """End the process when a method is called for the n-th time."""
    original = getattr(owner, name)
    calls = 0

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*args, **options)

    setattr(owner, name, counted)


def copy(address: str) -> None:
    """Copy a table here."""
    cache.local_table(address)


def copy_killed(address: str, reads: str) -> None:
    """Die while a table is copied."""
    cache.THREADS = 1
    die_at(object_store.RemotePath, "_block", int(reads))
    cache.local_table(address)


def put_killed(address: str, table: str) -> None:
    """Die while a table is put."""
    cache.THREADS = 1
    die_at(object_store.RemotePath, "put", 3)
    with cache.output_table(address) as folder:
        shutil.copytree(table, folder)


def make(address: str, turns: str, begin: str, number: str) -> None:
    """Try to be the one that makes each object."""
    folder = object_store.RemotePath.of(address)
    time.sleep(max(0.0, float(begin) - time.time()))
    for turn in range(int(turns)):
        if folder.child(str(turn)).put_if_absent(number.encode()):
            print(turn, flush=True)


def local() -> None:
    """Paths of this machine stay as they are, and the commands load no client."""
    for function in (cache.local_file, cache.local_table, cache.local_table_or_file):
        assert str(function("some/where")) == "some/where"
    os.chdir(tempfile.mkdtemp())
    with cache.output_file("a/b") as one, cache.output_table("c") as two:
        assert (str(one), str(two)) == (os.path.realpath("a/b"), os.path.realpath("c"))
    for module in ("retrieval.cli", "trainer.cli", "pipeline.cli", "pipeline.plan"):
        importlib.import_module(module)
    assert not {"fsspec", "s3fs", "aiohttp"} & set(sys.modules)


if __name__ == "__main__":
    object_store.BLOCK_BYTES = 1000
    {function.__name__: function for function in (copy, copy_killed, put_killed, make, local)}[sys.argv[1]](*sys.argv[2:])
