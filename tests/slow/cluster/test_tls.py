"""A cluster whose hosts speak TLS: runs to their very end by address and by name, and what is said to who lacks the certificates."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.certificates import HAVE_OPENSSL, Authority
from support.children import program
from support.hosts import Host, Hosts

pytestmark = pytest.mark.skipif(not HAVE_OPENSSL, reason="certificates are made by openssl")

HEAD, OTHER = "head.adam.test", "other.adam.test"  # names of the head; the certificate does not know the second
REFUSAL_SECONDS = 180.0  # with the start of the command on a busy machine; Ray itself would try for longer, or without end


@pytest.fixture
def authority(hosts: Hosts) -> Authority:
    return Authority(hosts.shared / "authority")


@pytest.fixture
def tls_hosts(hosts: Hosts, authority: Authority) -> Iterator[Hosts]:
    """A head without work, two workers that joined it by name, and a login node, 4. Names are those of a name server on the head."""
    resolv = hosts.folder / "resolv.conf"
    setup = f"mount --bind {resolv} /etc/resolv.conf"
    resolv.touch()
    for number in (1, 2, 3, 4):
        host = hosts.boot(number, setup=setup)
        names = [f"IP:{host.address}", "IP:127.0.0.1", *([f"DNS:{HEAD}"] if number == 1 else [])]
        host.variables |= authority.variables(host.name, names) | {"RAY_AUTH_MODE": "token"}
    resolv.write_text(f"nameserver {hosts[1].address}\n")
    server = hosts[1].start(*program("name_server", hosts[1].address, f"{HEAD}={hosts[1].address}", f"{OTHER}={hosts[1].address}"))
    assert server.stdout and server.stdout.readline() == "ready\n"
    done = hosts[1].run("ray", "get-auth-token", "--generate")
    assert done.returncode == 0, done.stderr
    for number in (2, 3, 4):
        shutil.copytree(hosts[1].folder / "home" / ".ray", hosts[number].folder / "home" / ".ray")
    hosts.start_ray(1, cpus=0)
    for number in (2, 3):
        hosts.start_ray(number, address=f"{HEAD}:6379")
    yield hosts
    server.kill()


def prep(host: Host, config: Path, address: str, **variables: str) -> Any:
    return host.run("prep", "run", f"config={config}", "runner.kind=ray", f"runner.address={address}", timeout=600, **variables)


def said(done: Any) -> str:
    return " ".join((done.stdout + done.stderr).split())


def test_runs_end_by_address_and_by_name_and_strangers_are_told(
    tls_hosts: Hosts, finished: Any, tiny_experiment: Callable[..., Path], parquet_files: Callable[[Path], dict[str, bytes]]
) -> None:  # fmt: skip
    """Prevents: a run that TLS lets in and that hangs at its end, or ends in other bytes; a minute of Ray's tries, and no word of what is
    wrong, where a certificate is missing, of another authority, or for another name."""
    head, worker, login = tls_hosts[1], tls_hosts[2], tls_hosts[4]
    expected = parquet_files(finished.store)
    ways = {
        "client-by-name": (login, f"ray://{HEAD}:10001"),
        "client-by-address": (login, f"ray://{head.address}:10001"),
        "node-by-name": (worker, f"{HEAD}:6379"),
        "node-by-address": (worker, tls_hosts.address()),
    }
    for name, (host, address) in ways.items():
        config = tiny_experiment(tls_hosts.shared / name)
        done = prep(host, config, address)
        assert done.returncode == 0, f"{name}: {said(done)}"
        assert parquet_files(config.parent / "store") == expected, name

    config = tiny_experiment(tls_hosts.shared / "refused")
    stranger = Authority(tls_hosts.shared / "stranger").variables("stranger", [f"IP:{login.address}"])
    half = {**stranger, "RAY_TLS_CA_CERT": login.variables["RAY_TLS_CA_CERT"]}  # knows the cluster, and is not known by it
    for host, variables, words in (
        (HEAD, {"RAY_USE_TLS": "0"}, "Where the cluster has TLS, set RAY_USE_TLS=1"),
        (HEAD, stranger, "its certificate is not of the authority RAY_TLS_CA_CERT"),
        (HEAD, half, "that does not accept RAY_TLS_SERVER_CERT"),
        (OTHER, {}, f"its certificate does not name {OTHER}"),
        (HEAD, {"RAY_TLS_SERVER_CERT": ""}, "RAY_USE_TLS is set, and RAY_TLS_SERVER_CERT is not"),
        (HEAD, {"RAY_TLS_SERVER_KEY": "/no/such/file"}, "RAY_TLS_SERVER_KEY cannot be read: /no/such/file"),
        (HEAD, {"RAY_TLS_SERVER_KEY": login.variables["RAY_TLS_CA_CERT"]}, "is no key or certificate in PEM"),
    ):
        began = time.monotonic()
        done = prep(login, config, f"ray://{host}:10001", **variables)
        assert done.returncode == 2 and words in said(done) and "Traceback" not in said(done), said(done)
        assert time.monotonic() - began < REFUSAL_SECONDS, words
    done = prep(worker, config, f"{HEAD}:6379", **stranger)
    assert done.returncode == 2 and "its certificate is not of the authority" in said(done), said(done)
