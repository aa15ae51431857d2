"""Which folder stands for a store, and which address for a file in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.store.paths import address_of, shown, store_root

PARTS = st.lists(st.text(st.characters(codec="utf-8", exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1), min_size=1)


@given(PARTS, PARTS)
def test_a_file_of_a_mirror_has_the_address_of_its_object(store: list[str], name: list[str]) -> None:
    """Prevents: two stores in one mirror, a mirror outside of the cache, and an object put under another key than it is read from."""
    address = f"s3://{'/'.join(store)}".rstrip("/")
    root = store_root(address)
    assert address_of(root) == address
    whole = f"{address}/{'/'.join(name)}".rstrip("/")
    assert address_of(store_root(whole)) == whole
    assert root in store_root(whole).parents
    assert ".." not in root.parts


def test_a_folder_stands_for_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a store of this machine that is put somewhere, because its path begins as a mirror's does."""
    monkeypatch.setenv("ADAM_REMOTE_CACHE", str(tmp_path / "cache"))
    beside = tmp_path / "cache" / "stores-of-mine" / "s3" / "a"
    assert store_root(str(beside)) == beside
    assert address_of(beside / "x.parquet") is None
    assert (shown(beside), shown(store_root("s3://b/c") / "x")) == (str(beside), "s3://b/c/x")


def test_a_mirror_reached_by_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: files that are written here alone, since their folder has two names."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    monkeypatch.setenv("ADAM_REMOTE_CACHE", str(tmp_path / "cache"))
    path = store_root("s3://b/c") / "x"
    assert path == tmp_path / "disk" / "stores" / "s3" / "b" / "c" / "x"
    assert address_of(path) == "s3://b/c/x"


def test_files_of_this_machine_need_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a container without a home folder, or a variable that is not set there, which stops work on a folder."""
    monkeypatch.setenv("ADAM_REMOTE_CACHE", "$NO_SUCH_VARIABLE/cache")
    assert address_of(Path("/mnt/stores/s3/b/x.parquet")) is None
