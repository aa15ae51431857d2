"""An object store that fails, and several that want the same object: what is read and put is right, and what is not there is said."""

from __future__ import annotations

import hashlib
import http.client
import random
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.faulty_proxy import CUT, FLIPPED, LOST, REFUSED, RESET, STALL, FaultyProxy, faulty_proxy

from data.errors import EXIT_INTERRUPTED, DamagedShard, NotAnswering, RunFailed
from data.files.leftovers import this_place
from data.remote import attempts, conditional, object_store, s3
from data.remote.cache import local_file, local_table
from data.remote.object_store import Entry, RemotePath
from data.tables.manifest import Manifest, ShardRecord

HELLO = "5d41402abc4b2a76b9719d911017c592"  # the MD5 of `hello`
Behind = Callable[..., FaultyProxy]


@pytest.fixture
def behind(s3_endpoint: str, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Behind]:
    """`behind(**rules)`: from now on the store is asked through a proxy with these rules, a second without a byte being a time-out."""
    import contextlib

    import fsspec
    from s3fs import S3FileSystem

    with contextlib.ExitStack() as stopped:

        def begin(**rules: Any) -> FaultyProxy:
            proxy = stopped.enter_context(faulty_proxy(s3_endpoint, **rules))
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            monkeypatch.delenv("AWS_MAX_ATTEMPTS")
            monkeypatch.setitem(fsspec.config.conf, "s3", {"config_kwargs": {"read_timeout": 1}})
            S3FileSystem.clear_instance_cache()
            return proxy

        yield begin
    S3FileSystem.clear_instance_cache()


@pytest.fixture
def directly(s3_endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Asks the store without the proxy again."""

    def begin() -> None:
        from s3fs import S3FileSystem

        monkeypatch.setenv("AWS_ENDPOINT_URL", s3_endpoint)
        S3FileSystem.clear_instance_cache()

    return begin


def asked(endpoint: str, path: str) -> tuple[int, bytes]:
    """Status and body of a plain request."""
    connection = http.client.HTTPConnection(endpoint.removeprefix("http://"), timeout=5)
    connection.request("GET", path)
    answer = connection.getresponse()
    return answer.status, answer.read()


@pytest.mark.parametrize("kind", ["", REFUSED, RESET, LOST, CUT, STALL])
def test_the_proxy_fails_as_it_is_told(s3_endpoint: str, kind: str) -> None:
    """Prevents: a test of faults in front of which nothing failed."""
    with faulty_proxy(s3_endpoint, share=1 if kind else 0, kinds=[kind], stall_seconds=0.2) as proxy:
        plain = asked(s3_endpoint, "/")
        if kind in ("", REFUSED):
            status, body = asked(proxy.endpoint, "/")
            assert (status, b"SlowDown" in body) == ((200, False) if not kind else (503, True)) and (kind or len(body) == len(plain[1]))
        else:
            with pytest.raises((OSError, http.client.HTTPException)):
                asked(proxy.endpoint, "/")
        assert [(one.method, one.path, one.fault) for one in proxy.requests] == [("GET", "/", kind)]


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["s3", "memory"])
def test_what_lies_below(bucket: Any, kind: str) -> None:
    """Prevents: a listing that leaves out a folder, shows an object beside it, or asks for each object."""
    root = RemotePath.of(f"{bucket}/store" if kind == "s3" else "memory://store")
    before = time.time()
    assert root.find() == {} and root.child("a/b").read() is None and not root.child("a").exists()
    for name in ("a/b", "a/c/d", "e"):
        root.child(name).put_bytes(name.encode())
    root.sibling("store-2").put_bytes(b"beside")
    root.child(".hidden/x").put_bytes(b"x")
    found = root.find()
    assert {name: entry.bytes for name, entry in found.items()} == {"a/b": 3, "a/c/d": 5, "e": 1}
    assert all(before - 2 <= entry.changed <= time.time() + 2 for entry in found.values())
    assert kind == "memory" or found["e"].md5 == hashlib.md5(b"e").hexdigest()
    root.child("e").put_bytes(b"f")
    assert kind == "memory" or root.find()["e"].version != found["e"].version
    assert (root.child("a/c/d").read(), root.child("a/c/d").read(2, 4)) == (b"a/c/d", b"c/")
    for _ in range(2):
        root.child("a/b").delete()
    assert sorted(root.child("a").find()) == ["c/d"] and not root.child("a").exists()


@pytest.mark.parametrize(
    ("version", "md5"),
    [(HELLO, HELLO), ("XUFAKrxLKna5cZ2REBfFkg==", HELLO), (f"{HELLO}-2", ""), ("2026-11-30 11:00:00", ""), ("", "")],
)
def test_which_versions_are_md5s(version: str, md5: str) -> None:
    """Prevents: an object that was put in parts refused as damaged, and one of Google's store never looked at."""
    assert Entry("x", False, 5, version).md5 == md5


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["with", "without", "memory"])
def test_one_of_many_makes_an_object(bucket: Any, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Prevents: two jobs that both hold a claim, or none."""
    root = RemotePath.of("memory://claims" if kind == "memory" else str(bucket))
    assert kind == "memory" or conditional.has_condition(root._fs, root.child("x"))
    if kind != "with":
        monkeypatch.setattr(conditional, "has_condition", lambda *_: False)
        monkeypatch.setattr(conditional, "PAUSE_SECONDS", 0.02)
    for turn in range(3):
        made: list[int] = []
        name = f"{kind}/{turn}"

        def make(number: int, name: str = name, made: list[int] = made) -> None:
            if root.child(name).put_if_absent(str(number).encode()):
                made.append(number)

        threads = [threading.Thread(target=make, args=(number,)) for number in range(5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [str(number).encode() for number in made] == [root.child(name).read()]
        assert not root.child(name).put_if_absent(b"later")
    assert sorted(root.child(kind).find()) == ["0", "1", "2"]


@pytest.mark.medium
def test_a_dead_claim_does_not_hold_for_ever(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an object that nobody can make since a process was killed between its claim and the object."""
    monkeypatch.setattr(conditional, "has_condition", lambda *_: False)
    monkeypatch.setattr(conditional, "STALE_SECONDS", 1.5)
    root = RemotePath.of(str(bucket))
    root.child(".x.claims/dead").put_bytes(b"claim")
    assert root.child("x").put_if_absent(b"mine") and root.child("x").read() == b"mine"
    assert list(bucket.objects()) == ["x"]


@pytest.mark.parametrize(("place", "counts"), [(this_place(), False), ("0badcafe", True)])
def test_a_claim_of_a_process_that_was_killed_here(bucket: Any, monkeypatch: pytest.MonkeyPatch, place: str, counts: bool) -> None:
    """Prevents: a job that waits for half a minute for each claim of the one that was killed here; and one taken from the living."""
    monkeypatch.setattr(conditional, "has_condition", lambda *_: False)
    monkeypatch.setattr(conditional, "DEAD_SECONDS", -10.0)
    monkeypatch.setattr(conditional, "LIMIT_SECONDS", -1.0)
    with subprocess.Popen(["true"]) as process:
        pass
    root = RemotePath.of(str(bucket))
    root.child(f".x.claims/{place}-{process.pid}-0").put_bytes(b"claim")
    if counts:
        with pytest.raises(NotAnswering, match="others try to make it"):
            root.child("x").put_if_absent(b"mine")
    else:
        assert root.child("x").put_if_absent(b"mine")
        assert list(bucket.objects()) == ["x"]


@pytest.mark.medium
def test_a_dead_claim_counts_from_the_death(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: an object that the last request of a process just killed replaces, since its claim had been there for long."""
    monkeypatch.setattr(conditional, "has_condition", lambda *_: False)
    monkeypatch.setattr(conditional, "DEAD_SECONDS", 0.6)
    with subprocess.Popen(["true"]) as process:
        pass
    claim, plain = f"{this_place()}-{process.pid}-0", RemotePath.find

    def find(self: RemotePath, **options: bool) -> dict[str, Entry]:
        return {name: replace(entry, changed=entry.changed - 9 * (name == claim)) for name, entry in plain(self, **options).items()}

    monkeypatch.setattr(RemotePath, "find", find)
    root = RemotePath.of(str(bucket))
    root.child(f".x.claims/{claim}").put_bytes(b"claim")
    begun = time.monotonic()
    assert root.child("x").put_if_absent(b"mine")
    assert time.monotonic() - begun > 0.6


def test_a_claim_without_a_condition_makes_six_requests(bucket: Any, behind: Behind, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a shard whose claim costs more requests than its data, on a server without conditional puts."""
    proxy = behind(share=0)
    monkeypatch.setattr(conditional, "has_condition", lambda *_: False)
    root = RemotePath.of(str(bucket))
    assert root.child("x").put_if_absent(b"mine")
    assert len(proxy.requests) == 6
    before = len(proxy.requests)
    assert not root.child("x").put_if_absent(b"another's") and len(proxy.requests) == before + 1


def test_an_own_object_whose_answer_was_lost_counts(bucket: Any, behind: Behind) -> None:
    """Prevents: a claim that its holder takes for another's, so that nobody works."""
    root = RemotePath.of(str(bucket))
    assert conditional.has_condition(root._fs, root.child("x"))
    proxy = behind(share=1, kinds=[LOST], methods=["PUT"], most=0)
    root = RemotePath.of(str(bucket))
    assert conditional.has_condition(root._fs, root.child("x"))
    proxy.most = 1
    assert root.child("x").put_if_absent(b"mine") and proxy.faults == [LOST]
    assert not root.child("x").put_if_absent(b"another's")


@pytest.mark.parametrize("patience", [attempts.PATIENCE, -1.0])
def test_an_upload_in_parts_whose_end_was_not_answered(
    patience: float, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a training that ends with `nothing there` after its checkpoint was put. The answer to the last request was lost, and to
    the same request again rclone's server answers that it knows no such upload; moto's does not, so the answer is made here. And a job that
    ends so since another one, which had put the same object, ended an upload that had lasted longer than the patience with a store."""
    monkeypatch.setattr(attempts, "PATIENCE", patience)
    from botocore.exceptions import ClientError
    from s3fs import S3FileSystem
    from s3fs.errors import translate_boto_error

    put_file, calls = S3FileSystem._put_file, [0]

    async def lost_once(self: Any, local: str, remote: str, **options: Any) -> None:
        await put_file(self, local, remote, **options)
        calls[0] += 1
        if calls[0] == 1:
            answer = {"Error": {"Code": "NoSuchUpload", "Message": "gone"}, "ResponseMetadata": {"HTTPStatusCode": 404}}
            raise translate_boto_error(ClientError(answer, "CompleteMultipartUpload"))

    monkeypatch.setattr(S3FileSystem, "_put_file", lost_once)
    monkeypatch.setattr(s3, "LARGEST_PUT", 1)
    monkeypatch.delenv("AWS_MAX_ATTEMPTS")
    S3FileSystem.clear_instance_cache()
    (tmp_path / "file").write_bytes(b"hello")
    assert RemotePath.of(f"{bucket}/x").put(tmp_path / "file").md5 == HELLO
    assert calls == [2] and bucket.objects() == {"x": b"hello"}
    S3FileSystem.clear_instance_cache()


@pytest.mark.medium
def test_an_upload_in_parts_whose_begin_was_not_answered(
    bucket: Any, behind: Behind, directly: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: parts of a checkpoint that lie in the bucket unseen and are paid for, since the answer that named their upload was lost, or
    since the process that put them was killed; uploads of other objects that are ended with them."""
    from s3fs import S3FileSystem

    monkeypatch.setattr(s3, "LARGEST_PUT", 1)
    monkeypatch.setattr("s3fs.core.calculate_chunksize", lambda size, chunksize=None: 5 << 20)
    size = 11 << 20  # three parts
    (tmp_path / "file").write_bytes(bytes(size))
    directly()
    killed = [S3FileSystem().call_s3("create_multipart_upload", Bucket=bucket.name, Key=key)["UploadId"] for key in ("x", "x-1")]
    proxy = behind(share=1, kinds=[LOST], methods=["POST"], most=1)
    assert RemotePath.of(f"{bucket}/x").put(tmp_path / "file").bytes == size
    assert proxy.faults == [LOST] and next(request for request in proxy.requests if request.fault).path.endswith("uploads")
    directly()
    left = S3FileSystem().call_s3("list_multipart_uploads", Bucket=bucket.name)["Uploads"]
    assert [(upload["Key"], upload["UploadId"]) for upload in left] == [("x-1", killed[1])]


@pytest.mark.medium
def test_three_of_ten_requests_fail(bucket: Any, behind: Behind, directly: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: bytes lost or doubled where a request is sent again; a command that ends because the store had a bad minute."""
    monkeypatch.setattr(object_store, "BLOCK_BYTES", 1000)
    chance = random.Random(0)
    contents = {f"n{number}/x": chance.randbytes(chance.choice([0, 1, 999, 2500])) for number in range(6)}
    proxy = behind(stall_seconds=1.2)
    root = RemotePath.of(f"{bucket}/o")
    for name, content in contents.items():
        root.child(name).put_bytes(content)
    assert {name: entry.bytes for name, entry in root.find().items()} == {name: len(content) for name, content in contents.items()}
    assert {name: local_file(f"{bucket}/o/{name}").read_bytes() for name in contents} == contents
    assert len(proxy.faults) > 5
    directly()
    assert bucket.objects("o") == contents


def test_a_flipped_bit_of_an_input(bucket: Any, behind: Behind) -> None:
    """Prevents: a collection with another letter in it, or a run that ends where a second look would have been right."""
    content = bytes(range(256)) * 10
    for name in ("once", "twice"):
        bucket.put(name, content)
    proxy = behind(share=1, kinds=[FLIPPED], methods=["GET"], most=1)
    assert local_file(f"{bucket}/once").read_bytes() == content and proxy.faults == [FLIPPED]
    proxy.most = None
    with pytest.raises(RunFailed, match=r"/twice: the store says MD5 [0-9a-f]{32}, its bytes have [0-9a-f]{32}, fetched twice"):
        local_file(f"{bucket}/twice")


def test_a_flipped_bit_of_a_table(bucket: Any, behind: Behind, tmp_path: Path) -> None:
    """Prevents: a table refused for one bad answer."""
    content = random.Random(0).randbytes(3000)
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "part-00000-of-00001.parquet").write_bytes(content)
    record = ShardRecord("part-00000-of-00001.parquet", 1, len(content), hashlib.blake2b(content, digest_size=16).hexdigest())
    Manifest("stage", "", "f", {}, [record], {}).write(tmp_path / "table")
    address = bucket.upload(tmp_path / "table", "t")
    proxy = behind(share=1, kinds=[FLIPPED])
    proxy.paths, proxy.most = "part-", 1
    assert (local_table(address) / record.name).read_bytes() == content and proxy.faults == [FLIPPED]
    (local_table(address) / record.name).unlink()
    proxy.most = 3
    with pytest.raises(DamagedShard, match=r"is not the file that manifest\.json records .* fetched twice"):
        local_table(address)


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["silent", "down", "failing"])
def test_no_answer_is_interrupted_work(bucket: Any, behind: Behind, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Prevents: a batch queue that takes a store's bad hour for bad input and does not start the job again."""
    from s3fs import S3FileSystem

    monkeypatch.setattr(attempts, "PATIENCE", 2.0)
    behind(share=1, kinds=[REFUSED])
    with socket.socket() as silent:
        if kind != "failing":
            silent.bind(("127.0.0.1", 0))
            if kind == "silent":
                silent.listen()
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
            S3FileSystem.clear_instance_cache()
        with pytest.raises(NotAnswering, match=r"the store does not answer .*start the same command again later") as told:
            local_file(f"{bucket}/x")
    assert told.value.exit_code == EXIT_INTERRUPTED
