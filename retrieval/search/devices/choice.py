"""Whether GPUs search, or the processor: by what each of them was measured to do. Both find the same bits: it is a matter of time alone.

A measurement is of made-up vectors in memory, some tenths of a second each, once a process. A GPU that this process has not used yet is not
even asked where the processor is done before CUDA would have started.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from retrieval.search.devices.corpus import DeviceCorpus, InMemory
from retrieval.search.devices.engine import DeviceEngine
from retrieval.search.exact import Engine, Vectors, cpu_engines, exact_search

_STARTING = 5.0  # seconds of loading CUDA and its libraries; estimated
_OF_PROCESSOR = (512, 16_384)  # queries and passages that are searched to measure
_OF_GPU = (4096, 262_144)


@dataclass(frozen=True)
class Work:
    """How large a search is."""

    queries: int
    rows: int
    size: int
    k: int

    @property
    def products(self) -> float:
        """Multiplications."""
        return float(self.queries) * self.rows * self.size


@dataclass(frozen=True)
class Choice:
    """Who searches, and how long each would."""

    by_devices: bool
    processor_seconds: float
    device_seconds: float | None  # None: not measured


def choose(work: Work, devices: tuple[str, ...], *, threads: int) -> Choice:
    """Who is faster, once the vectors are read."""
    k = 1 << max(0, min(work.k, 4096) - 1).bit_length()  # as it was measured for another k of about that size
    processor = work.products / processor_rate(work.size, k, threads)
    is_new = any(torch.device(device).type == "cuda" for device in devices) and not torch.cuda.is_initialized()
    starting = _STARTING if is_new else 0.0
    if not devices or processor < starting:
        return Choice(False, processor, None)
    on_devices = starting + work.products / sum(device_rate(device, work.size, k) for device in devices)
    return Choice(on_devices < processor, processor, on_devices)


@functools.cache
def processor_rate(size: int, k: int, threads: int) -> float:
    """Multiplications a second of a search by the processor."""
    return _rate(_OF_PROCESSOR, size, k, threads, lambda corpus: (cpu_engines(k, threads=threads), [(0, corpus)]))


@functools.cache
def device_rate(device: str, size: int, k: int) -> float:
    """Multiplications a second of a search by a device that has the vectors."""

    def ready(vectors: NDArray[np.float16]) -> tuple[list[tuple[Engine, int]], DeviceCorpus]:
        corpus = DeviceCorpus(InMemory(vectors), [device])
        return [(DeviceEngine(corpus), k + 64)], corpus

    return _rate(_OF_GPU if torch.device(device).type == "cuda" else _OF_PROCESSOR, size, k, 1, ready)


Ready = Callable[[NDArray[np.float16]], tuple[list[tuple[Engine, int]], "DeviceCorpus | list[tuple[int, Vectors]]"]]


def _rate(sample: tuple[int, int], size: int, k: int, threads: int, ready: Ready) -> float:
    queries, corpus = (_made_up(count, size, seed) for seed, count in enumerate(sample))
    engines, blocks = ready(corpus)
    exact_search(queries[:64], blocks, k=k, threads=threads, engines=engines)  # kernels and vectors are loaded
    started = time.perf_counter()
    exact_search(queries, blocks, k=k, threads=threads, engines=engines)
    return float(len(queries)) * len(corpus) * size / (time.perf_counter() - started)


def _made_up(rows: int, size: int, seed: int) -> NDArray[np.float16]:
    """Vectors of about length 1."""
    drawn = np.random.default_rng(seed).standard_normal((rows, size), dtype=np.float32)
    return (drawn / np.sqrt(size)).astype(np.float16)
