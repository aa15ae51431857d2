"""TLS as the user has it set for Ray, and what is wrong where a cluster does not answer with it, or without."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from data.command import in_words
from data.errors import UserError
from pipeline.executors.addresses import ClusterAddress

USE_TLS = "RAY_USE_TLS"
_FILES = ("RAY_TLS_SERVER_KEY", "RAY_TLS_SERVER_CERT", "RAY_TLS_CA_CERT")
# By words of gRPC's answer, or of OpenSSL's, in it.
_FAULTS = {
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not of the authority RAY_TLS_CA_CERT={ca}; copy the cluster's to this host",
    "Hostname Verification": "its certificate does not name {host}; give an address that it names, or add this one (subjectAltName)",
    "WRONG_VERSION_NUMBER": "it speaks without TLS; start Ray with RAY_USE_TLS=1 on every host, or leave it out here",
    "security handshaker": "a file of RAY_TLS_SERVER_KEY, RAY_TLS_SERVER_CERT or RAY_TLS_CA_CERT is no key or certificate in PEM",
    # Under TLS 1.3 a refused certificate is a connection that ends; so may others.
    "Socket closed": "it ends the connection, as one does that does not accept RAY_TLS_SERVER_CERT={certificate}; take one that the "
    "cluster's own authority has signed, and look at the port (6379, of ray:// 10001)",
}  # fmt: skip


def is_used() -> bool:
    """Whether Ray speaks TLS in this process."""
    return os.environ.get(USE_TLS, "0").lower() in ("1", "true")


def channel(grpc: Any, address: ClusterAddress) -> Any:
    """A channel of gRPC to HOST:PORT, encrypted where the user has it so. Raises UserError for a file that is not there."""
    text = address.text.removeprefix("ray://")
    if not is_used():
        return grpc.insecure_channel(text)
    key, certificate, authority = map(_content, _FILES)
    return grpc.secure_channel(text, grpc.ssl_channel_credentials(authority, key, certificate))


def _content(variable: str) -> bytes:
    if not os.environ.get(variable):
        raise UserError(f"{USE_TLS} is set, and {variable} is not: Ray wants its file")
    try:
        return Path(os.environ[variable]).read_bytes()
    except OSError as error:
        raise UserError(f"{variable} cannot be read: {in_words(error)}") from error


def why_silent(address: ClusterAddress, details: str) -> str:
    """What is wrong with a cluster that takes connections and does not answer, from gRPC's words."""
    if not is_used():
        return (
            "what answers there does not speak as Ray does; is the port right (6379, of ray:// 10001)? Where the cluster has TLS, set "
            f"{USE_TLS}=1 and {', '.join(_FILES)} here, too"
        )
    values = {"host": address.host_and_port[0], "ca": os.environ[_FILES[2]], "certificate": os.environ[_FILES[1]]}
    fault = next((fault for word, fault in _FAULTS.items() if word in details), "what answers there does not speak as Ray does ({details})")
    return f"no TLS with what answers there: {fault.format(**values, details=details[:200])}"
