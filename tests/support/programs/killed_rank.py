"""`train` under torchrun, of which one process kills itself in a step, the first time that torchrun starts it.

python -m torch.distributed.run ... -m support.programs.killed_rank RANK STEP run key=value ...
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch

from trainer import loop
from trainer.cli import main
from trainer.reporting import mfu

mfu._SECONDS = 0.0
torch.set_num_threads(1)


def kill_in(number: int) -> None:
    """In the middle of that step, from 1."""
    given = loop.accumulate_gradients

    def accumulate(*words: Any, step: int, **options: Any) -> Any:
        if step == number - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return given(*words, step=step, **options)

    loop.accumulate_gradients = accumulate


if __name__ == "__main__":
    rank, step, *sys.argv[1:] = sys.argv[1:]
    if os.environ["RANK"] == rank and os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
        kill_in(int(step))
    main()
