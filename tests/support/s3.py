"""An object store on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

KEY, SECRET = "key", "secret"


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """A server of the S3 protocol on a free port of this machine."""
    import logging

    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


def s3_variables(endpoint: str, *, cache: Path) -> dict[str, str]:
    """The environment of commands whose object store is at this endpoint, and whose copies lie in the folder `cache`."""
    nowhere = "/no/such/file"
    return {
        "AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true", "AWS_CONFIG_FILE": nowhere, "AWS_SHARED_CREDENTIALS_FILE": nowhere,
        "ADAM_REMOTE_CACHE": str(cache),
    }  # fmt: skip


def new_bucket() -> Bucket:
    """An empty bucket at the endpoint of this process's environment."""
    import uuid

    from s3fs import S3FileSystem

    made = Bucket(f"bucket-{uuid.uuid4().hex[:12]}")
    S3FileSystem().mkdir(made.name)
    return made


@dataclass(frozen=True)
class Bucket:
    """An empty bucket, filled and looked at by s3fs alone, not by the code under test. `str(bucket)` is its address."""

    name: str

    def __str__(self) -> str:
        return f"s3://{self.name}"

    def put(self, key: str, content: bytes) -> str:
        """Make an object; returns its address."""
        from s3fs import S3FileSystem

        S3FileSystem().pipe_file(f"{self}/{key}", content)
        return f"{self}/{key}"

    def upload(self, folder: Path, key: str) -> str:
        """Make an object of every file in a folder; returns the address of them all."""
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                self.put(f"{key}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return f"{self}/{key}"

    def objects(self, below: str = "") -> dict[str, bytes]:
        """All objects by their keys, relative to the start `below`."""
        from s3fs import S3FileSystem

        start, store = f"{self.name}/{below}".rstrip("/"), S3FileSystem()
        store.invalidate_cache()
        return {key.removeprefix(f"{start}/"): store.cat_file(key) for key in store.find(start)}


@pytest.fixture
def bucket(s3_endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket for this process and those that it starts; the cache of copies is tmp_path/cache."""
    for name, value in s3_variables(s3_endpoint, cache=tmp_path / "cache").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    return new_bucket()
