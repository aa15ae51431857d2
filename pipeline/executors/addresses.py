"""Which Ray cluster the settings and the environment name.

runner.address      RAY_ADDRESS     the run
null                not set         starts a Ray of its own
null                set             joins that one: so a Ray job, which has it set, joins its cluster
local               either          starts a Ray of its own
auto                either          joins the cluster of this host; of RAY_ADDRESS where that is set
HOST:PORT           either          joins, from a host on which a node of that cluster runs
ray://HOST:PORT     either          joins, from any host
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from data.config.settings import Runner
from data.errors import UserError

AUTO = "auto"
_CONNECT_SECONDS = 5.0
_VARIABLE = "RAY_ADDRESS"


@dataclass(frozen=True)
class ClusterAddress:
    """Where a cluster is, and who said so."""

    text: str  # auto, HOST:PORT or ray://HOST:PORT
    option: str  # runner.address or RAY_ADDRESS

    def __str__(self) -> str:
        return f"{self.option}={self.text}"

    @property
    def is_client(self) -> bool:
        """Whether it is reached through the server of Ray's clients, which needs no node on this host."""
        return self.text.startswith("ray://")

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Of an address that is not `auto`."""
        host, _, port = self.text.removeprefix("ray://").rpartition(":")
        return host.strip("[]"), int(port)


def cluster_address(settings: Runner) -> ClusterAddress | None:
    """The cluster to join; None for a Ray of our own, and for none at all. Raises UserError for what is no address."""
    text, option = settings.address, "runner.address"
    if text in (None, AUTO) and os.environ.get(_VARIABLE):
        text, option = os.environ[_VARIABLE], _VARIABLE
    if settings.kind == "local" or text is None or text == "local":
        return None
    address = ClusterAddress(text, option)
    if text != AUTO and not _is_host_and_port(text.removeprefix("ray://")):
        raise UserError(
            f"{address} is no address of a Ray cluster: give HOST:PORT (6379) on a host of the cluster, ray://HOST:PORT (10001) on any "
            "other, auto, or runner.address=local for a Ray of this run's own"
        )
    return address


def _is_host_and_port(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return bool(host) and "/" not in host and port.isdecimal() and 0 < int(port) < 65536


def check_answers(address: ClusterAddress) -> None:
    """Raises UserError where nothing answers there within seconds."""
    if address.text == AUTO:
        return
    try:
        with socket.create_connection(address.host_and_port, timeout=_CONNECT_SECONDS):
            pass
    except OSError as error:
        raise UserError(
            f"{address} does not answer within {_CONNECT_SECONDS:.0f} s ({error}); start the cluster with `ray start --head`, or give "
            "runner.address=local for a Ray of this run's own"
        ) from error
