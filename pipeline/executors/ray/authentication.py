"""Whether a cluster asks for a token, and whether the one that is here is the right one: asked of the cluster, in milliseconds.

Ray itself takes the token that it finds only for `auto`, and tries for 20 s before it says that a token is missing. A token is looked for
where Ray looks: RAY_AUTH_TOKEN, the file of RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token. It is in no message.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError
from pipeline.executors.addresses import ClusterAddress
from pipeline.executors.ray.tls import channel, why_silent

MODE = "RAY_AUTH_MODE"
TOKEN = "RAY_AUTH_TOKEN"
TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
_ANSWER_SECONDS = 5.0
# A call that changes nothing, of the GCS and of the server of Ray's clients.
_CALLS = {False: "/ray.rpc.NodeInfoGcsService/CheckAlive", True: "/ray.rpc.RayletDriver/ClusterInfo"}
_REMEDY = (
    "make one with `ray get-auth-token --generate`, put the same file on all hosts, and export RAY_AUTH_MODE=token there before `ray start`"
)


@dataclass(frozen=True)
class _Token:
    text: str
    source: str  # where it was found, for people


def settle_mode(address: ClusterAddress) -> str:
    """`token` or `disabled`: with what RAY_AUTH_MODE the cluster is joined.

    Raises UserError, with what differs: the cluster wants a token and none is here, or another; one is asked for and the cluster has none;
    what answers is no Ray.
    """
    asked = os.environ.get(MODE, "").lower()
    if _is_let_in(address, token=None):
        if asked == "token":
            raise UserError(f"RAY_AUTH_MODE=token is set here, and the cluster at {address} lets anyone in: {_REMEDY}")
        return "disabled"
    token = _found()
    if token is None:
        raise UserError(
            f"the cluster at {address} wants a token and none is here: copy ~/.ray/auth_token of its head to this host, "
            "or give RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH"
        )
    if not _is_let_in(address, token=token.text):
        raise UserError(
            f"the cluster at {address} wants another token than that of {token.source}: copy ~/.ray/auth_token of its head to this host"
        )
    return "token"


def _found() -> _Token | None:
    """The token that Ray would take."""
    if text := os.environ.get(TOKEN, "").strip():
        return _Token(text, TOKEN)
    path = Path(os.environ.get(TOKEN_PATH) or Path.home() / ".ray" / "auth_token")
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    _make_private(path)
    return _Token(text, str(path)) if text else None


def _make_private(path: Path) -> None:
    """Ray writes the file readable for all."""
    status = path.stat()
    if hasattr(os, "getuid") and status.st_uid == os.getuid() and stat.S_IMODE(status.st_mode) & 0o077:
        path.chmod(0o600)


def _is_let_in(address: ClusterAddress, *, token: str | None) -> bool:
    """Whether a call with this token is answered."""
    import grpc

    asked = channel(grpc, address)
    call = asked.unary_unary(_CALLS[address.is_client], request_serializer=bytes, response_deserializer=bytes)
    metadata = [("authorization", f"Bearer {token}")] if token is not None else None
    try:
        call(b"", timeout=_ANSWER_SECONDS, metadata=metadata)
    except grpc.RpcError as error:
        code = error.code()
        if code is grpc.StatusCode.UNAUTHENTICATED:
            return False
        if code is grpc.StatusCode.UNIMPLEMENTED:
            other = "HOST:PORT (6379)" if address.is_client else "ray://HOST:PORT (10001)"
            raise UserError(f"{address}: this port of the cluster is for {other}; give the one or the other") from error
        if code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
            raise UserError(f"{address}: {why_silent(address, error.details() or '')}") from error
    finally:
        asked.close()
    return True
