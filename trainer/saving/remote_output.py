"""A run's folder at an address of an object store: the run writes a folder of this machine, and what is finished is put.

The last checkpoint is put with the lines written so far, its state.json last; the results at the end, result.json last. So a run that
was killed goes on from its last checkpoint, on another machine too, which fetches it. Nothing is moved there, and nothing of a run that
was not the same one is overwritten: run.json tells.

A folder on the store is held by nobody: two machines that begin one run both take its steps, and put the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from data.remote.cache import fetch_files, put_files, staging_folder
from data.remote.object_store import Entry, RemotePath, is_remote
from trainer.saving.checkpoint import CHECKPOINTS, STATE_NAME, whole_folder
from trainer.saving.output_folder import LOCK_NAME, RESULT_NAME, RUN_NAME


class Output(Protocol):
    """Where a run's files are to lie in the end."""

    address: str  # as the user gave it
    folder: Path  # where the run writes them

    def begin(self) -> None:
        """Have in the folder what is there of this run."""

    def keep(self, written: Callable[[], None]) -> None:
        """Put what a run needs to go on from its newest checkpoint; `written` waits for that."""

    def finish(self) -> None:
        """Put the results."""


class LocalOutput:
    """A folder of this machine: the run's files lie where they belong."""

    def __init__(self, folder: str) -> None:
        self.address, self.folder = folder, Path(folder)

    def begin(self) -> None:
        """Nothing to do."""

    def keep(self, written: Callable[[], None]) -> None:
        """Nothing to do."""

    def finish(self) -> None:
        """Nothing to do."""


class RemoteOutput:
    """An address of an object store. All methods raise UserError as `RemotePath` does."""

    def __init__(self, address: str) -> None:
        self.address = address.rstrip("/")
        self.folder = staging_folder(self.address)
        self._remote = RemotePath.of(self.address)

    def begin(self) -> None:
        """Have in the folder what the store has of the run, where it is further than this machine; of a finished run its records alone.

        What lies in the folder of a run that the store does not know is removed: it was deleted there.
        """
        there = self._remote.find()
        if RUN_NAME not in there or self._remote.child(RUN_NAME).read() != _content(self.folder / RUN_NAME):
            self._remove_all()
        newest = max(
            (name.split("/")[1] for name in there if name.startswith(f"{CHECKPOINTS}/") and name.endswith(f"/{STATE_NAME}")), default=""
        )
        here = max((path.name for path in (self.folder / CHECKPOINTS).glob("step-*")), default="")
        if RUN_NAME not in there:
            return
        if RESULT_NAME in there:
            self._fetch(there, [RUN_NAME, RESULT_NAME])
        elif newest > here:
            self._remove_all()
            self._fetch(there, [name for name in there if not name.startswith(f"{CHECKPOINTS}/")])
            start = f"{CHECKPOINTS}/{newest}/"
            with whole_folder(self.folder / start) as folder:
                own = {name.removeprefix(start): entry for name, entry in there.items() if name.startswith(start)}
                fetch_files(self._remote.child(start.rstrip("/")), folder, own)
        else:
            self._fetch(there, [RUN_NAME])

    def _fetch(self, there: dict[str, Entry], names: Sequence[str]) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)  # one of the same size would stay
        fetch_files(self._remote, self.folder, {name: there[name] for name in names})

    def keep(self, written: Callable[[], None]) -> None:
        """Put the newest checkpoint, once it is written, and the records beside it, which no step may change then; older ones there go."""
        written()
        checkpoints = sorted((self.folder / CHECKPOINTS).glob("step-*"))
        put_files(self._remote, self.folder, [RUN_NAME])
        if checkpoints:
            own = f"{CHECKPOINTS}/{checkpoints[-1].name}"
            put_files(self._remote, self.folder, [name for name in self._names() if name.startswith(f"{own}/") or self._is_kept(name)])
            put_files(self._remote, self.folder, [f"{own}/{STATE_NAME}"])
            for name in sorted(self._remote.find(), key=lambda name: not name.endswith(f"/{STATE_NAME}")):  # states first
                if name.startswith(f"{CHECKPOINTS}/") and not name.startswith(f"{own}/"):
                    self._remote.child(name).delete()

    def finish(self) -> None:
        """Put all but the checkpoints, of which the last one is there, and result.json last; nothing where it is there."""
        if self._remote.child(RESULT_NAME).exists():
            return
        put_files(self._remote, self.folder, [name for name in self._names() if not name.startswith(f"{CHECKPOINTS}/")])
        put_files(self._remote, self.folder, [RESULT_NAME])

    def _is_kept(self, name: str) -> bool:
        """Records, and the best model so far: a run that goes on elsewhere may find no better one."""
        return "/" not in name or name.startswith(("best/", "tensorboard/"))

    def _names(self) -> list[str]:
        """What is put, without what marks it as whole."""
        paths = [path.relative_to(self.folder) for path in sorted(self.folder.rglob("*")) if path.is_file()]
        names = [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]
        marks = {RUN_NAME, RESULT_NAME, LOCK_NAME}
        return [
            name for name in names if name not in marks and not (name.startswith(f"{CHECKPOINTS}/") and name.endswith(f"/{STATE_NAME}"))
        ]

    def _remove_all(self) -> None:
        for path in self.folder.iterdir() if self.folder.is_dir() else ():
            if path.name != LOCK_NAME:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def open_output(address: str) -> Output:
    """The output of a run: `train.output`, a folder or an address. Raises UserError where nothing opens such addresses."""
    return RemoteOutput(address) if is_remote(address) else LocalOutput(address)
