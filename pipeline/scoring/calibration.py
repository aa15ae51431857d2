"""How fast a teacher scores on a device, for the hours of a plan: some seconds of real pairs, measured once and kept in the store.

STORE/calibration.json   {key of (teacher, device, threads, batch): Speed}
"""

from __future__ import annotations

import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.config.settings import Experiment
from data.digests import json_digest
from data.store import mirror
from data.store.paths import store_root
from data.tables.shards import atomic_write, read_row_groups
from pipeline.executors.resources import device_is_here
from pipeline.scoring.cost import Cost
from pipeline.scoring.requested_pairs import open_teacher, texts_of_rows
from retrieval.compute.batching import DEFAULT_BATCH_TOKENS
from retrieval.models.resolved import ResolvedModels
from retrieval.teachers.backends import resolve_teacher

SECONDS = 10.0
_FILE = "calibration.json"
_CODE = 4  # raised when scoring becomes faster or slower


@dataclass(frozen=True)
class Speed:
    """What one worker does."""

    device: str  # name of the processor or GPU
    rate: float  # of units a second
    unit: str = "tokens"  # without padding; or pairs, of a teacher that counts no tokens

    def seconds(self, cost: Cost, *, workers: int) -> float:
        """Time that so many workers take together."""
        return (cost.tokens if self.unit == "tokens" else cost.to_score) / self.rate / workers

    def __str__(self) -> str:
        return f"{self.rate:,.0f} {self.unit}/s a worker, {self.device}"


def _speed_key(models: ResolvedModels, *, device: str, device_name: str) -> str:
    """Under which a speed is kept: all that decides it, and no path."""
    experiment = models.experiment
    teacher = experiment.teacher
    namespace = models.namespace
    if device != experiment.runner.device:  # where another precision may be the default
        namespace = resolve_teacher(teacher, device=device).namespace(models.digests)
    budget = teacher.batch_tokens or DEFAULT_BATCH_TOKENS[device]
    threads = experiment.runner.threads if device == "cpu" else 0
    return json_digest([namespace, device_name, threads, budget, teacher.compile, _CODE])


def _device_name(device: str) -> str:
    """The processor's or the GPU's name."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def load_speed(models: ResolvedModels) -> Speed | None:
    """The speed measured earlier on a device like this one; where only the workers have GPUs, on one of theirs."""
    device = models.experiment.runner.device
    if not device_is_here(device):
        return next(iter(load_gpu_speeds(models)), None)
    return _read(models.experiment).get(_speed_key(models, device=device, device_name=_device_name(device)))


def load_gpu_speeds(models: ResolvedModels) -> list[Speed]:
    """The speeds of this teacher on GPUs, wherever they were measured."""
    known = _read(models.experiment)
    return [speed for key, speed in known.items() if key == _speed_key(models, device="cuda", device_name=speed.device)]


def _read(experiment: Experiment) -> dict[str, Speed]:
    try:
        return {key: Speed(**speed) for key, speed in json.loads(mirror.fresh(store_root(experiment.store) / _FILE).read_text()).items()}
    except (FileNotFoundError, ValueError, TypeError):  # TypeError: of an earlier version
        return {}


def save_speed(models: ResolvedModels, speed: Speed) -> None:
    """Remember a speed."""
    experiment = models.experiment
    known = _read(experiment)
    known[_speed_key(models, device=experiment.runner.device, device_name=speed.device)] = speed
    content = json.dumps({key: asdict(speed) for key, speed in known.items()}, indent=1)
    atomic_write(store_root(experiment.store) / _FILE, content.encode())


def measure(models: ResolvedModels, candidates: Path) -> Speed:
    """Score pairs of the shard `candidates` for about ten seconds, ever more at a time; the last ones count."""
    experiment = models.experiment
    if experiment.runner.device == "cpu":
        import torch

        torch.set_num_threads(experiment.runner.threads)
    teacher = open_teacher(models)
    table = next(iter(read_row_groups(candidates, columns=["query", "text"], groups=[0])))
    pairs = texts_of_rows(table.take(np.random.default_rng(0).permutation(table.num_rows)), models.teacher_marks)
    teacher.score(pairs[:16])  # loads the model
    count = 32
    scored = 0
    seconds = 0.0
    while seconds < SECONDS / 2:
        prepared = teacher.prepare([pairs[place % len(pairs)] for place in range(scored, scored + count)])
        scored += count
        started = time.perf_counter()
        teacher.score_prepared(prepared)
        took = time.perf_counter() - started
        seconds += took
        count = min(2 * count, experiment.window_pairs)
    tokens = int(prepared.token_counts.sum())
    name = _device_name(experiment.runner.device)
    return Speed(name, tokens / took) if tokens else Speed(name, len(prepared.pairs) / took, "pairs")
