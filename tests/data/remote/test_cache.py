"""Copies of objects, from a server of the S3 protocol: the same bytes, whole or not at all, once; damage and mistakes are told by name."""

from __future__ import annotations

import http.server
import os
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from support.children import run, start

from data.errors import DamagedShard, RunFailed, UserError
from data.remote import cache as remote
from data.remote import object_store
from data.remote.cache import local_file, local_table, local_table_or_file, output_file, output_table
from data.remote.folders import cache_folder
from data.remote.object_store import Entry, RemotePath, is_remote
from data.tables.manifest import MANIFEST_NAME, Manifest, ShardRecord
from data.tables.shards import describe, shard_name, write_shard

ROOT = Path(remote.__file__).parents[2]
Contents = Callable[[Path], dict[str, bytes]]


def make_table(folder: Path, *, shards: int = 3, rows: int = 500) -> Path:
    """A finished table of random numbers."""
    chance, records = random.Random(0), []
    for number in range(shards):
        path = folder / shard_name(number, shards)
        write_shard(path, pa.table({"x": [chance.random() for _ in range(rows)]}), {"fingerprint": "f"})
        records.append(ShardRecord(path.name, *describe(path)))
    Manifest("stage", "", "f", {}, records, {}).write(folder)
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return make_table(tmp_path / "table")


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses of large objects that were read, in blocks of 1,000 bytes."""
    read: list[str] = []
    original = RemotePath.blocks

    def blocks(self: RemotePath, size: int) -> Iterator[bytes]:
        read.append(self.address)
        return original(self, size)

    monkeypatch.setattr(object_store, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(RemotePath, "blocks", blocks)
    return read


@pytest.mark.medium
@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 25_000])
@pytest.mark.parametrize("name", ["plain.trec", "a b+c%20=é.tsv.gz", "#1?x"])
def test_bytes_there_and_back(bucket: Any, reads: list[str], name: str, size: int) -> None:
    """Prevents: a block lost or doubled at a border, an empty file taken for a missing one, a key that is quoted once too often."""
    content, address = random.Random(size).randbytes(size), f"{bucket}/deep/er/{name}"
    with output_file(address) as path:
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
    assert bucket.objects("deep") == {f"er/{name}": content}
    copy = local_file(address)
    assert copy.read_bytes() == content and copy.name == name
    assert local_file(address) == copy and len(reads) == 1


def test_a_changed_object_is_another_copy(bucket: Any) -> None:
    """Prevents: qrels of last week, out of the cache, for those that were put today under the same key with the same size."""
    first = local_file(bucket.put("qrels.tsv", b"q1 d1 1\n"))
    assert local_file(bucket.put("qrels.tsv", b"q1 d2 1\n")).read_bytes() == b"q1 d2 1\n"
    assert first.read_bytes() == b"q1 d1 1\n"


def test_a_table_is_copied_once(bucket: Any, table: Path, reads: list[str], contents: Contents) -> None:
    """Prevents: shards fetched anew by every start, or a copy that lacks a shard and has a manifest."""
    address = bucket.upload(table, "tables/one")
    copy = local_table(address + "/")
    assert contents(copy) == contents(table) and len(reads) == 3
    assert local_table(address) == copy == local_table_or_file(address) and len(reads) == 3
    (copy / shard_name(1, 3)).unlink()
    assert contents(local_table(address)) == contents(table)
    assert reads[3:] == [f"{address}/{shard_name(1, 3)}"]


def test_local_paths_are_as_they_were() -> None:
    """Prevents: local work that is copied, or that pays for imports of an object store's client."""
    done = run("remote_copies", "local")
    assert done.returncode == 0, done.stderr
    assert not any(map(is_remote, ("/a", "://b", "C:/x", "./s3:/b", "s3:/b/x", "")))
    assert all(map(is_remote, ("s3://b/x", "memory://x", "gs://b", "abfs+x://y")))


@pytest.mark.medium
def test_two_processes_copy_at_once(bucket: Any, tmp_path: Path, reads: list[str], contents: Contents) -> None:
    """Prevents: two trainers on a machine that write to one temporary file, or one that waits for the other's lock."""
    table = make_table(tmp_path / "table", rows=3000)
    address = bucket.upload(table, "t")
    other = start("remote_copies", "copy", address)
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(local_table(address))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert other.wait(timeout=60) == 0
    assert [contents(copy) for copy in found] == [contents(table)] * 2


def test_a_copy_killed_in_the_middle_counts_for_nothing(bucket: Any, table: Path, reads: list[str], contents: Contents) -> None:
    """Prevents: half a shard under its final name, or a manifest beside it, that the next start takes for the whole."""
    address = bucket.upload(table, "t")
    of_first = -(-(table / shard_name(0, 3)).stat().st_size // 1000)  # blocks
    assert run("remote_copies", "copy_killed", address, of_first + 2).returncode == -9
    left = [Path(name).name for name in contents(cache_folder())]
    assert sorted(name for name in left if not name.endswith(".tmp")) == [shard_name(0, 3)]
    assert len(left) == 2  # and the one that was being written
    copy = contents(local_table(address))
    assert {name: content for name, content in copy.items() if not name.endswith(".tmp")} == contents(table)
    assert len(reads) == 2


def test_leftovers_of_killed_copies_go(bucket: Any, table: Path, contents: Contents) -> None:
    """Prevents: a cache that fills with halves of large shards; and a sweep that takes the file of a copy that is under way."""
    address = bucket.upload(table, "t")
    copy = local_table(address)
    old, new = (f".{shard_name(0, 3)}.{digit * 32}.tmp" for digit in "01")
    for name, age in ((old, 2 * 24 * 3600), (new, 60)):
        (copy / name).touch()
        now = (copy / name).stat().st_mtime
        os.utime(copy / name, (now - age, now - age))
    (copy / shard_name(0, 3)).unlink()
    local_table(address)
    assert sorted(name for name in contents(copy) if name.endswith(".tmp")) == [new]


@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_object_is_refused_by_name(bucket: Any, table: Path, damage: str, contents: Contents) -> None:
    """Prevents: a trainer that reads another table's shard, or half of one, because its key was right."""
    path = table / shard_name(1, 3)
    good = path.read_bytes()
    path.write_bytes({"flipped": good[:-20] + bytes([good[-20] ^ 1]) + good[-19:], "cut": good[:-1], "gone": b""}[damage])
    if damage == "gone":
        path.unlink()
    address = bucket.upload(table, "t")
    words = f"{address}/{path.name}: nothing there" if damage == "gone" else f"{address}/{path.name} is not the file that manifest.json"
    with pytest.raises(UserError if damage == "gone" else DamagedShard, match=words):
        local_table(address)
    left = [Path(name).name for name in contents(cache_folder())]
    assert path.name not in left and MANIFEST_NAME not in left and not any(name.endswith(".tmp") for name in left)
    path.write_bytes(good)
    bucket.upload(table, "t")
    assert contents(local_table(address)) == contents(table)


@pytest.mark.parametrize("name", ["../../escaped", "/etc/escaped", "..", "", MANIFEST_NAME])
def test_a_manifest_cannot_write_elsewhere(bucket: Any, table: Path, name: str) -> None:
    """Prevents: a table from a stranger that puts a file into the home folder."""
    Manifest("stage", "", "f", {}, [ShardRecord(name, 1, 3, "d")], {}).write(table)
    with pytest.raises(DamagedShard, match="no file's name"):
        local_table(bucket.upload(table, "t"))


def test_an_object_replaced_while_it_is_read(bucket: Any, reads: list[str], monkeypatch: pytest.MonkeyPatch, contents: Contents) -> None:
    """Prevents: a run whose first half is of yesterday's object and whose second half is of today's."""
    address, original = bucket.put("a.trec", b"a" * 5000), RemotePath.blocks

    def replaced(self: RemotePath, size: int) -> Iterator[bytes]:
        for number, block in enumerate(original(self, size)):
            if number == 1:
                bucket.put("a.trec", b"b" * 5000)
            yield block

    monkeypatch.setattr(RemotePath, "blocks", replaced)
    with pytest.raises(RunFailed, match=r"a\.trec was replaced while it was read"):
        local_file(address)
    assert not contents(cache_folder())


def test_an_output_table_is_put_with_the_manifest_last(
    bucket: Any, table: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch, contents: Contents
) -> None:
    """Prevents: a reader that finds a manifest and misses a shard; a second run that puts gigabytes again, or reads back what it made."""
    address, put, original = f"{bucket}/out/table", [], RemotePath.put

    def counted(self: RemotePath, local: Path) -> None:
        original(self, local)
        put.append(local.name)

    monkeypatch.setattr(RemotePath, "put", counted)
    with output_table(address) as folder:
        make_table(folder)
    assert bucket.objects("out/table") == contents(table)
    assert put[-1] == MANIFEST_NAME and sorted(put[:3]) == [shard_name(number, 3) for number in range(3)]
    with output_table(address) as folder:
        assert contents(folder) == contents(table)
    assert contents(local_table(address)) == contents(table)
    assert len(put) == 4 and not reads
    shutil.rmtree(cache_folder())  # another machine sees the finished table, too
    with output_table(address) as folder:
        assert contents(folder) == contents(table)
    assert len(put) == 4 and len(reads) == 3


def test_an_output_that_failed_is_not_put(bucket: Any) -> None:
    """Prevents: half a table on the store because the work on it ended with an error."""
    for output, name in ((output_table, shard_name(0, 1)), (output_file, "")):
        with pytest.raises(ZeroDivisionError), output(f"{bucket}/{output.__name__}") as path:
            target = path / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(b"half")
            raise ZeroDivisionError
    assert not bucket.objects()


def test_an_output_killed_between_two_objects(bucket: Any, table: Path, contents: Contents) -> None:
    """Prevents: a table that counts before all of it is there, and work that is done again because putting it was cut."""
    address = f"{bucket}/table"
    assert run("remote_copies", "put_killed", address, table).returncode == -9
    assert sorted(bucket.objects("table")) == [shard_name(0, 3), shard_name(1, 3)]
    with pytest.raises(UserError, match=r"no stored table: it has no manifest\.json"):
        local_table(address)
    with output_table(address) as folder:
        assert contents(folder) == contents(table)  # all the work is still here
    assert bucket.objects("table") == contents(table)


def test_a_put_that_fails_leaves_the_file(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: hours of search lost because the store did not answer at the end."""

    def refuse(self: RemotePath, local: Path) -> None:
        raise UserError(f"{self.address}: access is refused")

    monkeypatch.setattr(RemotePath, "put", refuse)
    with pytest.raises(UserError, match="access is refused; the finished file is ") as told, output_file(f"{bucket}/a.trec") as path:
        path.parent.mkdir(parents=True)
        path.write_bytes(b"run")
    assert Path(str(told.value).rsplit(" ", 1)[-1]).read_bytes() == b"run"


def begin_file(address: str) -> None:
    with output_file(address):
        raise AssertionError("the work began")


def begin_table(address: str) -> None:
    with output_table(address):
        raise AssertionError("the work began")


NO_KEYS = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}
NO_SERVER = {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}


@pytest.mark.parametrize(
    ("function", "address", "variables", "message"),
    [
        *((each, "s3://no-such-bucket/x", {}, "s3://no-such-bucket/x.*: no such bucket") for each in (local_file, local_table)),
        *((each, "s3://no-such-bucket/x", {}, "s3://no-such-bucket/x.*: no such bucket") for each in (begin_file, begin_table)),
        (local_table_or_file, "{0}/x", NO_KEYS, "no credentials .*; set AWS_ACCESS_KEY_ID"),
        (local_table, "{0}/x", NO_SERVER, "the store does not answer .*AWS_ENDPOINT_URL"),
        (local_file, "foo://b/x", {}, "unknown kind of address foo://"),
        (local_file, "gs://b/x", {}, "addresses gs:// need a package that is not installed .*gcsfs"),
    ],
)
def test_mistakes_are_told(
    bucket: Any, monkeypatch: pytest.MonkeyPatch, function: Any, address: str, variables: dict[str, str], message: str
) -> None:
    """Prevents: a traceback of an HTTP client, hours of work before it, or a bucket made because its name was misspelt."""
    from s3fs import S3FileSystem

    for name, value in variables.items():
        monkeypatch.setenv(name, value)
        if not value:
            monkeypatch.delenv(name)
    if variables:
        S3FileSystem.clear_instance_cache()
    with pytest.raises(UserError, match=message):
        function(address.format(bucket))
    if variables:
        S3FileSystem.clear_instance_cache()


def test_what_is_not_there(bucket: Any, table: Path) -> None:
    """Prevents: a folder read as a file, and a misspelt key that looks like a fault of the network."""
    bucket.upload(table, "t")
    with pytest.raises(UserError, match=f"^{bucket}/x: nothing there$"):
        local_file(f"{bucket}/x")
    with pytest.raises(UserError, match="is a folder, expected a file"):
        local_file(f"{bucket}/t")
    with pytest.raises(UserError, match=r"no stored table: it has no manifest\.json"):
        local_table(f"{bucket}/t/x")


def test_refused_access_is_told(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: credentials that lack a right reported as a missing object."""
    from s3fs import S3FileSystem

    class Refusing(http.server.BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_GET = do_HEAD = answer

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        S3FileSystem.clear_instance_cache()
        with pytest.raises(UserError, match=r"access is refused .*wrong credentials, or they lack this right"):
            local_table(f"{bucket}/t")
        S3FileSystem.clear_instance_cache()
        server.shutdown()


def test_a_missing_package_is_named(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an ImportError for the many who never installed the extra."""
    from fsspec.registry import _registry

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(_registry, "s3", raising=False)  # of the classes that this process has loaded before
    with pytest.raises(UserError, match=r"addresses s3:// need a package that is not installed .*s3fs.*pip install .*\[s3\]"):
        local_file(f"{bucket}/x")


def test_any_fsspec_address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, contents: Contents) -> None:
    """Prevents: code that works on S3 alone."""
    monkeypatch.setenv("ADAM_REMOTE_CACHE", str(tmp_path / "cache"))
    with output_table("memory://some/table") as folder:
        table = contents(make_table(folder))
    shutil.rmtree(tmp_path / "cache")
    assert contents(local_table("memory://some/table")) == table
    assert local_file(f"memory://some/table/{shard_name(0, 3)}").read_bytes() == table[shard_name(0, 3)]


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: gigabytes in a small home folder though the user named another place."""
    monkeypatch.setenv("HOME", "/home/someone")
    for name in ("ADAM_REMOTE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    assert cache_folder() == Path("/home/someone/.cache/adam-distillation/remote")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path("/home/someone/.cache/adam-distillation/remote")
    monkeypatch.setenv("XDG_CACHE_HOME", "/scratch")
    assert cache_folder() == Path("/scratch/adam-distillation/remote")
    monkeypatch.setenv("ADAM_REMOTE_CACHE", "~/copies")
    assert cache_folder() == Path("/home/someone/copies")


def test_what_a_listing_calls_a_version() -> None:
    """Prevents: data sets of the hub, whose listings name blobs, copied anew by every command, or taken from a copy of another commit."""
    listed = {"name": "datasets/owner/name/corpus/0000.parquet", "size": 3, "type": "file", "blob_id": "abc", "lfs": None}
    assert Entry.of(listed) == Entry("0000.parquet", False, 3, "abc")
    assert Entry.of({**listed, "ETag": '"of the store"'}).version == "of the store"
    assert Entry.of({"name": "a/b/", "size": 0, "type": "directory"}) == Entry("b", True, 0, "")
