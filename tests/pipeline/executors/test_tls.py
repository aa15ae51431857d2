"""What is said where a server of gRPC that wants certificates, as a Ray cluster with TLS does, is asked with other ones."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.certificates import HAVE_OPENSSL, Authority

from data.errors import UserError
from pipeline.executors.addresses import ClusterAddress
from pipeline.executors.ray.authentication import settle_mode

pytestmark = [pytest.mark.medium, pytest.mark.skipif(not HAVE_OPENSSL, reason="certificates are made by openssl")]

HERE = ["IP:127.0.0.1"]


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], dict[str, str]]:
    """Of a host of the cluster, and of another cluster's."""
    folder = tmp_path_factory.mktemp("certificates")
    return Authority(folder / "one").variables("host", HERE), Authority(folder / "other").variables("host", HERE)


@pytest.fixture(scope="module")
def ports(variables: tuple[dict[str, str], dict[str, str]]) -> Iterator[tuple[int, int]]:
    """Where it answers with TLS, and where without."""
    import grpc

    key, certificate, authority = (Path(variables[0][f"RAY_TLS_{name}"]).read_bytes() for name in ("SERVER_KEY", "SERVER_CERT", "CA_CERT"))
    server = grpc.server(ThreadPoolExecutor(2))
    credentials = grpc.ssl_server_credentials([(key, certificate)], root_certificates=authority, require_client_auth=True)
    open_at = server.add_secure_port("127.0.0.1:0", credentials), server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield open_at
    server.stop(None)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("right", "this port of the cluster is for"),  # it answers, though it is no Ray
        ("none", "Where the cluster has TLS, set RAY_USE_TLS=1"),
        ("other authority", "no TLS with what answers there: its certificate is not of the authority RAY_TLS_CA_CERT=/"),
        ("other certificate", "that does not accept RAY_TLS_SERVER_CERT=/"),
        ("other name", "its certificate does not name localhost"),
        ("plain cluster", "it speaks without TLS; start Ray with RAY_USE_TLS=1 on every host, or leave it out here"),
        ("no PEM", "is no key or certificate in PEM"),
        ("not set", "RAY_USE_TLS is set, and RAY_TLS_SERVER_KEY is not"),
        ("no file", "RAY_TLS_CA_CERT cannot be read: /no/such/file: No such file"),
    ],
)
def test_what_is_wrong_is_told(
    case: str, words: str, ports: tuple[int, int], variables: tuple[dict[str, str], dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: `failed to connect to all addresses`, or a traceback, after which somebody turns TLS off."""
    own, others = variables
    given = {
        "none": {"RAY_USE_TLS": "0"},
        "other authority": others,
        "other certificate": {**others, "RAY_TLS_CA_CERT": own["RAY_TLS_CA_CERT"]},
        "no PEM": {**own, "RAY_TLS_SERVER_KEY": own["RAY_TLS_CA_CERT"]},
        "not set": {**own, "RAY_TLS_SERVER_KEY": ""},
        "no file": {**own, "RAY_TLS_CA_CERT": "/no/such/file"},
    }.get(case, own)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    host, port = "localhost" if case == "other name" else "127.0.0.1", ports[case == "plain cluster"]
    with pytest.raises(UserError) as refused:
        settle_mode(ClusterAddress(f"ray://{host}:{port}", "runner.address"))
    assert words in str(refused.value)
