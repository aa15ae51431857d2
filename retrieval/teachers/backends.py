"""Which teacher `teacher.backend` names: a built-in by its name, anyone's own by its import path.

    teacher.backend=torch                          in `BACKENDS`
    teacher.backend=mylab.teachers:Bm25Teacher     called with `TeacherSettings`; gives a `Teacher`

The logits of a teacher outside this project are kept under its import path, its `version` (0 where it has none), and four settings:
`model`, `revision`, `max_tokens` and `precision`. A `model` that is a file or folder is taken by its content, any other as it is written.
The author raises `version` when the same settings give other logits.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import settings
from data.config.registry import Registry, is_import_path, plugin_call
from data.digests import DigestCache
from data.errors import RunFailed, UserError
from retrieval.teachers.base import (
    OnBatch,
    Pair,
    PreparedPairs,
    PreparingTeacher,
    Teacher,
    TeacherSettings,
    TeacherSpec,
    ignore_batch,
    with_plain_marks,
)
from retrieval.teachers.cross_encoder import resolve_cross_encoder, resolve_graph
from retrieval.teachers.http.teacher import resolve_http
from retrieval.teachers.imported import completing, resolve_imported


def _no_teacher(teacher: settings.Teacher, *, device: str) -> TeacherSpec:
    raise UserError("teacher.backend=none: there is no teacher; set teacher.backend=torch, onnx, http or imported")


# Each finds and checks what its settings name, and opens nothing.
BACKENDS: dict[str, Callable[..., TeacherSpec]] = {
    "torch": resolve_cross_encoder, "onnx": resolve_graph, "http": resolve_http, "imported": resolve_imported,
    "none": _no_teacher,
}  # fmt: skip
# The settings that are not every backend's own; `resolve_http` refuses those of files itself.
_READ = {
    "torch": ("template", "instruction", "answers", "label"), "onnx": ("template", "instruction"),
    "http": ("template", "instruction", "answers", "label", "http"), "imported": ("imported",),
}  # fmt: skip
_REGISTRY: Registry[Any] = Registry("teacher", BACKENDS)


def resolve_teacher(teacher: settings.Teacher, *, device: str, store: Path | None = None) -> TeacherSpec:
    """Find and check the teacher of the settings; `store` has the logits of one that was imported.

    Raises UserError: no such backend or module, and what the backend finds in its files.
    """
    found = _REGISTRY.get(teacher.backend, setting="teacher.backend")
    for name in ("template", "instruction", "answers", "label", "http", "imported"):
        given = getattr(teacher, name) != settings.Teacher.model_fields[name].default
        if given and name not in _READ.get(teacher.backend, ()) and not (name == "imported" and teacher.completes):
            raise UserError(f"teacher.{name} is given, which teacher.backend={teacher.backend} does not read; leave it out")
    if is_import_path(teacher.backend):
        return completing(PluginSpec(teacher), teacher)
    of_store = {"store": store} if teacher.backend == "imported" else {}
    spec: TeacherSpec = found(teacher, device=device, **of_store)
    return completing(spec, teacher)


@dataclass(frozen=True)
class PluginSpec(TeacherSpec):
    """A teacher of an import path."""

    teacher: settings.Teacher  # whose backend is the import path

    @property
    def name(self) -> str:  # type: ignore[override]
        """Import path and model."""
        return f"{self.teacher.backend} of {self.teacher.model}"

    def key(self, digests: DigestCache) -> dict[str, Any]:
        """Import path, version and what the head of this file names."""
        path = Path(self.teacher.model)
        model: Any = self.teacher.model
        if os.path.exists(path):
            files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())
            model = {file.relative_to(path).as_posix(): digests.file(file) for file in files}
        own = {name: getattr(self.teacher, name) for name in ("revision", "max_tokens", "precision")}
        return {**_REGISTRY.key(self.teacher.backend, setting="teacher.backend"), "model": model, **own}

    def open(self, given: TeacherSettings) -> PluginTeacher:
        """The teacher that the import path makes."""
        backend = self.teacher.backend
        return PluginTeacher(_REGISTRY.get(backend, setting="teacher.backend")(given), name=backend)


class PluginTeacher(PreparingTeacher):
    """A teacher of other people's code, whose logits are checked. It reads `[SEP]` and `[MASK]` for the marks of dark examples."""

    def __init__(self, teacher: Teacher, *, name: str) -> None:
        if not hasattr(teacher, "score"):
            raise UserError(f"teacher.backend={name} gives a {type(teacher).__name__}, which has no score(pairs)")
        self._teacher: Any = teacher
        self._name = name
        self._prepares = hasattr(teacher, "prepare")

    def load(self) -> None:
        """Score one pair."""
        self.score([("a query", "a passage")])

    def prepare(self, pairs: Sequence[Pair]) -> PreparedPairs:
        """As the teacher prepares them; without token counts where it has no `prepare`."""
        plain = with_plain_marks(pairs)
        if not self._prepares:
            return PreparedPairs(plain, np.zeros(len(plain), np.int32), np.zeros(len(plain), bool))
        with plugin_call(self._name, setting="teacher.backend"):
            prepared: PreparedPairs = self._teacher.prepare(plain)
        return prepared

    def score_prepared(self, prepared: PreparedPairs, *, on_batch: OnBatch = ignore_batch) -> NDArray[np.float32]:
        """[n] raw logits. Raises RunFailed where they are not one finite number a pair."""
        with plugin_call(self._name, setting="teacher.backend"):
            if self._prepares:
                given = self._teacher.score_prepared(prepared, on_batch=on_batch)
            else:
                given = self._teacher.score(prepared.pairs)
                on_batch(len(prepared.pairs), 0, 0)
            logits = np.asarray(list(given) if isinstance(given, Iterator) else given, dtype=np.float32)
        if logits.shape != (len(prepared.pairs),):
            raise RunFailed(f"teacher.backend={self._name} gave {list(logits.shape)} logits for {len(prepared.pairs)} pairs")
        if broken := int((~np.isfinite(logits)).sum()):
            raise RunFailed(f"teacher.backend={self._name} gave {broken} logits that are not finite numbers")
        return logits
