"""A folder that is gone while a process works in it, as where a file system is unmounted: nothing is made in its place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from data.digests import DigestCache
from data.files import kept_folders
from data.files.kept_folders import FolderGone, kept, make_folder
from data.store.place import LocalPlace
from data.tables.shards import atomic_write


def write_shard(store: Path) -> None:
    atomic_write(store / "embed" / "a" / "pieces" / "x", b"piece")


def write_segment(store: Path) -> None:
    atomic_write(store / "teacher_logits" / "0a" / "x", b"segment")


def give_sign(store: Path) -> None:
    LocalPlace(store).put("claims/jobs/one", b"")


@pytest.mark.parametrize("write", [write_shard, write_segment, give_sign])
@pytest.mark.parametrize("mount_point_stays", [True, False])
def test_nothing_is_written_below_a_mount_point(tmp_path: Path, write: Callable[[Path], None], mount_point_stays: bool) -> None:
    """Prevents: a shard, a piece, a logit or a sign of life on a worker's own disk, hidden as soon as the store is mounted again."""
    store = tmp_path / "mnt" / "store"
    (store / "embed" / "a").mkdir(parents=True)
    with kept(store / "embed" / "a", within=store):
        write(store)
        store.rename(tmp_path / "unmounted")
        if mount_point_stays:
            store.mkdir()
        with pytest.raises(FolderGone, match="is its file system mounted"):
            write(store)
        assert store.exists() == mount_point_stays and not list((tmp_path / "mnt").rglob("*x"))
        make_folder(tmp_path / "beside" / "a")  # elsewhere nothing changes
        if mount_point_stays:
            store.rmdir()
        (tmp_path / "unmounted").rename(store)
        write(store)
    store.rename(tmp_path / "unmounted")
    make_folder(store)  # nor later


def test_a_folder_that_never_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: hours of work that is refused only when its first file is to be written."""
    monkeypatch.setattr(kept_folders, "SEEN_SECONDS", 0.0)
    with pytest.raises(FolderGone), kept(tmp_path / "store" / "a", within=tmp_path / "store"):
        raise AssertionError("the work was begun")
    assert not (tmp_path / "store").exists()


def test_a_folder_by_two_names(tmp_path: Path) -> None:
    """Prevents: a store reached by a link in which nothing is refused, or everything."""
    (tmp_path / "disk" / "a").mkdir(parents=True)
    (tmp_path / "store").symlink_to(tmp_path / "disk")
    with kept(tmp_path / "store" / "a", within=tmp_path / "store"):
        atomic_write(tmp_path / "store" / "b" / "x", b"x")
        (tmp_path / "disk" / "a").rmdir()
        with pytest.raises(FolderGone):
            atomic_write(tmp_path / "disk" / "c" / "x", b"x")
    assert not (tmp_path / "disk" / "c").exists()


def test_digests_do_not_make_a_store_anew(tmp_path: Path) -> None:
    """Prevents: the store's folder made in an empty mount point by the last line of a run that found it gone."""
    store, file = tmp_path / "store", tmp_path / "file"
    store.mkdir()
    file.write_bytes(b"x")
    known = DigestCache.of_store(store)
    known._known["stamp"], known._dirty = "digest", True
    store.rmdir()
    known.save()
    assert not store.exists()
