"""A zygote of `prep run` that has several children at once: for each line `LOG key=value ...` one, whose process id is printed.

What it prints goes to LOG.said, how many pairs each forward pass scored to LOG, and its exit code, at the end, to LOG.code.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from typing import Any

import pyarrow.parquet  # noqa: F401 - before the fork, as all that a run imports
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification, BertModel  # noqa: F401

import retrieval.compute.unpadded  # noqa: F401
from pipeline.cli import app
from retrieval.teachers.cross_encoder import TorchCrossEncoder

BATCH_SECONDS = 0.02  # so that jobs are at it at the same time


def work(log: str, args: list[str]) -> None:
    forward, noted = TorchCrossEncoder.logits, os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def slowly(self: TorchCrossEncoder, ids: Any, mask: Any, segments: Any) -> Any:
        os.write(noted, f"{len(ids)}\n".encode())
        time.sleep(BATCH_SECONDS)
        return forward(self, ids, mask, segments)

    TorchCrossEncoder.logits = slowly  # type: ignore[method-assign]
    torch.set_num_threads(1)
    app(["run", *args])


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for the supervisors
    for line in sys.stdin:
        log, *args = line.split()
        if os.fork():
            continue
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        child = os.fork()
        if child:
            print(child, flush=True)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            with open(f"{log}.code.part", "w") as file:
                file.write(str(code))
            os.rename(f"{log}.code.part", f"{log}.code")
            os._exit(0)
        said = os.open(f"{log}.said", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdin.close()
        code = 1
        try:
            work(log, args)
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
