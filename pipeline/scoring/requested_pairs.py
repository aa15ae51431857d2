"""The (query, candidate) pairs that a shard of candidates requests from the teacher, and where the teacher's logits lie."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.digests import DigestCache, pair_key
from data.logits.segment import Keys, as_keys
from data.logits.store import LogitStore
from data.tables.shards import group_rows, read_row_groups
from pipeline.scoring.dedup import first_occurrence
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.base import PreparingTeacher, TeacherSettings, TeacherSpec


def spec_of(experiment: Experiment) -> TeacherSpec:
    """The experiment's teacher, found and checked."""
    return resolve_teacher(experiment.teacher, device=experiment.runner.device)


def teacher_tokenizer(experiment: Experiment) -> Path | None:
    """Folder of the tokenizer that dark examples are made with; None without a teacher, or where it has no tokens.

    Asks for no precision: a host that cannot compute the teacher's may make dark examples.
    """
    if experiment.teacher.backend == "none":
        return None
    return resolve_teacher(experiment.teacher.model_copy(update={"precision": "auto"}), device="cpu").tokenizer_folder


def open_teacher(experiment: Experiment, spec: TeacherSpec) -> PreparingTeacher:
    """The experiment's teacher, for a worker; its model is loaded at the first pair."""
    return spec.open(TeacherSettings.of(experiment.teacher, device=experiment.runner.device, threads=experiment.runner.threads))


def store_of(experiment: Experiment, teacher: TeacherSpec, digests: DigestCache, *, warn: Callable[[str], None]) -> LogitStore:
    """The teacher's namespace of the experiment's logit store."""
    return LogitStore(Path(experiment.store), teacher.namespace(digests), warn=warn)


@dataclass(frozen=True)
class RequestedPairs:
    """The pairs of one shard of candidates: 20 bytes a row."""

    keys: Keys  # of the distinct pairs, in the order in which they first occur
    pair_of_row: NDArray[np.int32]  # which distinct pair each row is

    @staticmethod
    def read(path: Path) -> RequestedPairs:
        """The keys of all rows, a row group at a time."""
        keys, read = np.empty((sum(group_rows(path)), 2), dtype=np.uint64), 0
        for table in read_row_groups(path, columns=["query", "text"]):
            keys[read : read + table.num_rows] = as_keys([pair_key(query, text) for query, text in texts_of_rows(table)])
            read += table.num_rows
        first, pair_of_row = first_occurrence(keys)
        return RequestedPairs(keys if len(first) == len(keys) else keys[first], pair_of_row)


def texts_of_rows(table: pa.Table) -> list[tuple[str, str]]:
    """(query, candidate) of each row."""
    return list(zip(table.column("query").to_pylist(), table.column("text").to_pylist(), strict=True))
