"""Infinity (infinity-emb of PyPI), a server of rerankers that is not of this project, in an environment of its own.

It is installed once, into .venv-infinity beside .venv: it wants older versions of what the project uses, all but torch, which it takes
from there.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.environments import installed

REQUIREMENTS = ["infinity-emb[server,torch]==0.0.78", "transformers<5", "numpy<2", "click<8.2"]
NAME = "tiny/reranker"


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="session")
def infinity(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Path], tuple[str, str]]]:
    """`infinity(folder)`: address and model's name of a server of the cross-encoder in the folder, stopped with the last test."""
    programs = installed(".venv-infinity", REQUIREMENTS)
    with contextlib.ExitStack() as stopped:
        started: dict[Path, str] = {}

        def serve(folder: Path) -> tuple[str, str]:
            if folder not in started:
                port = free_port()
                log = tmp_path_factory.mktemp("infinity") / "log"
                words = ["v2", "--model-id", folder, "--served-model-name", NAME, "--host", "127.0.0.1", "--port", port]
                words += ["--engine", "torch", "--device", "cpu", "--dtype", "float32", "--no-bettertransformer", "--no-model-warmup"]
                own = {
                    "DO_NOT_TRACK": "1",
                    "INFINITY_ANONYMOUS_USAGE_STATS": "0",
                    "HF_HUB_OFFLINE": "1",
                    "PYTHONPATH": "",
                    "PYTHONDONTWRITEBYTECODE": "1",
                }
                with log.open("w") as out:
                    command = [programs / "infinity_emb", *map(str, words)]
                    process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **own}, cwd=log.parent)
                stopped.callback(process.wait, timeout=30)
                stopped.callback(process.terminate)
                started[folder] = f"http://127.0.0.1:{port}"
                wait_for(f"{started[folder]}/health", process, log)
            return started[folder], NAME

        yield serve


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            opener.open(url, timeout=5)
            return
        assert process.poll() is None, log.read_text()[-3000:]
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-3000:])
