"""What an error of Ray means for the run: a death, a fault of a node, or one of the task."""

from __future__ import annotations

import platform
import re
from typing import Any

from data.command import in_words
from data.errors import DamagedShard, NotAnswering, UserError, first_line
from data.files.kept_folders import FolderGone
from pipeline.executors.ray.cluster import failed, last_line
from pipeline.executors.ray.scheduling import Event, Fatal, Lost, NodeFault, StartFailed

NO_CLUSTER = "Ray does not answer any more: {cause}; what is finished is kept, start the same command again when the cluster is there"


def of_a_task(ray: Any, worker: int, error: Exception, *, name: str, host: str) -> Event:
    """The event of a task that ended in an exception on `host`. Raises NotAnswering where it is Ray's own."""
    known = ray.exceptions
    raise_if_ray_is_gone(ray, error)
    if isinstance(error, known.RayTaskError):
        cause = error.cause
        if isinstance(cause, OSError | ImportError):
            words = in_words(cause) if isinstance(cause, OSError) else first_line(cause)
            return NodeFault(worker, kind_of(cause), words, failed(name, error, host=host))
        return Fatal(worker, failed(name, error, host=host))
    if isinstance(
        error, known.RayActorError | known.WorkerCrashedError | known.NodeDiedError | known.OutOfMemoryError | known.ObjectLostError
    ):
        return Lost(worker, last_line(error), sure=isinstance(error, known.ActorDiedError | known.OutOfMemoryError))
    return Fatal(worker, failed(name, error, host=host))


def of_a_refused_task(worker: int, error: UserError, *, name: str, host: str) -> Event:
    """The event of a task that a worker refused, or that failed there in a way that it has words for."""
    if host != platform.node():
        error.args = (f"{error} (on {host})", *error.args[1:])
    if isinstance(error, FolderGone) or (isinstance(error, DamagedShard) and error.path is None):
        return NodeFault(worker, kind_of(error), str(error), error)
    return Fatal(worker, error)


def of_a_start(ray: Any, worker: int, actor: Any, error: Exception) -> Event:
    """The event of a worker that ended before it answered."""
    raise_if_ray_is_gone(ray, error)
    node, host = place_of(ray, actor, error)
    return StartFailed(worker, node, host, last_line(error))


def kind_of(error: BaseException) -> str:
    """The same for the same fault on two hosts, whatever paths its words name."""
    return f"{type(error).__name__} {getattr(error, 'errno', None)}"


def raise_if_ray_is_gone(ray: Any, error: Exception) -> None:
    """Raises NotAnswering for an error that tells of the cluster, and not of a task."""
    if isinstance(error, ray.exceptions.RpcError | ray.exceptions.LocalRayletDiedError | ConnectionError) and not isinstance(
        error, ray.exceptions.RayTaskError
    ):
        raise NotAnswering(NO_CLUSTER.format(cause=first_line(error))) from error


def place_of(ray: Any, actor: Any, error: Exception) -> tuple[str, str]:
    """(id, host) of the node on which an actor failed; "" where it is not known."""
    node = address = ""
    try:
        where = ray._private.state.actors(actor_id=actor._actor_id.hex())["Address"]
        node, address = where["NodeID"], where["IPAddress"]
    except Exception:  # no state behind a Ray client, or no such actor any more: Ray's words name the address
        found = re.search(r"\bip[=:]\s*([0-9a-fA-F.:]+)", str(error))
        address = found[1] if found else ""
    for one in ray.nodes():
        if one["Alive"] and (one["NodeID"] == node or (not node and one["NodeManagerAddress"] == address)):
            return one["NodeID"], one["NodeManagerHostname"]
    return node, address or "a node"
