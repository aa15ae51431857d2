"""`data.files.outputs.new_local_folder`."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from data.errors import RunFailed, UserError
from data.files.leftovers import temporary_name
from data.files.outputs import new_local_folder


@pytest.mark.parametrize("before", ["nothing", "an empty folder", "a link to an empty folder"])
def test_a_folder_appears_whole(tmp_path: Path, before: str) -> None:
    """Prevents: half an export under its name, and a link that is replaced by a folder."""
    out = tmp_path / "deep" / "out"
    real = out
    if before == "an empty folder":
        out.mkdir(parents=True)
    elif before != "nothing":
        real = tmp_path / "elsewhere"
        real.mkdir()
        out.parent.mkdir()
        out.symlink_to(real)
    with new_local_folder(str(out)) as folder:
        (folder / "a").write_text("b")
        assert not (out / "a").exists()
    assert (real / "a").read_text() == "b" and (out / "a").exists() and out.is_symlink() == (real != out)
    assert sorted(path.name for path in real.parent.iterdir() if path.name.startswith(".")) == []


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    """Prevents: a folder that looks finished after an error, and rubbish beside it."""
    with pytest.raises(ZeroDivisionError), new_local_folder(str(tmp_path / "out")) as folder:
        (folder / "a").write_text("b")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """Prevents: a traceback on a full disk."""
    with pytest.raises(RunFailed, match="no space left"), new_local_folder(str(tmp_path / "out")):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    """Prevents: a disk that fills with halves of exports."""
    ask = [sys.executable, "-c", "import os; print(os.getpid())"]
    dead = subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip()
    left = temporary_name(tmp_path / "out")
    left = left.with_name(left.name.replace(f"-{os.getpid()}-", f"-{dead}-"))
    left.mkdir()
    with new_local_folder(str(tmp_path / "out")):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_there_stays(tmp_path: Path) -> None:
    """Prevents: an earlier export, a file or a device that is written over."""
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("")
    (tmp_path / "file").write_text("text")
    for name, words in (("full", "holds mine"), ("file", "is a file"), ("file/below", "is a file, not a folder")):
        with pytest.raises(UserError, match=words), new_local_folder(str(tmp_path / name)):
            pass
    with pytest.raises(UserError, match="is there already"), new_local_folder("/"):
        pass
    with pytest.raises(UserError, match="is a device"), new_local_folder("/dev/null"):
        pass
    assert (tmp_path / "full" / "mine").exists() and (tmp_path / "file").read_text() == "text"
