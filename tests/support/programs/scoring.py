"""A zygote of `prep run stage=teacher_scores`, which notes how many pairs each forward pass scores."""

from __future__ import annotations

import os
import time
from typing import Any

import pyarrow.parquet  # noqa: F401 - before the fork, as all that a run imports
import torch
from support.programs.zygote import fork_a_run_a_line
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertForSequenceClassification, BertTokenizerFast  # noqa: F401

import retrieval.compute.unpadded  # noqa: F401
from data.config.settings import load
from pipeline.executors.local import LocalExecutor
from pipeline.run import run
from retrieval.teachers.cross_encoder import TorchCrossEncoder


def work(log: int, args: list[str]) -> None:
    """`key=value ...`, and `workers=N`: as many as the shards' windows are shared by, though one does it all."""
    words = dict(arg.split("=", 1) for arg in args)
    workers = int(words.pop("workers", 1))
    LocalExecutor.workers = lambda self, *, uses_device: workers  # type: ignore[method-assign]
    forward = TorchCrossEncoder.logits

    def noted(self: TorchCrossEncoder, ids: Any, mask: Any, segments: Any) -> Any:
        os.write(log, f"{len(ids)}\n".encode())
        time.sleep(0.01)
        return forward(self, ids, mask, segments)

    TorchCrossEncoder.logits = noted  # type: ignore[method-assign]
    torch.set_num_threads(1)
    run(load(words), stage="teacher_scores", say=lambda line: None)


if __name__ == "__main__":
    fork_a_run_a_line(work)
