"""Vectors, pools and negatives are the same bytes from any number of workers and threads."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from data.config.settings import Runner, load
from pipeline.run import run
from retrieval.compute.precision import cpu_computes_bf16

Files = Callable[[Path], dict[str, bytes]]

# More shards than workers, and many batches a shard: each of them has something to do.
SIZES = {"ingest.corpus_shards": 6, "ingest.query_shards": 5, "embed.batch_tokens": 64, "hard_negatives.source": "student:2,bm25:1"}
STAGES = ("embed", "hard_negatives")  # the latter makes the pools, too
FASTEST = "bf16" if cpu_computes_bf16() else "fp32"
PRECISIONS = ["fp32", pytest.param("bf16", marks=pytest.mark.skipif(not cpu_computes_bf16(), reason="no bf16 here"))]


@pytest.fixture(scope="module")
def ingested(tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]]) -> Path:
    """The folder of an experiment whose collection is ingested."""
    config = tiny_experiment(tmp_path_factory.mktemp("ingested"), **SIZES)
    prep_run(config, stage="ingest")
    return config.parent


@pytest.fixture(scope="module")
def mine(ingested: Path, tiny_experiment: Callable[..., Path], parquet_files: Files) -> Callable[..., dict[str, bytes]]:
    """`mine(folder, **overrides)`: the tables of the stages, built in a store of their own."""

    def build(folder: Path, **overrides: Any) -> dict[str, bytes]:
        config = tiny_experiment(folder, **SIZES)
        shutil.copytree(ingested / "store", folder / "store")
        words = {key.replace("__", "."): str(value) for key, value in overrides.items()}
        for stage in STAGES:
            run(load({"config": str(config), **words}), stage=stage, say=lambda line: None)
        return {name: content for name, content in parquet_files(folder / "store").items() if not name.startswith("ingest")}

    return build


@pytest.fixture(scope="module")
def alone(mine: Callable[..., dict[str, bytes]], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, bytes]]:
    """`alone(precision)`: what one process with one thread makes, once for all tests."""
    made: dict[str, dict[str, bytes]] = {}

    def files(precision: str) -> dict[str, bytes]:
        if precision not in made:
            made[precision] = mine(tmp_path_factory.mktemp("alone"), embed__precision=precision)
            tables = {"/".join(Path(name).parts[:2]).partition("-")[0] for name in made[precision]}
            assert {"embed/corpus", "embed/queries", "pools/ranked"} < tables and len(made[precision]) == 6 + 5 + 5 + 5
        return made[precision]

    return files


@pytest.fixture
def threads_put_back() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_no_bit(
    mine: Callable[..., dict[str, bytes]],
    alone: Callable[[str], dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    threads_put_back: None,
    precision: str,
    threads: int,
) -> None:
    """Prevents: vectors that hang on how many cores embedded them, so that another machine mines other negatives."""
    import torch

    from retrieval.encoding import text_encoder

    computed: list[tuple[bool, int]] = []
    pad_rows = text_encoder.pad_rows

    def noted(*args: Any, **more: Any) -> Any:
        computed.append((threading.current_thread() is threading.main_thread(), torch.get_num_threads()))
        return pad_rows(*args, **more)

    expected = alone(precision)
    monkeypatch.setattr(text_encoder, "pad_rows", noted)
    assert mine(tmp_path, embed__precision=precision, runner__threads=threads) == expected
    assert len(computed) > 20 and set(computed) == {(False, 1)}  # threads of a pool, each of them computing alone


class KeptRay:
    """The module ray, which is not shut down with a run: to start it takes seconds."""

    def __init__(self, ray: Any) -> None:
        self._ray = ray

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ray, name)

    def shutdown(self) -> None:
        pass


@pytest.fixture(scope="module")
def ray_of_four() -> Iterator[KeptRay]:
    """Ray with four CPUs, whatever the machine has."""
    from pipeline.executors.ray.cluster import start_ray

    ray = start_ray(Runner(workers=4))
    yield KeptRay(ray)
    ray.shutdown()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_no_bit(
    mine: Callable[..., dict[str, bytes]],
    alone: Callable[[str], dict[str, bytes]],
    ray_of_four: KeptRay,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    workers: int,
) -> None:
    """Prevents: vectors, pools or negatives that hang on how many workers there were, or on which shard was finished first."""
    from pipeline.executors.ray import executor

    started: list[int] = []
    start = executor.Fleet._start

    def noted(self: Any, worker: int, *args: Any) -> None:
        started.append(worker)
        start(self, worker, *args)

    monkeypatch.setattr(executor, "start_ray", lambda settings: ray_of_four)
    monkeypatch.setattr(executor.Fleet, "_start", noted)
    made = mine(tmp_path, embed__precision=FASTEST, runner__kind="ray", runner__workers=workers)
    assert made == alone(FASTEST)
    assert len(started) >= workers * len(STAGES)  # each stage is a run of its own
