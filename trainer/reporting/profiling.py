"""`train.profile=10-20`: a Chrome trace of some steps, for chrome://tracing or ui.perfetto.dev. Nothing else of the run changes.

OUTPUT/profile/steps-10-20.json.gz              of several processes ...-rank-1.json.gz each; a run that ends inside has fewer steps in it
"""

from __future__ import annotations

import contextlib
import gzip
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from data.files.leftovers import remove_leftovers
from data.tables.shards import atomic_path
from trainer.run import TrainingRun

FOLDER = "profile"


class Profile:
    """A context in which the steps of a run are taken. What was recorded is written after the last step asked for, or at the end."""

    def __init__(self, run: TrainingRun) -> None:
        self._asked = run.experiment.train.profiled
        rank = f"-rank-{run.processes.rank}" if run.processes.size > 1 else ""
        self._path = run.output / FOLDER / f"steps-{run.experiment.train.profile}{rank}.json.gz"
        self._device = run.step_settings.device
        self._profiler: Any = None

    def __enter__(self) -> Profile:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._end(whole=kind is None)

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        """Around a step; they count from 1."""
        if self._asked is None or not self._asked[0] <= number <= self._asked[1]:
            yield
            return
        if self._profiler is None:
            self._profiler = _begun(self._device)
        with record_function(f"step {number}"):
            yield
        if number == self._asked[1]:
            self._end()

    def _end(self, *, whole: bool = True) -> None:
        if self._profiler is not None:
            profiler, self._profiler = self._profiler, None
            profiler.stop()
            if whole:  # else what went wrong is told, and not what goes wrong here too
                _write(profiler, self._path)


def _begun(device: str) -> Any:
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    # The micro-batches of a CPU are computed in threads.
    every = torch._C._profiler._ExperimentalConfig(profile_all_threads=True)
    profiler = profile(activities=activities, experimental_config=every)
    profiler.start()
    return profiler


def _write(profiler: Any, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    remove_leftovers(path.parent, of=path.name, held=True)
    with tempfile.TemporaryDirectory() as folder, atomic_path(path) as temporary:
        plain = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(plain))
        with open(plain, "rb") as trace, gzip.open(temporary, "wb", compresslevel=4) as packed:
            shutil.copyfileobj(trace, packed)
