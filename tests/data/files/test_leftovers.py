"""Temporary files of processes that are gone, and of those that are not."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest
from support.children import start

from data.files import leftovers
from data.files.leftovers import remove_leftovers, temporary_name
from data.tables.shards import atomic_path


@pytest.fixture
def writing(tmp_path: Path) -> subprocess.Popen[str]:
    """A process that has written half of `tmp_path/part`, and goes on when it gets a line."""
    process = start("half_written", tmp_path / "part", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None and "part" in process.stdout.readline()
    return process


def test_what_a_living_writer_writes_stays(tmp_path: Path, writing: subprocess.Popen[str]) -> None:
    """Prevents: a shard taken away from the worker that writes it, hours old or not, by another job's sweep."""
    (temporary,) = tmp_path.iterdir()
    long_ago = time.time() - 3 * leftovers.ABANDONED_SECONDS
    os.utime(temporary, (long_ago, long_ago))
    remove_leftovers(tmp_path)
    assert temporary.exists()
    writing.communicate("go on\n", timeout=30)
    assert (tmp_path / "part").read_bytes() == b"whole" and len(list(tmp_path.iterdir())) == 1


def test_what_a_killed_writer_left_goes(tmp_path: Path, writing: subprocess.Popen[str]) -> None:
    """Prevents: half shards of 1.7 GB that stay in the store for ever after a kill -9."""
    writing.kill()
    writing.wait(timeout=30)
    (tmp_path / "manifest.json").write_text("{}")
    (tmp_path / ".hidden").write_text("of somebody else")
    unsaid = tmp_path / f".part.{'0' * 32}.tmp"  # of whom is not said
    unsaid.mkdir()
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", unsaid.name, "manifest.json"]
    remove_leftovers(tmp_path, held=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "manifest.json"]


def test_other_places_count_by_age(tmp_path: Path) -> None:
    """Prevents: a file of another host of a network file system, whose processes nobody here can see, taken for a dead one's; and another
    program's file taken for one of ours."""
    young, old, of_old_versions = (
        tmp_path / f".part.{name}.tmp" for name in ("0123abcd-1-0123456789ab", "0123abcd-2-0123456789ab", "0" * 32)
    )
    somebody_elses = tmp_path / ".swap.tmp"
    for path, age in ((young, 60), *((path, leftovers.ABANDONED_SECONDS + 60) for path in (old, of_old_versions, somebody_elses))):
        path.write_text("half")
        os.utime(path, (time.time() - age,) * 2)
    remove_leftovers(tmp_path)
    assert set(tmp_path.iterdir()) == {young, somebody_elses}


def test_only_those_of_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: `out=a.trec` that sweeps the folder of somebody's other work."""
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 2**22 + 1)  # above every process id
        one, other = temporary_name(tmp_path / "a.trec"), temporary_name(tmp_path / "b.trec")
    one.touch()
    other.mkdir()
    remove_leftovers(tmp_path, of="a.trec")
    assert list(tmp_path.iterdir()) == [other]
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())
    remove_leftovers(tmp_path / "nowhere")


def test_own_temporary_files_stay(tmp_path: Path) -> None:
    """Prevents: a thread that sweeps what another thread of its process writes."""
    with atomic_path(tmp_path / "x") as temporary:
        temporary.write_text("1")
        remove_leftovers(tmp_path)
        assert temporary.exists()
