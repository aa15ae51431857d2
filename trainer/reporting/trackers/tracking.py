"""A run and its tracker: each step is shown once, also over kills, resumes and a network that is gone for a while.

    OUTPUT/tracker.json     which tracker, the run's id there, and the last step given to it

The lines of metrics.jsonl are the truth. When a run starts, the tracker says which step it has last (where it cannot, the record does);
what is missing of the steps done is given to it from the lines, and steps that come again after a resume are left out.
"""

from __future__ import annotations

import importlib
import json
import os
import traceback
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from data.config.registry import Registry
from data.config.settings import Train
from data.errors import UserError, first_line
from data.files.leftovers import temporary_name
from trainer.reporting.trackers.base import RunInfo, Tracker
from trainer.reporting.trackers.local import NoTracker, TensorBoard
from trainer.reporting.trackers.mlflow import MlflowTracker
from trainer.reporting.trackers.trackio import TrackioTracker
from trainer.reporting.trackers.wandb import WandbTracker

RECORD_NAME = "tracker.json"
TRACKERS: Registry[Callable[[], Tracker]] = Registry(
    "tracker",
    {"tensorboard": TensorBoard, "wandb": WandbTracker, "mlflow": MlflowTracker, "trackio": TrackioTracker, "none": NoTracker},
)
_PACKAGES = ("wandb", "mlflow", "trackio")
_WITHOUT_RECORD = ("tensorboard", "none")
_SETTING = "train.tracker"
_METHODS = ("start", "log", "finish")

Rows = Callable[[int], Iterable[tuple[int, dict[str, float]]]]  # steps above one, with their figures, as metrics.jsonl has them


def make_tracker(name: str) -> Tracker:
    """The tracker that `train.tracker` names, not started yet.

    Raises UserError where its package is not installed or cannot be imported, and for a plug-in that is none.
    """
    if name in _PACKAGES:
        _import(name)
    make = TRACKERS.get(name, setting=_SETTING)
    try:
        tracker = make()
    except Exception as error:
        raise UserError(
            f"{_SETTING}={name} cannot be made: {_said(error)}; a tracker is a class that is called without arguments"
        ) from error
    if missing := [method for method in _METHODS if not callable(getattr(tracker, method, None))]:
        raise UserError(f"{_SETTING}={name}: a {type(tracker).__name__} has no {', '.join(missing)}; a tracker has {', '.join(_METHODS)}")
    return tracker


def _import(package: str) -> None:
    other = f"or choose another {_SETTING} (tensorboard, none)"
    try:
        module = importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(f"{_SETTING}={package}: {error.name} is not installed: `pip install {package}`, {other}") from error
    except Exception as error:
        raise UserError(f"{_SETTING}={package} cannot be imported: {_said(error)}; mend it, {other}") from error
    if module.__file__ is None:  # a folder of this name, as wandb itself writes one
        raise UserError(f"{_SETTING}={package}: it is not installed: `pip install {package}`, {other}")


class Tracking:
    """The tracker of a run, whose failures are told and stop nothing."""

    def __init__(self, settings: Train, *, rows: Rows, note: Callable[[str], None]) -> None:
        """`note` tells a person something. Raises UserError as `make_tracker` does."""
        self._settings = settings
        self._tracker = make_tracker(settings.tracker)
        self._path = Path(settings.output) / RECORD_NAME
        self._rows = rows
        self._failing = False
        self._note = note
        self._id, self._logged = uuid.uuid4().hex[:16], 0
        self._tells = False  # whether the tracker itself says what it has: then the record need not follow each step

    def start(self, *, config: dict[str, Any], step: int) -> None:
        """Open the tracker's run and give it what it lacks of the `step` steps done. Raises UserError where it cannot be opened."""
        self._read()
        settings, name = self._settings, self._settings.tracker
        output = Path(settings.output)
        self._write()
        run = RunInfo(settings.tracker_project, settings.tracker_name or output.absolute().name, self._id, output, config, step)
        try:
            logged = self._tracker.start(run)
        except Exception as error:
            raise UserError(
                f"{_SETTING}={name} cannot start: {_said(error)}; mend that, work offline where the tracker can, or set {_SETTING}=none"
            ) from error
        if logged is not None and (not isinstance(logged, int) or isinstance(logged, bool) or logged < 0):
            raise UserError(f"{_SETTING}={name}: start returned {logged!r}; expected the last step that it has, 0, or None")
        self._tells = logged is not None
        self._logged = self._logged if logged is None else logged
        self._catch_up()

    def log(self, step: int, figures: dict[str, float]) -> None:
        """Show a step's figures, whose line is in metrics.jsonl already; not those of a step that is shown."""
        if not self._failing and step > self._logged:
            self._try(lambda: self._give(step, figures))

    def sync(self) -> None:
        """Have the record on the disk, and try again what has failed: called before a checkpoint."""
        if self._failing:
            self._failing = False
            self._catch_up()
        self._try(self._write)

    def finish(self) -> None:
        """Close the tracker's run."""
        self.sync()
        self._try(self._tracker.finish)

    def _catch_up(self) -> None:
        for step, figures in self._rows(self._logged):
            self.log(step, figures)

    def _give(self, step: int, figures: dict[str, float]) -> None:
        self._tracker.log(step, figures)
        self._logged = step
        if not self._tells:
            self._write()

    def _try(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            self._failing = True
            self._tell(f"{_SETTING}={self._settings.tracker} failed: {_said(error)}; the training goes on, metrics.jsonl has all figures, "
                       "and the next checkpoint or start gives the tracker what it lacks")  # fmt: skip

    def _tell(self, message: str) -> None:
        """Once a run: what does not work at one step does not at the next."""
        note, self._note = self._note, lambda _: None
        note(message)

    def _read(self) -> None:
        """The record of earlier starts with this tracker; one that cannot be read is none."""
        try:
            there = json.loads(self._path.read_text(encoding="utf-8"))
            if there["tracker"] == self._settings.tracker:
                self._id, self._logged = str(there["id"]), int(there["logged"])
        except (OSError, ValueError, TypeError, KeyError):
            return

    def _write(self) -> None:
        if self._settings.tracker in _WITHOUT_RECORD:
            return
        # Without fsync, at each step: what a dying machine takes back, the tracker's own files have lost, too.
        temporary = temporary_name(self._path)
        content = {"tracker": self._settings.tracker, "id": self._id, "logged": self._logged}
        temporary.write_text(json.dumps(content), encoding="utf-8")
        os.replace(temporary, self._path)


def _said(error: Exception) -> str:
    """What an error of other people's code says, with its kind, and of a plug-in its place."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {first_line(error)} ({frame.filename}, line {frame.lineno})"
