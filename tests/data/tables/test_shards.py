"""Shards on disk: whole or absent, the same bytes for the same rows, and damage that is always noticed."""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.errors import EXIT_FAILED, DamagedShard, RunFailed
from data.tables import shards
from data.tables.manifest import Manifest, ShardRecord
from data.tables.shards import (
    atomic_write,
    describe,
    open_footer,
    open_shard,
    read_footer,
    read_row_groups,
    read_shard,
    shard_name,
    write_shard,
)

SCHEMA = pa.schema([("id", pa.string()), ("values", pa.list_(pa.float32())), ("count", pa.int32())])


def rows(count: int) -> pa.Table:
    chance = np.random.default_rng(0)
    values = [chance.standard_normal(5).astype(np.float32).tolist() for _ in range(count)]
    return pa.table({"id": [f"row {n}" for n in range(count)], "values": values, "count": list(range(count))}, schema=SCHEMA)


def test_names_sort_like_numbers() -> None:
    """Prevents: shard 10 before shard 2."""
    assert shard_name(17, 64) == "part-00017-of-00064.parquet"
    names = [shard_name(index, 200) for index in range(200)]
    assert sorted(names) == names


def test_round_trip_in_row_groups(tmp_path: Path) -> None:
    """Prevents: rows lost or doubled at the border of row groups."""
    table = rows(2 * shards.ROW_GROUP_ROWS + 7)
    write_shard(tmp_path / "a.parquet", table, {"fingerprint": "f", "shard": 3})
    assert read_shard(tmp_path / "a.parquet").equals(table)
    groups = list(read_row_groups(tmp_path / "a.parquet", columns=["id"]))
    assert [group.num_rows for group in groups] == [shards.ROW_GROUP_ROWS] * 2 + [7]
    assert next(read_row_groups(tmp_path / "a.parquet", groups=[2])).column("id").to_pylist() == table.column("id").to_pylist()[-7:]
    assert read_footer(tmp_path / "a.parquet") == {"fingerprint": "f", "shard": 3}


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=8))
def test_bytes_do_not_depend_on_how_rows_arrive(cuts: list[int]) -> None:
    """Prevents: a shard whose digest, and with it every later fingerprint, hangs on the size of a worker's blocks."""
    original = shards.ROW_GROUP_ROWS
    shards.ROW_GROUP_ROWS = 10
    table, borders = rows(30), [0, *sorted(cuts), 30]
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_shard(Path(folder, "one"), table, {})
            with open_shard(Path(folder, "many"), SCHEMA, {}) as writer:
                for start, stop in itertools.pairwise(borders):
                    writer.write(table.slice(start, stop - start))
            assert Path(folder, "one").read_bytes() == Path(folder, "many").read_bytes()
    finally:
        shards.ROW_GROUP_ROWS = original


def test_an_empty_shard_is_a_shard(tmp_path: Path) -> None:
    """Prevents: a shard without rows that counts as missing for ever, or cannot be read."""
    write_shard(tmp_path / "a.parquet", rows(0), {"fingerprint": "f"})
    assert read_shard(tmp_path / "a.parquet").schema == SCHEMA and read_shard(tmp_path / "a.parquet").num_rows == 0
    assert read_shard(tmp_path / "a.parquet", columns=["count"]).column_names == ["count"]
    assert read_footer(tmp_path / "a.parquet") == {"fingerprint": "f"}


class Stop(Exception):
    """A failure in the middle of writing."""


@pytest.mark.parametrize("failure", [Stop, KeyboardInterrupt])
def test_a_failure_leaves_nothing(tmp_path: Path, failure: type[BaseException]) -> None:
    """Prevents: half a shard under its final name, or temporary files that pile up."""
    with pytest.raises(failure), open_shard(tmp_path / "a.parquet", SCHEMA, {}) as writer:
        writer.write(rows(10_000))
        raise failure
    assert list(tmp_path.iterdir()) == []


def test_a_failure_keeps_the_earlier_file(tmp_path: Path) -> None:
    """Prevents: a good shard destroyed by a failed attempt to write it anew."""
    write_shard(tmp_path / "a.parquet", rows(5), {})
    before = (tmp_path / "a.parquet").read_bytes()
    with pytest.raises(Stop), open_shard(tmp_path / "a.parquet", SCHEMA, {}) as writer:
        writer.write(rows(7))
        raise Stop
    assert [path.name for path in tmp_path.iterdir()] == ["a.parquet"] and (tmp_path / "a.parquet").read_bytes() == before


def test_the_name_appears_only_with_the_last_byte(tmp_path: Path) -> None:
    """Prevents: a reader, or a second run, that takes a shard for complete while it is written."""
    with open_shard(tmp_path / "a.parquet", SCHEMA, {}) as writer:
        writer.write(rows(5000))
        assert read_footer(tmp_path / "a.parquet") is None
    assert read_footer(tmp_path / "a.parquet") == {}


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    """Prevents: a shard cut short by a copy or a quota that reads as fewer rows."""
    path = tmp_path / "a.parquet"
    write_shard(path, rows(300), {"fingerprint": "f"})
    whole = path.read_bytes()
    for size in {*range(0, len(whole), len(whole) // 40), *range(len(whole) - 12, len(whole))}:
        path.write_bytes(whole[:size])
        for read in (read_shard, read_footer, describe):
            with pytest.raises(DamagedShard, match=r"a\.parquet.*delete it and start the same"):
                read(path)


def test_no_flipped_byte_gives_other_rows(tmp_path: Path) -> None:
    """Prevents: a flipped byte that becomes another logit, id or row count without a word."""
    path, table = tmp_path / "a.parquet", rows(200)
    write_shard(path, table, {"fingerprint": "f"})
    whole = path.read_bytes()
    data_end = max(
        chunk.data_page_offset + chunk.total_compressed_size for n in range(3) for chunk in [pq.read_metadata(path).row_group(0).column(n)]
    )
    noticed = 0
    offsets = {*range(0, data_end, 23), *range(data_end, len(whole), 5)}
    for offset in sorted(offsets):
        for bit in (0x01, 0x80):
            path.write_bytes(whole[:offset] + bytes([whole[offset] ^ bit]) + whole[offset + 1 :])
            try:
                read = read_shard(path)
            except DamagedShard as error:
                assert str(path) in str(error)
                noticed += offset < data_end
            else:
                assert read.equals(table), f"a flipped bit at byte {offset} of {len(whole)} (data end at {data_end}) changed the rows"
    assert noticed > 0.9 * 2 * len(range(0, data_end, 23))


def test_a_missing_file_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    """Prevents: advice to delete a file that is not there."""
    assert read_footer(tmp_path / "a.parquet") is None
    with pytest.raises(FileNotFoundError):
        open_footer(tmp_path / "a.parquet")
    with pytest.raises(DamagedShard, match=r"a\.parquet is missing"):
        read_shard(tmp_path / "a.parquet")


def test_a_foreign_parquet_file_is_no_shard(tmp_path: Path) -> None:
    """Prevents: a file from elsewhere under a shard's name that counts as complete."""
    for figures in (None, b"{", b"[1]", b"null"):
        metadata = {b"shard": figures} if figures else None
        pq.write_table(rows(5).replace_schema_metadata(metadata), tmp_path / "a.parquet")
        for read in (read_footer, open_footer):
            with pytest.raises(DamagedShard, match=r"a\.parquet cannot be read") as caught:
                read(tmp_path / "a.parquet")
            assert caught.value.path == tmp_path / "a.parquet"


def left_in(folder: Path) -> Sequence[str]:
    return [path.name for path in folder.iterdir()]


def test_a_full_disk_is_told_and_leaves_nothing(full_disk: Path) -> None:
    """Prevents: a full disk that shows as an Arrow traceback, with the last free bytes held by temporary files."""
    with pytest.raises(RunFailed, match=r"no space left while writing .*a\.parquet") as caught:
        write_shard(full_disk / "a.parquet", pa.table({"x": np.random.default_rng(0).bytes(1 << 20).hex(" ").split(" ")}), {})
    assert caught.value.exit_code == EXIT_FAILED and left_in(full_disk) == []
    with pytest.raises(RunFailed, match="no space left"):
        atomic_write(full_disk / "manifest.json", bytes(1 << 20))
    assert left_in(full_disk) == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_quota_is_told_like_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Prevents: a quota, which shows only when the file is synced, that leaves a shard under its final name."""

    def full(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunFailed, match="no space left"):
        write_shard(tmp_path / "a.parquet", rows(5), {})
    assert left_in(tmp_path) == []


def manifest_of(*digests: str, **recorded: object) -> Manifest:
    records = [ShardRecord(shard_name(n, len(digests)), 5, 100, digest) for n, digest in enumerate(digests)]
    return Manifest("embed", "corpus", "f" * 32, {"settings": {"a": 1}}, records, {"in": 10}, **recorded)  # type: ignore[arg-type]


def test_manifest_round_trip(tmp_path: Path) -> None:
    """Prevents: a manifest that another stage reads differently from how it was written."""
    manifest = manifest_of("a", "b", seconds=1.5, versions={"torch": "2"})
    manifest.write(tmp_path)
    assert Manifest.read(tmp_path) == manifest and manifest.rows == 10
    assert Manifest.read(tmp_path / "nothing") is None


def test_content_digest_is_of_content_only(tmp_path: Path) -> None:
    """Prevents: later stages that are built anew because an earlier one took longer, or not although its bytes changed."""
    assert manifest_of("a", "b").content_digest == manifest_of("a", "b", seconds=9.0, versions={"ray": "3"}).content_digest
    assert len({manifest_of(*digests).content_digest for digests in (("a", "b"), ("b", "a"), ("a",), ("a", "c"))}) == 4


@pytest.mark.parametrize("content", ["{", "", '{"stage": '])
def test_a_damaged_manifest_is_told(tmp_path: Path, content: str) -> None:
    """Prevents: a traceback where one file must be deleted."""
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(DamagedShard, match=r"manifest\.json .*delete it and run again"):
        Manifest.read(tmp_path)
