"""A zygote of `prep` and `retrieve` for STUDENT, which notes each step and dies at a given one.

Groups, windows and parts are a few rows, so that the tiny collection makes many of them. Each step is noted before it is taken, a renaming
after it, too. The step of the number that comes first among the arguments is the last one that the process takes; 0 is never.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars  # noqa: F401 - before the fork, as all that the commands import
import pyarrow as pa
import pyarrow.parquet
import torch
from support.programs.zygote import fork_a_run_a_line
from transformers import AutoModel, AutoTokenizer, BertModel, BertTokenizerFast  # noqa: F401

import data.tables.shards
import pipeline.cli
import pipeline.executors.worker
import pipeline.negatives.sources
import pipeline.run
import pipeline.stages.pools
import pipeline.tables.building
import retrieval.cli
import retrieval.encoding.encode
import retrieval.encoding.text_encoder
import retrieval.search.searcher
import retrieval.search.to_run
from data.config.settings import Student
from retrieval.models.student import resolve_student

data.tables.shards.ROW_GROUP_ROWS = pipeline.stages.pools.ROW_GROUP_ROWS = 5
retrieval.encoding.encode._WINDOW_ROWS = 10
pipeline.stages.pools._RANKED_AT_ONCE = 70
retrieval.search.searcher.GROUP_QUERIES = retrieval.search.to_run.GROUP_QUERIES = 4
retrieval.search.searcher.MOST_QUERIES = 8


class Steps:
    """The steps of this process."""

    log = -1
    taken = 0
    last = 0

    def take(self, *words: str) -> None:
        """Note a step, and die if it is the last."""
        os.write(self.log, (" ".join(words) + "\n").encode())
        self.taken += 1
        if self.taken == self.last:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.001)


STEPS = Steps()


def note(owner: Any, name: str, word: str, after: str | None = None) -> None:
    """Make each call of a function a step."""
    function = getattr(owner, name)

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        STEPS.take(word)
        result = function(*args, **kwargs)
        if after:
            STEPS.take(after)
        return result

    setattr(owner, name, wrapper)


def note_renamings() -> None:
    """Make each renaming two steps, but for caches, which are written where something has been learned for them, and signs of life."""
    rename = os.replace

    def noted(source: Any, target: Any) -> None:
        name = Path(target).name
        if name in ("digests.json", "seen.json") or "claims" in Path(target).parts:
            rename(source, target)
            return
        STEPS.take("write", name)
        rename(source, target)
        STEPS.take("written", name)

    os.replace = noted


def note_windows() -> None:
    """Make each window of texts that is encoded a step."""
    groups = retrieval.encoding.encode.embedded_groups

    def noted(encoder: Any, texts: Any, **more: Any) -> Iterator[Any]:
        for group in groups(encoder, texts, **more):
            STEPS.take("window", texts.name)
            yield group

    retrieval.encoding.encode.embedded_groups = noted


def work(log: int, args: list[str]) -> None:
    """`LAST_STEP prep|retrieve ARGUMENT ...`"""
    STEPS.log = log
    STEPS.last = int(args[0])
    sys.argv = args[1:]
    {"prep": pipeline.cli.app, "retrieve": retrieval.cli.main}[args[1]]()


if __name__ == "__main__":
    note_renamings()
    note_windows()
    note(retrieval.encoding.text_encoder, "pad_rows", "batch")
    note(retrieval.search.searcher, "exact_search", "search", after="found")
    note(pipeline.stages.pools, "_table", "rows")
    note(pipeline.tables.building, "write_journal", "journal")
    note(shutil, "rmtree", "remove")
    # What a first model and a first table import is imported here, once for all children.
    torch.set_num_threads(1)
    student = resolve_student(Student(model=sys.argv[1]))
    retrieval.encoding.text_encoder.TextEncoder(student, precision="fp32", device="cpu", batch_tokens=64)
    pa.schema([]).empty_table()
    gc.freeze()
    fork_a_run_a_line(work)
