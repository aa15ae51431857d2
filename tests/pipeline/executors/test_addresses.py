"""Which cluster is joined, with which token, from where; without Ray."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest

from data.config.settings import Runner, load
from data.errors import UserError
from pipeline.executors.addresses import ClusterAddress, check_answers, cluster_address
from pipeline.executors.environment import environment_to_send, take_environment
from pipeline.executors.ray.authentication import settle_mode
from pipeline.executors.ray.cluster import _cluster_of_this_host, _refuse_without_node, excluded

GCS = "/ray.rpc.NodeInfoGcsService/CheckAlive"


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No address and no token but those of the test."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_USE_TLS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.parametrize(
    ("setting", "variable", "joined"),
    [
        (None, None, None),
        (None, "", None),
        (None, "10.0.0.1:6379", "RAY_ADDRESS=10.0.0.1:6379"),
        (None, "local", None),
        ("local", "10.0.0.1:6379", None),
        ("auto", None, "runner.address=auto"),
        ("auto", "10.0.0.1:6379", "RAY_ADDRESS=10.0.0.1:6379"),
        ("head:6379", "10.0.0.1:6379", "runner.address=head:6379"),
        ("ray://head:10001", None, "runner.address=ray://head:10001"),
        ("[::1]:6379", None, "runner.address=[::1]:6379"),
    ],
)
def test_which_cluster(setting: str | None, variable: str | None, joined: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a Ray job that starts a Ray of its own in its cluster, and a run that cannot have one where RAY_ADDRESS is set."""
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    found = cluster_address(Runner(address=setting))
    assert (str(found) if found else None) == joined
    assert cluster_address(Runner(address=setting, kind="local")) is None


@pytest.mark.parametrize("text", ["10.0.0.1", "head:", ":6379", "http://head:8265", "head:70000", "ray://head", "anything"])
def test_what_is_no_address(text: str) -> None:
    """Prevents: an exception of Ray, or of `int`, for an address of another service."""
    with pytest.raises(UserError, match=r"is no address of a Ray cluster: give HOST:PORT .*ray://HOST:PORT"):
        cluster_address(Runner(address=text))


def test_a_port_at_which_nobody_listens() -> None:
    """Prevents: a minute of waiting for a cluster that is not there."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        with pytest.raises(UserError, match="does not answer within 5 s"):
            check_answers(ClusterAddress(f"127.0.0.1:{held.getsockname()[1]}", "runner.address"))


class _Gcs(grpc.GenericRpcHandler):  # type: ignore[misc, unused-ignore]
    """What a cluster answers to the one call: `token` is what it wants, None for one that is open."""

    def __init__(self, token: str | None) -> None:
        self.token = token

    def service(self, call: Any) -> Any:
        def answer(request: bytes, context: Any) -> bytes:
            given = dict(call.invocation_metadata).get("authorization")
            if self.token is not None and given != f"Bearer {self.token}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
            return b""

        return grpc.unary_unary_rpc_method_handler(answer) if call.method == GCS else None


@pytest.fixture
def cluster() -> Iterator[Callable[[str | None], ClusterAddress]]:
    """Starts servers that answer as a head does, with a token or without."""
    servers = []

    def start(token: str | None) -> ClusterAddress:
        server = grpc.server(ThreadPoolExecutor(1), handlers=[_Gcs(token)])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        servers.append(server)
        return ClusterAddress(f"127.0.0.1:{port}", "runner.address")

    yield start
    for server in servers:
        server.stop(None)


def write_token(home: Path, text: str) -> Path:
    path = home / ".ray" / "auth_token"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{text}\n")
    path.chmod(0o644)
    return path


def test_the_token_that_is_found_is_used_and_made_private(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a token in the home folder that is not sent, as Ray does with an address; a token that all users of a host can read."""
    wants = cluster("right")
    path = write_token(tmp_path, "right")
    assert settle_mode(wants) == "token"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.unlink()
    other = tmp_path / "elsewhere"
    other.write_text("right")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(other))
    assert settle_mode(wants) == "token"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "right")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    assert settle_mode(wants) == "token"


def test_an_open_cluster_is_joined_though_a_token_is_here(cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a cluster without a token that cannot be joined since a token lies in the home folder; one asked for that is dropped."""
    anyone = cluster(None)
    write_token(tmp_path, "of another")
    assert settle_mode(anyone) == "disabled"
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(UserError, match=r"RAY_AUTH_MODE=token is set here, and the cluster at .* lets anyone in: make one with"):
        settle_mode(anyone)


def test_a_token_that_is_missing_or_another(cluster: Any, tmp_path: Path) -> None:
    """Prevents: twenty seconds and a ConnectionError; a secret in an error's words."""
    wants = cluster("the-right-secret")
    with pytest.raises(UserError, match=r"wants a token and none is here: copy ~/\.ray/auth_token of its head"):
        settle_mode(wants)
    write_token(tmp_path, "the-wrong-secret")
    with pytest.raises(UserError, match=rf"wants another token than that of {tmp_path}/\.ray/auth_token") as caught:
        settle_mode(wants)
    assert "secret" not in str(caught.value)


def test_the_two_ports_of_a_head(cluster: Any) -> None:
    """Prevents: a hang at a port of the cluster that is for something else."""
    address = cluster(None)
    with pytest.raises(UserError, match=r"this port of the cluster is for HOST:PORT \(6379\)"):
        settle_mode(ClusterAddress(f"ray://{address.text}", "runner.address"))


def ray_of(*here: str, latest: str | None = None) -> Any:
    """What is asked of the module ray: addresses of the nodes of this host, and what `ray start` noted last."""

    def find() -> set[str]:
        return set(here)

    find.cache_clear = lambda: None  # type: ignore[attr-defined]
    services = SimpleNamespace(find_gcs_addresses=find, find_bootstrap_address=lambda folder: latest)
    return SimpleNamespace(_private=SimpleNamespace(services=services))


def test_the_cluster_of_this_host() -> None:
    """Prevents: a run that joins the private Ray of another run, or a cluster that was stopped."""
    auto = ClusterAddress("auto", "runner.address")
    assert _cluster_of_this_host(ray_of("10.0.0.1:6379", "127.0.0.1:4711"), auto) == "10.0.0.1:6379"
    assert _cluster_of_this_host(ray_of("10.0.0.1:6379", "10.0.0.2:6379", latest="10.0.0.2:6379"), auto) == "10.0.0.2:6379"
    with pytest.raises(UserError, match=r"several clusters run on this host \(10.0.0.1:6379, 10.0.0.2:6379\)"):
        _cluster_of_this_host(ray_of("10.0.0.1:6379", "10.0.0.2:6379"), auto)
    with pytest.raises(UserError, match=r"runner.address=auto: no node of a Ray cluster runs on this host: .*ray://HEAD:10001"):
        _cluster_of_this_host(ray_of("127.0.0.1:4711", latest="10.0.0.9:6379"), auto)


def test_a_host_without_a_node_is_told_the_way() -> None:
    """Prevents: a minute of waiting and a ConnectionError on a login node."""
    address = ClusterAddress("head:6379", "runner.address")
    _refuse_without_node(ray_of("10.0.0.1:6379"), address)
    for here in ((), ("127.0.0.1:4711",)):
        with pytest.raises(UserError, match=r"no node of that cluster runs on this host: give runner.address=ray://head:10001"):
            _refuse_without_node(ray_of(*here), address)


def test_what_is_sent_of_a_folder(tmp_path: Path) -> None:
    """Prevents: a rich.py beside the packages that is imported on all hosts; runs and data sets that are sent with the code."""
    from pathspec import PathSpec

    for package in ("data", "pipeline", "retrieval"):
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").write_text("")
    others = ["rich.py", "runs", "a b.py", "[x].py", "*.py", "#.py", "!.py", "\\.py", "data2"]
    for name in others:
        (tmp_path / name).write_text("")
    spec = PathSpec.from_lines("gitignore", excluded(tmp_path))
    assert not any(spec.match_file(name) for name in (".", "data", "data/rich.py", "pipeline", "retrieval/__init__.py"))
    assert all(spec.match_file(name) for name in (*others, "runs/x", "data/__pycache__"))
    with pytest.raises(UserError, match=r"runner.working_dir=.* has no package pipeline: give the folder that holds data, pipeline"):
        (tmp_path / "pipeline" / "__init__.py").unlink()
        excluded(tmp_path)


def test_which_variables_travel(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: a worker without the credentials of the driver, or with half of them; a host's proxy or disk replaced by the driver's."""
    named = {"teacher.backend": "http", "teacher.http.url": "http://localhost:9", "teacher.http.key_variable": "MY_KEY"}
    experiment = load({"config": str(tiny_experiment(tmp_path)), **named})
    ours = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "HF_TOKEN": "c", "HF_HOME": "/driver", "ADAM_REMOTE_CACHE": "/d",
            "FSSPEC_S3_ANON": "true", "MY_KEY": "k", "HTTPS_PROXY": "p", "PATH": "/bin", "RAY_ADDRESS": "x", "HOME": "/root"}  # fmt: skip
    sent = environment_to_send(experiment, ours)
    assert sorted(ours.keys() - sent.keys()) == ["HOME", "HTTPS_PROXY", "PATH", "RAY_ADDRESS"]
    host = {"AWS_SESSION_TOKEN": "old", "AWS_PROFILE": "old", "HF_HOME": "/host", "HTTPS_PROXY": "h", "HF_TOKEN": "old"}
    take_environment(sent, host)
    assert host == {**sent, "HF_HOME": "/host", "HTTPS_PROXY": "h"}


def test_no_credentials_in_what_may_be_printed() -> None:
    """Prevents: a key in a traceback, since a dataclass prints its fields."""
    from pipeline.executors.ray.handshake import Challenge

    assert "secret" not in repr(Challenge("/store", "x", {"AWS_SECRET_ACCESS_KEY": "secret"}))
    assert os.environ.get("AWS_SECRET_ACCESS_KEY") != "secret"
