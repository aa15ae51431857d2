"""Trainings by several processes of which one leaves, or goes silent, on its own; a child of test_leaving_ranks.py.

python leaving_ranks.py FOLDER CONFIG SHARDS PORT    for each fault FOLDER/<fault>/<rank>: what each process said
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401 - before the fork
import torch
import torch.utils.tensorboard
from transformers import BertModel, BertTokenizerFast  # noqa: F401

from data.command import exit_codes
from data.errors import DamagedShard
from trainer import loop, recipes, run
from trainer.reporting import mfu

PROCESSES, LIMIT_SECONDS = 3, 180
mfu._SECONDS = 0.0


def in_step(number: int, action: Callable[[], None]) -> None:
    """Do it in the middle of a step."""
    given = loop.accumulate_gradients

    def accumulate(*words: Any, step: int, **options: Any) -> Any:
        if step == number - 1:
            action()
        return given(*words, step=step, **options)

    loop.accumulate_gradients = accumulate


def send(number: signal.Signals) -> Callable[[], None]:
    """A signal to this process."""
    return lambda: os.kill(os.getpid(), number)


def fail(error: Exception) -> Callable[..., None]:
    """Raises it."""

    def failing(*_: Any, **__: Any) -> None:
        raise error

    return failing


def full_disk(*_: Any, **__: Any) -> None:
    """As a checkpoint finds it."""
    raise OSError(28, "No space left on device")


# What happens, and in which process.
FAULTS: dict[str, tuple[int, Callable[[], None]]] = {
    "killed": (1, lambda: in_step(3, send(signal.SIGKILL))),
    "first_killed": (0, lambda: in_step(3, send(signal.SIGKILL))),
    "unreadable": (2, lambda: in_step(3, fail(DamagedShard("a shard is cut short")))),
    "full": (0, lambda: setattr(loop, "write_checkpoint", full_disk)),
    "damaged": (0, lambda: setattr(run, "open_training_shards", fail(DamagedShard("a shard is cut short")))),
    "terminated": (1, lambda: in_step(3, send(signal.SIGTERM))),
    "terminated_early": (1, lambda: setattr(run, "task_of", lambda *_: os.kill(os.getpid(), signal.SIGUSR1))),
    "stopped": (1, lambda: in_step(3, send(signal.SIGSTOP))),
    "another_model": (1, lambda: setattr(run, "resume", moved(run.resume))),
}


def moved(given: Callable[..., Any]) -> Callable[..., Any]:
    """Another start than the others'."""

    def resume(*words: Any, model: Any, **options: Any) -> Any:
        with torch.no_grad():
            next(model.parameters()).add_(1.0)
        return given(*words, model=model, **options)

    return resume


def join(rank: int, port: int, words: dict[str, str], shards: Path) -> int:
    """The training of a process. Returns its exit code."""
    torch.set_num_threads(1)
    environment = {"RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in environment.items()})
    try:
        with exit_codes():
            return loop.train(recipes.load(words), shards_folder=shards)
    except SystemExit as ended:
        return int(str(ended.code))
    except BaseException:
        traceback.print_exc()
        return 1


def play(fault: str, folder: Path, port: int, words: dict[str, str], shards: Path) -> dict[str, Any]:
    """Exit codes by rank, None where a process did not end in time, and the seconds until the last one ended."""
    folder.mkdir()
    children, began = dict[int, int](), time.monotonic()
    for rank in range(PROCESSES):
        child = os.fork()
        if child:
            children[rank] = child
            continue
        log = os.open(folder / str(rank), os.O_WRONLY | os.O_CREAT)
        os.dup2(log, 1)
        os.dup2(log, 2)
        who, do = FAULTS[fault]
        if fault == "stopped":
            words = {**words, "train.timeout": str(5 / 60)}
        if who == rank:
            do()
        os._exit(join(rank, port, {**words, "train.output": str(folder / "run")}, shards))
    codes: dict[int, int | None] = dict.fromkeys(children)
    expected = set(children) - ({FAULTS[fault][0]} if fault == "stopped" else set())
    while any(codes[rank] is None for rank in expected) and time.monotonic() < began + LIMIT_SECONDS:
        for rank, child in children.items():
            if codes[rank] is None and (ended := os.waitpid(child, os.WNOHANG))[0]:
                codes[rank] = os.waitstatus_to_exitcode(ended[1])
        time.sleep(0.05)
    seconds = time.monotonic() - began
    for rank, child in children.items():
        if codes[rank] is None:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return {"codes": [codes[rank] for rank in range(PROCESSES)], "seconds": round(seconds, 1)}


def main() -> None:
    """All faults, one after the other."""
    folder, config, shards, port = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), int(sys.argv[4])
    words = {"config": config, "train.checkpoint_every": "2"}
    results = {fault: play(fault, folder / fault, port + number, words, shards) for number, fault in enumerate(FAULTS)}
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    main()
