"""A zygote of trainings: by several processes, or one that kills itself at a given moment."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import pyarrow.parquet  # noqa: F401 - before the fork, as all that a training imports
import torch
import torch.distributed
import torch.utils.tensorboard
from support.programs.zygote import fork_a_run_a_line
from transformers import BertModel, BertTokenizerFast  # noqa: F401

from trainer import recipes
from trainer.loop import train
from trainer.reporting import mfu

mfu._SECONDS = 0.0


def by_processes(log: int, size: str, port: str, shards: str, *args: str) -> None:
    """Train with so many processes; the worst of their exit codes is this one's."""
    children = []
    for rank in range(int(size)):
        child = os.fork()
        if child:
            children.append(child)
            continue
        os.environ.update(RANK=str(rank), WORLD_SIZE=size, LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
        try:
            os._exit(train(recipes.load(dict(arg.split("=", 1) for arg in args)), shards_folder=Path(shards)))
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


def killed(log: int, last: str, shards: str, *args: str) -> None:
    """Count what is done to the output folder, and die at a given moment of it, with half-written checkpoints and all; 0 is never."""
    words = dict(arg.split("=", 1) for arg in args)
    output, moments = words["train.output"], 0

    def count(event: str, arguments: Any) -> None:
        nonlocal moments
        if event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir") and str(arguments[0]).startswith(output):
            moments += 1
            if moments == int(last):
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    code = train(recipes.load(words), shards_folder=Path(shards))
    os.write(log, str(moments).encode())
    sys.exit(code)


def work(log: int, args: list[str]) -> None:
    """`by_processes SIZE PORT SHARDS key=value ...` or `killed MOMENT SHARDS key=value ...`."""
    torch.set_num_threads(1)
    {"by_processes": by_processes, "killed": killed}[args[0]](log, *args[1:])


if __name__ == "__main__":
    fork_a_run_a_line(work)
