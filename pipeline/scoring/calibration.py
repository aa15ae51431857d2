"""How fast a teacher scores on a device: ten seconds of real pairs, measured once and kept in the store.

STORE/calibration.json   {key of (teacher, device, threads, batch): Speed}
"""

from __future__ import annotations

import contextlib
import json
import platform
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from data.config.settings import Experiment
from data.digests import json_digest
from data.errors import first_line
from data.tables.shards import atomic_write, read_row_groups
from retrieval.compute.batching import DEFAULT_BATCH_TOKENS
from retrieval.models.resolved import ResolvedModels
from retrieval.teachers.cross_encoder import CrossEncoder, load_cross_encoder, resolve_teacher, score_pairs
from retrieval.teachers.pair_tokens import PairEncoding, PairTokenizer

SECONDS = 10.0
_FILE = "calibration.json"


@dataclass(frozen=True)
class Speed:
    """What one worker does."""

    device: str  # name of the processor or GPU
    tokens_per_second: float
    compiled_tokens_per_second: float | None = None  # None where it was not tried, 0 where it cannot be
    compile_seconds: float = 0.0
    compile_error: str = ""

    def seconds(self, tokens: float, *, compiled: bool) -> float:
        """Time that one worker takes for so many tokens (without padding)."""
        if compiled and self.compiled_tokens_per_second:
            return self.compile_seconds + tokens / self.compiled_tokens_per_second
        return tokens / self.tokens_per_second

    def compiling_pays(self, tokens: float) -> bool:
        """Whether one worker is sooner done with torch.compile, its start-up included."""
        return bool(self.compiled_tokens_per_second) and self.seconds(tokens, compiled=True) < self.seconds(tokens, compiled=False)

    def __str__(self) -> str:
        plain = f"{self.tokens_per_second:,.0f} tokens/s a worker"
        if self.compile_error:
            return f"{plain}, torch.compile does not work there: {self.compile_error}, {self.device}"
        compiled = f", {self.compiled_tokens_per_second:,.0f} compiled" if self.compiled_tokens_per_second else ""
        return f"{plain}{compiled}, {self.device}"


_CODE = 3  # raised when scoring becomes faster or slower


def speed_key(models: ResolvedModels, *, device: str, device_name: str) -> str:
    """Under which a speed is kept: all that decides it, and no path."""
    experiment, teacher, namespace = models.experiment, models.experiment.teacher, models.namespace
    if device != experiment.runner.device:  # where another precision may be the default
        namespace = resolve_teacher(teacher, device=device).namespace(models.digests)
    budget = teacher.batch_tokens or DEFAULT_BATCH_TOKENS[device]
    threads = experiment.runner.threads if device == "cpu" else 0
    return json_digest([namespace, device_name, threads, budget, _CODE])


def device_name(device: str) -> str:
    """The processor's or the GPU's name."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def kept_speed(models: ResolvedModels) -> Speed | None:
    """The speed measured earlier on a device like this one; where only the workers have GPUs, on one of theirs."""
    device = models.experiment.runner.device
    if device == "cuda":
        import torch

        if not torch.cuda.is_available():  # the workers have it
            return next(iter(kept_gpu_speeds(models)), None)
    return _read(models.experiment).get(speed_key(models, device=device, device_name=device_name(device)))


def kept_gpu_speeds(models: ResolvedModels) -> list[Speed]:
    """The speeds of this teacher on GPUs, wherever they were measured."""
    known = _read(models.experiment)
    return [speed for key, speed in known.items() if key == speed_key(models, device="cuda", device_name=speed.device)]


def _read(experiment: Experiment) -> dict[str, Speed]:
    try:
        return {key: Speed(**speed) for key, speed in json.loads((Path(experiment.store) / _FILE).read_text()).items()}
    except (FileNotFoundError, ValueError, TypeError):
        return {}


def keep_speed(models: ResolvedModels, speed: Speed) -> None:
    """Remember a speed."""
    experiment = models.experiment
    known = _read(experiment)
    known[speed_key(models, device=experiment.runner.device, device_name=speed.device)] = speed
    content = json.dumps({key: asdict(speed) for key, speed in known.items()}, indent=1)
    atomic_write(Path(experiment.store) / _FILE, content.encode())


def measure(models: ResolvedModels, candidates: str, compiled: bool) -> Speed:
    """Score pairs of the shard `candidates` for ten seconds, with `compiled` ten more under torch.compile. Runs in a worker."""
    experiment, spec = models.experiment, models.teacher
    device, teacher = experiment.runner.device, experiment.teacher
    if device == "cpu":
        import torch

        torch.set_num_threads(experiment.runner.threads)
    tokenizer = PairTokenizer(spec.folder, max_tokens=spec.max_tokens, trusted=spec.trust_remote_code)
    table = next(iter(read_row_groups(Path(candidates), columns=["query", "text"], groups=[0])))
    texts = list(zip(table.column("query").to_pylist(), table.column("text").to_pylist(), strict=True))
    pairs = tokenizer.encode([texts[row] for row in np.random.default_rng(0).permutation(len(texts))])

    def load(compiled: bool) -> CrossEncoder:
        return load_cross_encoder(
            spec, device=device, threads=experiment.runner.threads, batch_tokens=teacher.batch_tokens, compiled=compiled
        )

    _, rate = _rate(load(False), pairs, tokenizer.pad_id)
    speed = Speed(device_name(device), rate)
    if compiled and spec.backend == "torch":
        try:
            start_up, rate = _rate(load(True), pairs, tokenizer.pad_id)
        except Exception as error:  # no C++ compiler, a model that cannot be traced: many kinds, and scoring goes on without
            speed = replace(speed, compiled_tokens_per_second=0.0, compile_error=first_line(error))
        else:
            speed = replace(speed, compiled_tokens_per_second=rate, compile_seconds=start_up)
    return speed


class _TimeIsUp(Exception):
    pass


def _rate(model: CrossEncoder, pairs: list[PairEncoding], pad_id: int) -> tuple[float, float]:
    """Seconds that the first batches take, and tokens/s after them, over `SECONDS` (at least one batch)."""
    import torch

    started = time.perf_counter()
    score_pairs(model, pairs[:64], pad_id=pad_id)
    start_up, started, done = time.perf_counter() - started, time.perf_counter(), 0

    def count(pairs: int, tokens: int, padded: int) -> None:
        nonlocal done
        done += tokens
        if time.perf_counter() - started > SECONDS:
            raise _TimeIsUp

    tokens_each = sum(len(pair.ids) for pair in pairs) / len(pairs)
    at_once = torch.get_num_threads() if model.one_thread_each else 1
    size = max(64, int(8 * at_once * model.batch_tokens / tokens_each))  # random pairs: sorted as a whole, ten seconds would see long ones
    with contextlib.suppress(_TimeIsUp):
        while True:
            for start in range(0, len(pairs), size):
                score_pairs(model, pairs[start : start + size], pad_id=pad_id, progress=count)
    return start_up, done / (time.perf_counter() - started)
