"""Checks of the exact search."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from gpu.busy import watched
from gpu.made_up import Bench
from numpy.typing import NDArray

from pipeline.executors.resources import usable_cpus
from retrieval.search.devices.choice import processor_rate
from retrieval.search.devices.corpus import DeviceCorpus, InMemory
from retrieval.search.devices.engine import UNIT, device_engines
from retrieval.search.devices.tf32 import tf32_products
from retrieval.search.exact import exact_search


def tf32_bound(bench: Bench) -> dict[str, Any]:
    """The largest error of a TF32 product as a share of what the proof allows: below 1, whatever the signs."""
    shares = {}
    for size in (64,) if bench.small else (384, 768, 1024):
        for kind in ("normal", "one sign", "cancelling"):
            generator = torch.Generator().manual_seed(size)
            queries, passages = (torch.randn(512, size, generator=generator) for _ in range(2))
            if kind == "one sign":
                queries, passages = queries.abs(), passages.abs()
            if kind == "cancelling":
                queries[:, 0], passages[:, 0] = queries[:, 0] * 300, passages[:, 0] * 300
                queries[:, 1], passages[:, 1] = -queries[:, 0], passages[:, 0]
            queries, passages = queries.half(), passages.half()
            with tf32_products():
                found = (queries.to(bench.device).float() @ passages.to(bench.device).float().T).double().cpu()
            exact = queries.double() @ passages.double().T
            norms = queries.double().norm(dim=1)[:, None] * passages.double().norm(dim=1)
            shares[f"{size}, {kind}"] = round(float(((found - exact).abs() / (2 * size * UNIT * norms + 2.0**-20 * found.abs())).max()), 5)
    return {"ok": max(shares.values()) < 1, "shares_of_the_bound": shares}


def search(bench: Bench) -> dict[str, Any]:
    """Seconds with the corpus read and with it there, on one GPU and on all; the same bits as the processor for some queries."""
    rows, size, queries, k = bench.size(1_000_000, 20_000), bench.size(768, 64), bench.size(8192, 64), bench.size(200, 20)
    corpus, asked = _around_centres(rows, size, seed=1), _around_centres(queries, size, seed=2)
    gpus = torch.cuda.device_count() if bench.is_gpu else 2
    cases = {"one": [f"{bench.device}:0"], **({"all": [f"{bench.device}:{number}" for number in range(gpus)]} if gpus > 1 else {})}
    expected = exact_search(asked[:64], [(0, corpus)], k=k, threads=usable_cpus())
    found: dict[str, Any] = {"ok": True, "rows": rows, "size": size, "queries": queries, "k": k}
    for name, devices in cases.items():
        figures: dict[str, Any] = {"devices": len(devices)}
        on_devices, left = DeviceCorpus(InMemory(corpus), devices), list[int]()

        def noted(engine: Any, left: list[int] = left) -> Any:
            return lambda queries, blocks, k: (left.append(len(queries)), engine(queries, blocks, k))[1]

        engines = [(noted(engine), count) for engine, count in device_engines(on_devices, k)]
        for turn in ("first", "again"):
            left.clear()
            started = time.perf_counter()
            with watched(figures, is_gpu=bench.is_gpu and turn == "again"):
                scores, lists = exact_search(asked, on_devices, k=k, engines=engines)
            figures[f"{turn}_seconds"] = round(time.perf_counter() - started, 3)
        figures["queries_of_each_try"] = list(left)
        figures["same_bits"] = bool(np.array_equal(scores[:64], expected[0]) and np.array_equal(lists[:64], expected[1]))
        found[name], found["ok"] = figures, found["ok"] and figures["same_bits"]
    found["processor_seconds"] = round(float(queries) * rows * size / processor_rate(size, 256, usable_cpus()), 1)
    found["processor_threads"] = usable_cpus()
    return found


def _around_centres(rows: int, size: int, *, seed: int) -> NDArray[np.float16]:
    """Vectors of length 1 around 500 centres."""
    chance, found = np.random.default_rng(seed), np.empty((rows, size), np.float16)
    centres = np.random.default_rng(0).standard_normal((500, size), dtype=np.float32)
    for start in range(0, rows, 100_000):
        part = found[start : start + 100_000]
        vectors = centres[chance.integers(0, 500, len(part))] + 0.7 * chance.standard_normal(part.shape, dtype=np.float32)
        part[:] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found
