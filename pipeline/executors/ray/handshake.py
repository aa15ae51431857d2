"""What a worker says of itself before it gets a task, and why it gets none: another code or library, another processor, another store.

    STORE/.handshake/<random>           the driver's challenge: each worker must read it
    STORE/.handshake/<random>.<random>  a worker's answer: the driver must read it

A store that is not mounted on a host, is read-only there, or is another folder of the same name is found before anything is written into
it. The names are new in each run, so that no cache of a network file system knows them as absent.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from data.command import in_words
from data.errors import UserError
from data.files.leftovers import remove_leftovers
from data.remote.object_store import is_remote
from data.store.place import Place, open_place
from pipeline.executors.environment import take_environment
from pipeline.executors.tasks import TaskResult
from retrieval.compute.precision import cpu_computes_bf16

FOLDER = ".handshake"  # of the store
_PACKAGES = ("data", "pipeline", "retrieval")  # whose code a worker runs
# Whose code is in the bytes of a table: by rounding, by the cut into tokens, by the layout of a file. Each is of one of its distributions.
_LIBRARIES = {
    "numpy": ("numpy",), "pyarrow": ("pyarrow",), "torch": ("torch",), "transformers": ("transformers",), "tokenizers": ("tokenizers",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"), "faiss": ("faiss-gpu", "faiss-cpu"), "bm25s": ("bm25s",),
}  # fmt: skip
_SEEN_SECONDS = 5.0  # in which what one host wrote must be seen on another
_POLL_SECONDS = 0.2
_FORGOTTEN_SECONDS = 86_400.0  # a challenge of a driver that was killed is removed after a day


@dataclass(frozen=True)
class Challenge:
    """What a worker is asked: to read a file of the store, and to write one beside it."""

    store: str
    name: str  # of the driver's file, relative to the store
    environment: dict[str, str] = field(default_factory=dict, repr=False)  # the driver's variables, credentials among them


@dataclass(frozen=True)
class Introduction:
    """A process as the other side must know it."""

    host: str
    node: str = ""  # Ray's id of the node
    python: str = ""  # as 3.11
    sources: str = ""  # digest of the code that was imported
    libraries: dict[str, str] = field(default_factory=dict)  # name -> version, of those that are installed
    formats: tuple[str, ...] = ()  # of the driver: in which its tasks compute; of a worker: in which its device computes
    answer: str = ""  # name of the file that it wrote into the store
    fault: str = ""  # why it could not, in words


def introduce(challenge: Challenge | None = None, *, node: str = "", device: str = "cpu") -> Introduction:
    """This process, once it has the driver's environment, has read the challenge and written its answer. Never raises for a fault of the
    store."""
    if challenge is not None:
        take_environment(challenge.environment)
    answer, fault = _answer(challenge) if challenge is not None else ("", "")
    return Introduction(
        host=platform.node(),
        node=node,
        python=".".join(platform.python_version_tuple()[:2]),
        sources=sources_digest(),
        libraries=_library_versions(),
        formats=("fp32", "fp16", "bf16") if device == "cuda" else ("fp32", *(["bf16"] if cpu_computes_bf16() else [])),
        answer=answer,
        fault=fault,
    )


def why_refused(driver: Introduction, worker: Introduction) -> str | None:
    """Why this worker must get no task, with the remedy, as the end of a sentence that names its host; None where it may."""
    if worker.python != driver.python:
        return f"it runs Python {worker.python}, the driver {driver.python}: install the same on every host"
    if worker.sources != driver.sources:
        return "its code is not the driver's, and would write other rows: install the same commit on every host, or set runner.working_dir"
    for name, ours in driver.libraries.items():
        theirs = worker.libraries.get(name)
        if theirs is None or _public(theirs) != _public(ours):
            there = f"{name} {theirs}" if theirs else f"no {name}"
            return f"it has {there}, the driver {name} {ours}, and the two may differ in what they write: install the same on every host"
    if lacks := [name for name in driver.formats if name not in worker.formats]:
        return f"its processor does not compute {lacks[0]}, in which this table is computed (a CPU needs AVX512-BF16 for bf16)"
    return worker.fault or None


class Handshake:
    """The driver's side in one run: a challenge to all workers, and what is wrong with each that answers."""

    def __init__(self, store: str, *, formats: Collection[str] = (), environment: Mapping[str, str] | None = None) -> None:
        """`formats` are the number formats in which the run's models compute; `environment` is what workers get."""
        self._place = open_place(store)
        self._expected = Introduction(
            platform.node(),
            python=".".join(platform.python_version_tuple()[:2]),
            sources=sources_digest(),
            libraries=_library_versions(),
            formats=tuple(formats),
        )
        _forget_old(self._place)
        self.challenge = Challenge(store, f"{FOLDER}/{secrets.token_hex(8)}", dict(environment or {}))
        self._place.put(self.challenge.name, self.challenge.name.encode())

    def why_refused(self, worker: Introduction) -> str | None:
        """As `why_refused`, once it has been looked whether the worker's answer lies in the driver's store."""
        if reason := why_refused(self._expected, worker):
            return reason
        if _read(self._place, worker.answer) != worker.answer.encode():
            return f"what it wrote into {self.challenge.store} is not seen by the driver: mount the same store on every host"
        self._place.delete(worker.answer)
        return None

    def sees(self, result: TaskResult) -> bool:
        """Whether the shards of a finished task are in the driver's store: a file system may have gone since its worker was let in.

        What an object store has taken is there.
        """
        paths = {self._place.root / result.task.folder / record.name: record.bytes for record in result.records}
        if is_remote(self._place.address) or not paths:
            return True
        deadline = time.monotonic() + _SEEN_SECONDS
        while missing := [path for path, size in paths.items() if not path.is_file() or path.stat().st_size != size]:
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL_SECONDS)
            for path in missing:
                os.listdir(path.parent)  # a network file system asks its server once more
        return True

    def close(self) -> None:
        """Remove challenge and answers."""
        for name in (self.challenge.name, *(name for name in self._place.files(FOLDER) if name.startswith(f"{self.challenge.name}."))):
            self._place.delete(name)


@cache
def sources_digest() -> str:
    """Digest of the Python files of the packages that a worker runs, as they were imported here."""
    digest = hashlib.sha256()
    for package in _PACKAGES:
        for name, path in sorted(_modules(package)):
            content = path.read_bytes()
            digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:32]


def _modules(package: str) -> Iterator[tuple[str, Path]]:
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in Path(folder).rglob("*.py"):
            yield f"{package}/{path.relative_to(folder).as_posix()}", path


def _library_versions() -> dict[str, str]:
    found = {}
    for name, distributions in _LIBRARIES.items():
        for distribution in distributions:
            try:
                found[name] = version(distribution)
                break
            except PackageNotFoundError:
                continue
    return found


def _public(release: str) -> str:
    """`2.9.1` of `2.9.1+cu128`: a driver without a GPU has another build of the same release."""
    return release.split("+")[0]


def _answer(challenge: Challenge) -> tuple[str, str]:
    """The name of the answer that was written, or why there is none."""
    store, host = challenge.store, platform.node()
    try:
        place = open_place(store)
        if _read(place, challenge.name) is None:
            what = "is not the driver's folder" if place.root.is_dir() else "is not there"
            return "", f"{store} {what} on {host} (the driver's file in it is not seen): mount the same store on every host"
        name = f"{challenge.name}.{secrets.token_hex(8)}"
        place.put(name, name.encode())
    except OSError as error:
        return "", f"{store} cannot be written on {host} ({in_words(error)}): mount it for writing"
    except UserError as error:  # a package or credentials that this host lacks
        return "", f"{store} on {host}: {error}"
    return name, ""


def _read(place: Place, name: str, *, clock: Callable[[], float] = time.monotonic) -> bytes | None:
    """A file that another host wrote, as soon as it is seen here."""
    deadline = clock() + _SEEN_SECONDS
    while (content := place.read(name)) is None and clock() < deadline:
        time.sleep(_POLL_SECONDS)
    return content


def _forget_old(place: Place) -> None:
    """Remove the challenges of drivers that were killed."""
    remove_leftovers(place.root / FOLDER)
    for name, listed in place.files(FOLDER).items():
        if time.time() - listed.changed > _FORGOTTEN_SECONDS:
            place.delete(name)
