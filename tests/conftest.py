"""What tests of every room use: a tiny experiment, and one finished run of it that they copy from. The rest is in tests/support."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from support.plugins import plugin_folder  # noqa: F401

from data.command import STOP_SIGNALS

if TYPE_CHECKING:
    from support.models import Models

pytest_plugins = (
    "support.models", "support.collection", "support.training", "support.kills", "support.rerank_server", "support.s3", "support.hub",
    "support.scored_lists",
    "support.dataset_hub",
    "support.hosts",
)  # fmt: skip

settings.register_profile("untimed", deadline=None)  # a busy machine is no fault of an example
settings.load_profile("untimed")

SETTINGS: dict[str, Any] = {
    "seed": 0,
    "ingest": {"corpus_shards": 3, "query_shards": 2},
    "student": {"query_tokens": 16, "passage_tokens": 48},
    "teacher": {"precision": "fp32", "max_tokens": 64},
    "embed": {"precision": "fp32"},
    "hard_negatives": {"depth": 20, "range_max": 20, "num_negatives": 3},
    "runner": {"kind": "local"},
    "train": {"precision": "fp32", "epochs": 2, "batch_queries": 4, "warmup_steps": 2, "learning_rate": "1e-3"},
}


@dataclass(frozen=True)
class Finished:
    """A config file and the store of its complete run: to be read or copied, never changed."""

    config: Path
    store: Path


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tiny tensors gain nothing from threads, and lose much where the machine is busy."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _signals_are_heard() -> Iterator[None]:
    """Whoever starts the tests in the background or under nohup has them ignore signals, which the commands respect."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        if before[number] is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def tiny_experiment(models: Models, collection: Path) -> Callable[..., Path]:
    """`tiny_experiment(folder, **{"section.key": value})` writes folder/tiny.yaml, with the store and all outputs in the folder."""

    def write(folder: Path, **overrides: Any) -> Path:
        import yaml

        content = {name: dict(value) if isinstance(value, dict) else value for name, value in SETTINGS.items()}
        content["store"] = str(folder / "store")
        paths = {"ingest.path": collection, "student.model": models.student, "teacher.model": models.teacher}
        for key, value in {**paths, "train.output": folder / "train", **overrides}.items():
            section, _, name = key.rpartition(".")
            (content.setdefault(section, {}) if section else content)[name] = str(value) if isinstance(value, Path) else value
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(content))
        return folder / "tiny.yaml"

    return write


@pytest.fixture(scope="session")
def prep_run() -> Callable[..., list[str]]:
    """`prep_run(config, stage=..., **overrides)` runs stages in this process; returns the lines that a user would see."""

    def run(config: Path, *, stage: str = "all", **overrides: Any) -> list[str]:
        from data.config.settings import load
        from pipeline.run import run as run_stages

        lines: list[str] = []
        run_stages(load({"config": str(config), **{key: str(value) for key, value in overrides.items()}}), stage=stage, say=lines.append)
        return lines

    return run


@pytest.fixture(scope="session")
def finished(
    tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]]
) -> Finished:
    """All stages of the tiny experiment, run in this process."""
    config = tiny_experiment(tmp_path_factory.mktemp("finished"))
    prep_run(config)
    return Finished(config, config.parent / "store")


@dataclass(frozen=True)
class RayRun:
    """A run under Ray, and its tables as they were when it ended."""

    config: Path
    files: dict[str, bytes]


@pytest.fixture(scope="session")
def ray_run(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_experiment: Callable[..., Path],
    command: Callable[..., subprocess.CompletedProcess[str]],
    parquet_files: Callable[[Path], dict[str, bytes]],
) -> RayRun:
    """All stages by the console script under Ray with two workers."""
    config = tiny_experiment(tmp_path_factory.mktemp("ray"), **{"runner.kind": "ray", "runner.workers": 2})
    done = command("prep", "run", f"config={config}")
    assert done.returncode == 0, done.stdout + done.stderr
    return RayRun(config, parquet_files(config.parent / "store"))


@pytest.fixture
def copied(finished: Finished, tmp_path: Path, tiny_experiment: Callable[..., Path]) -> Finished:
    """A copy of the finished run that a test may spoil."""
    config = tiny_experiment(tmp_path / "copy")
    shutil.copytree(finished.store, config.parent / "store")
    return Finished(config, config.parent / "store")


@pytest.fixture(scope="session")
def command() -> Callable[..., subprocess.CompletedProcess[str]]:
    """`command("prep", "run", f"config={file}")` runs an installed console script."""

    def run(*words: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        script = Path(sys.executable).parent / str(words[0])
        return subprocess.run([script, *map(str, words[1:])], capture_output=True, text=True, timeout=timeout)

    return run


@pytest.fixture(scope="session")
def parquet_files() -> Callable[[Path], dict[str, bytes]]:
    """A store's stage tables as relative path -> bytes. Not the logit store: its segments have random names."""

    def files(store: Path) -> dict[str, bytes]:
        found = (path.relative_to(store) for path in sorted(store.rglob("*.parquet")))
        return {str(path): (store / path).read_bytes() for path in found if path.parts[0] != "teacher_logits"}

    return files


@pytest.fixture
def count_scored(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pairs of each forward pass of a torch teacher in this process."""
    from retrieval.teachers.cross_encoder import TorchCrossEncoder

    batches: list[int] = []
    forward = TorchCrossEncoder.logits

    def counted(self: TorchCrossEncoder, ids: Any, mask: Any, segments: Any) -> Any:
        batches.append(len(ids))
        return forward(self, ids, mask, segments)

    monkeypatch.setattr(TorchCrossEncoder, "logits", counted)
    return batches


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """The files of a folder by their names relative to it."""

    def read(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    return read
