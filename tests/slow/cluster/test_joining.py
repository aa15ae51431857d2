"""Runs on clusters of several hosts: who may join from where, which hosts get work, and what of a run's secrets is left behind."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.hosts import Host, Hosts

ROOT = Path(__file__).parents[3]
SECRETS = {"AWS_ACCESS_KEY_ID": "key-id-7f3a91", "AWS_SECRET_ACCESS_KEY": "secret-of-s3-55d0c2", "HF_TOKEN": "hf_secret_of_the_hub_81b7"}


def run_on(host: Host, config: Path, *settings: str, **variables: str) -> Any:
    return host.run("prep", "run", f"config={config}", "runner.kind=ray", *settings, timeout=600, **variables)


def said(done: Any) -> str:
    return " ".join((done.stdout + done.stderr).split())


def test_hosts_that_would_write_other_rows_or_none_are_left_out_by_name(
    hosts: Hosts, finished: Any, tiny_experiment: Callable[..., Path], parquet_files: Callable[[Path], dict[str, bytes]]
) -> None:
    """Prevents: vectors of an older version under the new one's name; a host that ingests onto its own disk and reports success; a
    traceback that does not say on which host the store is read-only."""
    config = tiny_experiment(hosts.shared)
    store = hosts.shared / "store"
    store.mkdir()
    older = hosts.shared / "older"
    for package in ("data", "pipeline", "retrieval"):
        shutil.copytree(ROOT / package, older / package, ignore=shutil.ignore_patterns("__pycache__"))
    pooling = older / "retrieval" / "models" / "pooling.py"
    pooling.write_text(pooling.read_text() + "\nOLDER = True\n")
    hosts.boot(1)
    hosts.start_ray(1, cpus=0)
    causes = {2: "its code is not the driver's", 3: f"{store} is not the driver's folder", 4: "Read-only file system"}
    hosts.boot(2, PYTHONPATH=str(older))
    hosts.boot(3, setup=f"mount -t tmpfs none {store}")
    hosts.boot(4, setup=f"mount --bind {store} {store} && mount -o remount,ro,bind {store}")
    for number in causes:
        hosts.start_ray(number)
    at = f"runner.address={hosts.address()}"
    done = run_on(hosts[1], config, at)
    assert done.returncode != 0, said(done)
    for number, cause in causes.items():
        assert hosts[number].name in said(done) and cause in said(done), said(done)
    assert not list(store.rglob("*.parquet"))

    hosts.boot(5)
    hosts.start_ray(5)
    done = run_on(hosts[1], config, at)
    assert done.returncode == 0, said(done)
    assert parquet_files(store) == parquet_files(finished.store)


def test_every_way_to_a_cluster_with_a_token(
    hosts: Hosts, finished: Any, tiny_experiment: Callable[..., Path], parquet_files: Callable[[Path], dict[str, bytes]]
) -> None:
    """Prevents: a minute and a ConnectionError on a login node or without the token; a run in a Ray job that cannot start."""
    config = tiny_experiment(hosts.shared)
    head, login = hosts.boot(1, RAY_AUTH_MODE="token"), hosts.boot(2)
    done = head.run("ray", "get-auth-token", "--generate")
    assert done.returncode == 0, done.stderr
    hosts.start_ray(1, cpus=2)
    client = f"runner.address=ray://{head.address}:10001"

    for setting, words in (
        (f"runner.address={hosts.address()}", f"no node of that cluster runs on this host: give runner.address=ray://{head.address}:10001"),
        ("runner.address=auto", "no node of a Ray cluster runs on this host"),
        (client, "wants a token and none is here: copy ~/.ray/auth_token of its head"),
    ):
        began = time.monotonic()
        done = run_on(login, config, setting)
        assert done.returncode == 2 and words in said(done) and "Traceback" not in said(done), said(done)
        assert time.monotonic() - began < 180
    (login.folder / "home" / ".ray").mkdir()
    shutil.copy(head.folder / "home" / ".ray" / "auth_token", login.folder / "home" / ".ray" / "auth_token")

    done = run_on(head, config, "stage=ingest", RAY_ADDRESS=hosts.address(), RAY_AUTH_MODE="")  # as in a Ray job
    assert done.returncode == 0, said(done)
    done = run_on(head, config, "stage=embed", "runner.address=auto")
    assert done.returncode == 0, said(done)
    done = run_on(login, config, client, f"runner.working_dir={ROOT}")
    assert done.returncode == 0, said(done)
    assert parquet_files(hosts.shared / "store") == parquet_files(finished.store)


def _listening(host: Host) -> Iterator[str]:
    """Local addresses, as the kernel writes them, at which a process of the host's network listens."""
    for name in ("tcp", "tcp6"):
        for line in Path(f"/proc/{host.init}/net/{name}").read_text().splitlines()[1:]:
            local, state = line.split()[1], line.split()[3]
            if state == "0A":
                yield local.rpartition(":")[0]


def test_a_run_of_its_own_is_heard_by_nobody_and_leaves_no_secret(hosts: Hosts, tiny_experiment: Callable[..., Path]) -> None:
    """Prevents: ports of a lone run that other hosts reach; a token that turns authentication on for the next cluster of this host; keys in
    the store, the output, or Ray's logs."""
    config = tiny_experiment(hosts.shared)
    host = hosts.boot(1)
    process = host.start("prep", "run", f"config={config}", "runner.kind=ray", "runner.workers=1", log=hosts.shared / "log", **SECRETS)
    heard: set[str] = set()
    while process.poll() is None:
        heard |= set(_listening(host))
        time.sleep(0.2)
    log = (hosts.shared / "log").read_text()
    assert process.returncode == 0, log
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert heard and heard <= loopback
    assert not (host.folder / "home" / ".ray").exists()
    for path in (path for folder in (hosts.shared, host.folder) for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert not [name for name, secret in SECRETS.items() if secret.encode() in content], path
