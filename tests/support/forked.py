"""The three commands in forked processes: each starts in milliseconds, since its imports are made once, in a server that forks."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

ENTRIES = {"prep": "pipeline.__main__", "train": "trainer.__main__", "retrieve": "retrieval.__main__"}
_PRELOADED = [
    *ENTRIES.values(), "pipeline.cli", "trainer.cli", "retrieval.cli",
    "pipeline.run", "pipeline.report.page", "pipeline.report.inspect", "pipeline.logit_cache", "trainer.recipes",
    "trainer.loop", "trainer.reporting.dry_run", "retrieval.encoding.encode", "retrieval.search.index_table", "retrieval.search.to_run",
    "retrieval.teachers.rerank", "retrieval.search.query", "retrieval.evaluation.metrics", "retrieval.evaluation.printing",
    "retrieval.encoding.text_encoder", "transformers.models.auto.modeling_auto", "rich.console", "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
]  # fmt: skip


@dataclass(frozen=True)
class Ended:
    """How a command ended. `code` is None where it did not end in time and was killed."""

    code: int | None
    output: str  # both streams, in the order of writing


def fork_server(*more: str) -> ForkServerContext:
    """A context whose processes have the commands' modules loaded, and `more`. Nothing of them has run there, so no thread is lost by the
    fork."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOADED, *more])
    return context


def begin_forked(
    context: ForkServerContext, words: list[str], *, folder: Path, log: Path, environment: Mapping[str, str] | None = None
) -> BaseProcess:
    """Begin `prep`, `train` or `retrieve` with the folder as working directory, `environment` beside what the server has; its output goes
    into the file `log`."""
    process = context.Process(target=_become, args=(words, str(folder), str(log), dict(environment or {})))
    process.start()
    return process


def run_forked(
    context: ForkServerContext,
    words: list[str],
    *,
    folder: Path,
    log: Path,
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run a command as `begin_forked` begins it; its output goes through the file `log`."""
    noted = log.with_suffix(".code")
    noted.unlink(missing_ok=True)
    process = begin_forked(context, words, folder=folder, log=log, environment=environment)
    process.join(timeout)
    in_time = not process.is_alive()
    if not in_time:
        process.kill()
        process.join()
    # What the process itself noted: the fork server now and then loses a code where several threads start processes.
    code = int(noted.read_text()) if noted.exists() else process.exitcode
    return Ended(code if in_time else None, log.read_text(errors="replace") if log.exists() else "")


def _become(words: list[str], folder: str, log: str, environment: dict[str, str]) -> None:
    """In the new process: be the command. Its exit code is this process's."""
    os.environ.update(environment)
    with open(log, "wb") as file, open(os.devnull, "rb") as nothing:
        for number, stream in ((0, nothing), (1, file), (2, file)):
            os.dup2(stream.fileno(), number)
    sys.stdin, sys.stdout, sys.stderr = (open(number, mode, buffering=1) for number, mode in ((0, "r"), (1, "w"), (2, "w")))  # noqa: SIM115
    os.chdir(folder)
    sys.argv = words
    import torch

    torch.set_num_threads(1)
    try:
        importlib.import_module(ENTRIES[words[0]]).main()
    except SystemExit as ended:
        Path(log).with_suffix(".code").write_text(str(ended.code or 0))
        raise
