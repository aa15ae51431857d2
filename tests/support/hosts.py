"""Several hosts on one machine: each with its own network, processes, mounts, home and Ray, and one folder that all see.

They are namespaces joined by a bridge, so that one can be cut off or powered off in an instant; only root makes such. What needs several
nodes, and not hosts, has several raylets on one: `tests/slow/cluster/test_lost_nodes.py`.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.children import environment

AS_ROOT = hasattr(os, "geteuid") and os.geteuid() == 0 and all(map(shutil.which, ("ip", "nsenter", "unshare")))
_BIN = Path(sys.executable).parent
_PORT = 6379
_MARK = "ADAM_TEST_HOST"


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, capture_output=True, text=True)


@dataclass
class Host:
    """One host. `run` and `start` run a command there; it is killed by `power_off`."""

    name: str
    address: str
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    init: int = 0  # the first process of its namespace, as this machine numbers it

    def _environment(self, **more: str) -> dict[str, str]:
        """Little of this process's: a host is another machine."""
        passed = {key: os.environ[key] for key in ("PATH", "LANG", "TOKENIZERS_PARALLELISM") if key in os.environ}
        passed["PYTHONPATH"] = environment()["PYTHONPATH"]
        own = {
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder / "tmp"),
            _MARK: self.mark,
            "OMP_NUM_THREADS": "1",
            "RAY_worker_niceness": "0",
        }
        own |= {"RAY_TMPDIR": str(self.folder / "ray"), "PATH": f"{_BIN}:{passed.get('PATH', '/usr/bin:/bin')}"}
        return {**passed, **own, **self.variables, **more}

    @property
    def mark(self) -> str:
        """What the processes of this host are known by."""
        return f"{self.folder.parent.name}.{self.name}"

    def _inside(self, args: Sequence[object]) -> list[str]:
        words = [str(arg) for arg in args]
        return ["nsenter", "-t", str(self.init), "-n", "-m", "-u", "-p", "--", *words]

    def run(self, *args: object, timeout: float = 300, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command there to its end."""
        return subprocess.run(
            self._inside(args),
            env=self._environment(**variables),
            capture_output=True,
            text=True,
            timeout=timeout,
            stdin=subprocess.DEVNULL,
        )

    def start(self, *args: object, log: Path | None = None, **variables: str) -> subprocess.Popen[str]:
        """Start a command there; its output goes to `log`, else to a pipe."""
        with contextlib.ExitStack() as stack:
            out: Any = stack.enter_context(open(log, "w", encoding="utf-8")) if log else subprocess.PIPE
            return subprocess.Popen(
                self._inside(args), env=self._environment(**variables), stdout=out, stderr=subprocess.STDOUT, text=True,
                stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip

    def processes(self, title: str = "") -> list[int]:
        """Its processes, as this machine numbers them, whose command line holds `title`."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and f"{_MARK}={self.mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    found += [int(entry.name)] * (title in line)
        return found

    def workers(self) -> list[int]:
        """The processes of the actors that build shards."""
        return self.processes("ray::RayWorker")

    def kill(self, process: int) -> None:
        """SIGKILL one of its processes, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    def power_off(self) -> None:
        """SIGKILL everything on it, at once where it has a namespace of its own."""
        for process in ([self.init] if self.init else []) + self.processes():
            self.kill(process)

    def hide(self, folder: Path) -> None:
        """Have it see an empty folder in the place of one, as where a file system is not mounted."""
        self._mounts("mount", "-t", "tmpfs", "none", folder)

    def show(self, folder: Path) -> None:
        """Have it see the folder again."""
        self._mounts("umount", "--lazy", folder)

    def _mounts(self, *args: object) -> None:
        """Not by way of `run`, which works in a folder that may be the one that is hidden. `umount` reads its /proc."""
        subprocess.run(
            ["nsenter", "-t", str(self.init), "-m", "-p", "--", *map(str, args)], check=True, capture_output=True, text=True, cwd="/"
        )

    def pause(self, processes: Sequence[int]) -> None:
        """SIGSTOP some of its processes."""
        for process in processes:
            os.kill(process, signal.SIGSTOP)

    def resume(self, processes: Sequence[int]) -> None:
        """SIGCONT them."""
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGCONT)


class Hosts:
    """Hosts by number from 1, and the folder `shared` that all of them see under one path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shared = folder / "shared"
        self.shared.mkdir(parents=True)
        self._tag = secrets.token_hex(2)
        self._net = 64 + secrets.randbelow(60)  # 10.<net>.0.0/24, so that two test runs do not meet
        self._hosts: dict[int, Host] = {}
        self._namespaces: list[str] = []
        self._switch = f"sw{self._tag}"
        self._add_namespace(self._switch)
        _ip("netns", "exec", self._switch, "ip", "link", "add", "br0", "type", "bridge")
        _ip("netns", "exec", self._switch, "ip", "link", "set", "br0", "up")

    def _add_namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._namespaces.append(name)
        _ip("netns", "exec", name, "ip", "link", "set", "lo", "up")

    def __getitem__(self, number: int) -> Host:
        return self._hosts[number]

    def boot(self, number: int, *, setup: str = "true", **variables: str) -> Host:
        """Power a host on. `setup` is a shell command in its namespace of mounts, before anything runs; `variables` are its own."""
        name = f"h{self._tag}-{number}"
        folder = self.folder / name
        for below in ("home", "tmp", "ray"):
            (folder / below).mkdir(parents=True, exist_ok=True)
        address = f"10.{self._net}.0.{10 + number}"
        host = Host(name, address, folder, dict(variables))
        self._hosts[number] = host
        if name not in self._namespaces:
            self._plug_in(number, name, address)
        host.init = _first_process(host, setup)
        return host

    def _plug_in(self, number: int, name: str, address: str) -> None:
        self._add_namespace(name)
        ours, theirs = f"v{self._tag}{number}", f"b{self._tag}{number}"
        _ip("link", "add", ours, "type", "veth", "peer", "name", theirs)
        _ip("link", "set", ours, "netns", name)
        _ip("link", "set", theirs, "netns", self._switch)
        _ip("netns", "exec", self._switch, "ip", "link", "set", theirs, "master", "br0", "up")
        for args in (("link", "set", ours, "name", "eth0"), ("addr", "add", f"{address}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
            _ip("netns", "exec", name, "ip", *args)

    def cut_off(self, number: int, *, healed: bool = False) -> None:
        """Take a host's network away, or give it back."""
        theirs = f"b{self._tag}{number}"
        _ip("netns", "exec", self._switch, "ip", "link", "set", theirs, "up" if healed else "down")

    def start_ray(self, number: int, *, cpus: int = 1, head: int = 1, address: str = "", **variables: str) -> Host:
        """Start Ray on a host; that of number `head` is the head, which the others join, by `address` where one is given."""
        host = self._hosts[number]
        words = ["ray", "start", f"--node-ip-address={host.address}", f"--num-cpus={cpus}", "--object-store-memory=100000000"]
        words += ["--disable-usage-stats", "--include-dashboard=false"] if number == head else []
        words += ["--head", f"--port={_PORT}"] if number == head else [f"--address={address or self.address(head)}"]
        done = host.run(*words, timeout=600, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return host

    def address(self, head: int = 1) -> str:
        """HOST:PORT of a cluster."""
        return f"{self._hosts[head].address}:{_PORT}"

    def close(self) -> None:
        """Power all off, and take their networks away."""
        for host in self._hosts.values():
            host.power_off()
        for name in reversed(self._namespaces):
            with contextlib.suppress(subprocess.CalledProcessError):
                _ip("netns", "del", name)


def _first_process(host: Host, setup: str) -> int:
    """Start the host's namespaces of mounts, processes and names. Returns the process that all of them end with."""
    script = (
        f"mount --make-rprivate / && mount -t proc proc /proc && hostname {host.name} && "
        f"mount -t tmpfs -o size=1500m shm /dev/shm && {{ {setup}; }} && echo ready && exec sleep infinity"
    )
    words = ["ip", "netns", "exec", host.name, "unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "bash", "-c", script]
    environment = {**os.environ, _MARK: host.mark}
    started = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True)
    assert started.stdout is not None
    said = started.stdout.readline()
    assert said == "ready\n", said + started.stdout.read()
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    return int(children[0])


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Hosts that are gone, with all their files, when the test is."""
    if not AS_ROOT:
        pytest.skip("hosts are network namespaces, which only root makes")
    short = Path(tempfile.mkdtemp(prefix="adam-hosts-", dir="/tmp"))  # for sockets, whose paths may have 107 characters
    made = Hosts(short / "hosts")
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(short, ignore_errors=True)


def wait_for(holds: Any, *, seconds: float, what: str = "it") -> None:
    """Wait until a condition holds. Raises AssertionError when the time is up."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what} did not come within {seconds:.0f} s"
        time.sleep(0.1)
