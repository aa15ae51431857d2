"""Every model that a run will use is opened once before its first shard is built: a checkpoint that lacks weights, or whose results depend
on the batch, is refused before hours of work, not after them.

STORE/opened_models.json    [digest of (model, precision, device, versions)] of those that opened well: each is opened so but once
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from data.config.settings import Experiment, Student
from data.digests import DigestCache, json_digest
from data.tables.shards import atomic_write
from pipeline.executors.runner import Executor
from pipeline.scoring.requested_pairs import open_teacher, spec_of
from pipeline.stage import Table
from retrieval.compute import precision
from retrieval.models.student import miner_of, resolve_student

_FILE = "opened_models.json"
_LIBRARIES = ("torch", "transformers")


def open_once(experiment: Experiment, tables: Sequence[Table], *, digests: DigestCache, runner: Executor) -> None:
    """Open, in a worker, the models of these tables that this store has not seen opened.

    Raises UserError: see `TextEncoder`, `TorchCrossEncoder`, and whatever a teacher finds at its first pair.
    """
    known = _read(experiment)
    new = {name: key for name in _models_of(tables, experiment) if (key := _key(name, experiment, digests)) not in known}
    if new:
        runner.ask(_open, sorted(new))
        atomic_write(Path(experiment.store) / _FILE, json.dumps(sorted(known | set(new.values()))).encode())


def _models_of(tables: Sequence[Table], experiment: Experiment) -> set[str]:
    """`miner` embeds, `teacher` scores, `student` reads the training rows where something else embeds."""
    names = {"miner" if table.stage == "embed" else "teacher" if table.pairs else "student" for table in tables if _opens(table)}
    return names if experiment.embed.model else names - {"student"}


def _opens(table: Table) -> bool:
    return table.stage in ("embed", "shards") or table.pairs is not None


def _student(name: str, experiment: Experiment) -> tuple[Student, str]:
    """The settings of a dual encoder, and the setting that names it."""
    if name == "miner" and experiment.embed.model:
        return miner_of(experiment), "embed.model"
    return experiment.student, "student.model"


def _precision(experiment: Experiment) -> str:
    return precision.resolve(experiment.embed.precision, device=experiment.runner.device)


def _key(name: str, experiment: Experiment, digests: DigestCache) -> str:
    if name == "teacher":
        model = spec_of(experiment).key(digests)
    else:
        student, option = _student(name, experiment)
        model = {**resolve_student(student, option=option).key(digests), "precision": _precision(experiment)}
    return json_digest([model, experiment.runner.device, [version(library) for library in _LIBRARIES]])


def _read(experiment: Experiment) -> set[str]:
    try:
        return set(json.loads((Path(experiment.store) / _FILE).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return set()


def _open(experiment: Experiment, names: Sequence[str]) -> None:
    """Open the models one after the other, as the stages do. Runs in a worker."""
    from retrieval.compute.batching import DEFAULT_BATCH_TOKENS
    from retrieval.encoding.text_encoder import TextEncoder

    device = experiment.runner.device
    for name in names:
        if name == "teacher":
            open_teacher(experiment, spec_of(experiment)).load()
        else:
            student, option = _student(name, experiment)
            TextEncoder(student, precision=_precision(experiment), device=device, batch_tokens=DEFAULT_BATCH_TOKENS[device], option=option)
