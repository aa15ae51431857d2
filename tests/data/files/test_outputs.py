"""What a user gives as an output: names, links, devices, pipes, folders."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from data.digests import DigestCache
from data.errors import RunFailed, UserError
from data.files.outputs import is_standard_output, is_stream, local_output_file, local_output_folder
from data.tables.shards import atomic_write

RUN = b"q1 Q0 d1 1 0.5 dense\n"


def written(given: str | Path, content: bytes = RUN, *, kind: Any = "run") -> None:
    with local_output_file(str(given), option="out", kind=kind) as path:
        atomic_write(path, content)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A null device of our own: the machine's must not be tried."""
    path = tmp_path / "null"
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except OSError:
        pytest.skip("device nodes need root")
    return path


def test_a_device_is_written_through(device: Path, tmp_path: Path) -> None:
    """Prevents: the machine's /dev/null, or its /dev/stdout, replaced by a regular file."""
    (tmp_path / "link").symlink_to(device)
    for given in (device, tmp_path / "link"):
        written(given)
        assert stat.S_ISCHR(device.stat().st_mode) and (tmp_path / "link").is_symlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "null"]


def test_nothing_but_a_file_is_ever_replaced(device: Path, tmp_path: Path) -> None:
    """Prevents: any other writer, a digest cache on /dev/null among them, that renames over a device or into a folder."""
    (tmp_path / "folder").mkdir()
    for path, kind in ((device, "a device"), (tmp_path / "folder", "a folder")):
        with pytest.raises(UserError, match=f"is {kind}, where a file is to be written; it is left as it is"):
            atomic_write(path, b"x")
    cache = DigestCache(device)
    cache._known, cache._dirty = {"a": "b"}, True
    cache.save()
    assert stat.S_ISCHR(device.stat().st_mode) and sorted(path.name for path in tmp_path.iterdir()) == ["folder", "null"]


def test_a_pipe_gets_the_finished_bytes(tmp_path: Path) -> None:
    """Prevents: out=>(gzip) that ends in a traceback, or in a file beside the pipe."""
    fifo, got = tmp_path / "pipe", []
    os.mkfifo(fifo)
    reader = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    reader.start()
    written(fifo)
    reader.join(timeout=10)
    assert got == [RUN] and stat.S_ISFIFO(fifo.stat().st_mode) and list(tmp_path.iterdir()) == [fifo]


def test_a_reader_that_stops_reading_is_told(tmp_path: Path) -> None:
    """Prevents: BrokenPipeError with a traceback after the whole search."""
    read, write = os.pipe()
    with (
        pytest.raises(RunFailed, match="who read it has stopped reading"),
        local_output_file(f"/dev/fd/{write}", option="out", kind="run") as path,
    ):
        path.write_bytes(RUN)
        os.close(read)
    os.close(write)


def test_what_the_output_goes_to_is_written_through(tmp_path: Path) -> None:
    """Prevents: `out=/dev/stdout > FILE` that takes the file away from under the process's own output."""
    target = tmp_path / "file"
    before = os.dup(1)
    opened = os.open(target, os.O_WRONLY | os.O_CREAT)
    try:
        os.dup2(opened, 1)
        os.write(1, b"first\n")
        inode = target.stat().st_ino
        assert is_stream("/dev/fd/1") and is_standard_output(target)
        written("/dev/fd/1")
    finally:
        os.dup2(before, 1)
        os.close(before)
        os.close(opened)
    assert target.read_bytes() == b"first\n" + RUN and target.stat().st_ino == inode
    assert not is_standard_output(target) and not is_stream(target) and not is_stream(tmp_path / "nothing")


def test_a_link_stays(tmp_path: Path) -> None:
    """Prevents: a link to a file on another disk that becomes a file on this one, its target as it was."""
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "elsewhere" / "a.trec")
    for _ in range(2):  # a target that is not there yet, and one that is
        written(tmp_path / "out")
        assert (tmp_path / "out").is_symlink() and (tmp_path / "elsewhere" / "a.trec").read_bytes() == RUN
    atomic_write(tmp_path / "out", b"q2 Q0 d 1 1 x\n")
    assert (tmp_path / "out").is_symlink() and len(list((tmp_path / "elsewhere").iterdir())) == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("folder", "out=.*folder is a folder; give the name of a file in it"),
        ("new/", "is a folder"),
        ("", "is a folder"),
        ("file/below", "cannot be written: .*file is a file, not a folder"),
        ("x" * 300, "cannot be written: .*File name too long"),
        ("x" * 240, "cannot be written: .*File name too long"),
        ("link", "cannot be written: .*file is a file, not a folder"),
        ("notes.txt", r"is a file of another kind \(it begins b'my notes'\), which is left as it is"),
        ("socket", "is a socket, which is not written to"),
    ],
)
def test_what_cannot_be_written_is_told_before_the_work(given: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: hours of search that end in IsADirectoryError, and a file of notes given by mistake."""
    import socket

    monkeypatch.chdir(tmp_path)
    Path("folder").mkdir()
    Path("file").touch()
    Path("notes.txt").write_text("my notes")
    Path("link").symlink_to("file/below")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind("socket")
        with pytest.raises(UserError, match=expected), local_output_file(given, option="out", kind="run"):
            raise AssertionError("the work began")
    assert sorted(os.listdir()) == ["file", "folder", "link", "notes.txt", "socket"] and Path("notes.txt").read_text() == "my notes"


def test_a_read_only_place(full_disk: Path) -> None:
    """Prevents: the same on a file system that is mounted read-only, where permissions say nothing, for root least of all."""
    import subprocess

    if subprocess.run(["mount", "-o", "remount,ro", full_disk]).returncode:
        pytest.skip("cannot be mounted read-only here")
    with (
        pytest.raises(UserError, match=r"cannot be written: .*Read-only file system"),
        local_output_file(f"{full_disk}/a", option="out", kind="run"),
    ):
        raise AssertionError
    with pytest.raises(UserError, match=r"cannot be written: .*Read-only file system"), local_output_folder(f"{full_disk}/a", option="out"):
        raise AssertionError


def test_kinds_of_files(tmp_path: Path) -> None:
    """Prevents: a run of another system, or an empty or cut file of ours, that may not be written again."""
    path = tmp_path / "file"
    ours = {
        "run": (RUN, b"q1\tQ0\td1\t1\t0.5\tx\n", b"q Q0 d 1", b"q1 Q0", b""),
        "json": (b'{"q": {}}', b""),
        "html": (b"<!doctype html>\n", b"<!DOCTYPE html>"),
        None: (b"anything",),
    }
    others = {"run": (b"{", b"q1 0 d1 1\n", b"id\ttext\n"), "json": (b"q1",), "html": (b"<p>",)}
    for kind, content in ((kind, content) for kind, contents in ours.items() for content in contents):
        path.write_bytes(content)
        written(path, kind=kind)
    for kind, content in ((kind, content) for kind, contents in others.items() for content in contents):
        path.write_bytes(content)
        with pytest.raises(UserError, match="a file of another kind"):
            written(path, kind=kind)


def test_a_folder_for_a_table(tmp_path: Path) -> None:
    """Prevents: shards strewn into a folder of other things, and an empty folder left by a command that was refused."""
    for name, content in (
        ("table", "manifest.json"),
        ("begun", "part-00000-of-00002.parquet"),
        ("noted", "device.json"),
        ("hidden", ".DS_Store"),
        ("home", "thesis.tex"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / content).touch()
    (tmp_path / "empty").mkdir()
    for name in ("table", "begun", "noted", "hidden", "empty"):
        with local_output_folder(str(tmp_path / name), option="out") as folder:
            assert folder == tmp_path / name
        assert folder.is_dir()
    with (
        pytest.raises(UserError, match=r"out=.*home is a folder with other files \(thesis\.tex\)"),
        local_output_folder(str(tmp_path / "home"), option="out"),
    ):
        raise AssertionError
    with (
        pytest.raises(UserError, match=r"thesis\.tex is a file; give the name of a folder"),
        local_output_folder(f"{tmp_path}/home/thesis.tex", option="out"),
    ):
        raise AssertionError
    with pytest.raises(UserError, match="no such model"), local_output_folder(f"{tmp_path}/new/er", option="out"):
        raise UserError("no such model")
    assert not (tmp_path / "new" / "er").exists()
