"""A teacher whose logits lie in the store and whose model is not here: `teacher.backend=imported`.

    teacher.model=NAME               declared with `prep import teacher=NAME revision=... scores=...`: known by that alone
    teacher.model=namespace:START    any namespace of the store, by the start of its name: what its namespace.json says is its key

The second is the teacher of another store (`prep cache import`), under its own key: the fingerprints of all tables are those of that store.
It reads no texts. So no pair can be scored, and no dark example can be made, that is not there already.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import settings
from data.digests import DigestCache, json_digest
from data.errors import RunFailed, UserError
from data.logits.declared import NAMESPACE, DeclaredTeacher
from data.logits.store import LogitStore, namespace_note, namespaces
from data.store.paths import shown
from retrieval.teachers.base import WORDS, OnBatch, Pair, PreparedPairs, PreparingTeacher, TeacherSettings, TeacherSpec, ignore_batch
from retrieval.teachers.pair_template import PairText

FIRST_REVISION = "1"  # of a declared teacher that names none
# Settings of teachers whose model is loaded, beside those that `backends` refuses.
_OF_MODELS = ("trust_remote_code", "precision", "compile", "batch_tokens")
BESIDE = ", beside imported logits of "  # in the name of a teacher that completes another
_SHOWN = 12  # characters of a namespace


@dataclass(frozen=True)
class ImportedSpec(TeacherSpec):
    """A teacher of stored logits."""

    name: str
    stored_key: dict[str, Any]  # of its namespace
    store: Path  # that the logits lie in

    reads_texts = False

    @property
    def is_declared(self) -> bool:
        """Whether it is known by a name alone, so that logits from anywhere may be added to it."""
        return self.stored_key.get("kind") == "imported"

    @property
    def tokenizer_digest(self) -> str:
        """As its key says, where it has a tokenizer."""
        return str(self.stored_key.get("tokenizer", WORDS))

    def key(self, digests: DigestCache) -> dict[str, Any]:
        """What its namespace is the digest of."""
        return self.stored_key

    def notes(self) -> list[str]:
        """What its kind of scores means for the softmax that the student learns from."""
        scores = self.stored_key.get("scores") if self.is_declared else None
        if scores == "cosine":
            return [
                "teacher.imported.scores=cosine: a softmax of numbers between -1 and 1 is nearly flat, and so is C(q): set "
                "train.objective.temperature to about 0.05, and train.score_scale to that of a student with normalised vectors"
            ]
        if scores == "probability":
            return [
                "teacher.imported.scores=probability: its logits are probabilities whose sigmoid was undone. Where many of them "
                "are 0 or 1, rounded, the order of the best passages is lost"
            ]
        return []

    def open(self, given: TeacherSettings) -> ImportedTeacher:
        """What stands for the teacher."""
        return ImportedTeacher(self)


class ImportedTeacher(PreparingTeacher):
    """Has no logit but those of the store: who asks for another is told so."""

    def __init__(self, spec: ImportedSpec) -> None:
        self._spec = spec

    def load(self) -> None:
        """Raises UserError where the store has no logit of the teacher at all."""
        spec = self._spec
        if not LogitStore(spec.store, json_digest(spec.stored_key)).segment_paths():
            raise UserError(
                f"the store {shown(spec.store)} has no logits of teacher.model={spec.name}: {known_teachers(spec.store)}; "
                f"{_ways_to_logits(spec)}"
            )

    def prepare(self, pairs: Sequence[Pair]) -> PreparedPairs:
        """The pairs as they are."""
        return PreparedPairs(pairs, np.zeros(len(pairs), np.int32), np.zeros(len(pairs), bool))

    def score_prepared(self, prepared: PreparedPairs, *, on_batch: OnBatch = ignore_batch) -> NDArray[np.float32]:
        """Raises RunFailed: a run looks first whether all of its pairs are there, so these are gone since."""
        query, text = prepared.pairs[0]
        raise RunFailed(
            f"{len(prepared.pairs):,} pairs have no logit of teacher.model={self._spec.name} any more, the first is {query[:60]!r} with "
            f"{text[:60]!r}: were logits deleted meanwhile? Start the same command again"
        )


@dataclass(frozen=True)
class CompletingSpec(TeacherSpec):
    """A teacher that reads texts, of which the user says that imported logits are its own: together they have a namespace of theirs."""

    own: TeacherSpec
    completes: DeclaredTeacher

    @property
    def name(self) -> str:  # type: ignore[override]
        """Of both."""
        return f"{self.own.name}{BESIDE}{self.completes.name}@{self.completes.revision}"

    @property
    def folder(self) -> Path | None:
        """Of its files, where it has some."""
        return getattr(self.own, "folder", None)

    @property
    def tokenizer_folder(self) -> Path | None:  # type: ignore[override]
        """As the teacher's own."""
        return self.own.tokenizer_folder

    @property
    def template(self) -> PairText | None:  # type: ignore[override]
        """As the teacher's own."""
        return self.own.template

    @property
    def is_remote(self) -> bool:  # type: ignore[override]
        """As the teacher's own."""
        return self.own.is_remote

    @property
    def device(self) -> str | None:  # type: ignore[override]
        """As the teacher's own."""
        return self.own.device

    def key(self, digests: DigestCache) -> dict[str, Any]:
        """The teacher's own, and whose logits stand beside."""
        return {**self.own.key(digests), "completes": self.completes.namespace}

    def notes(self) -> list[str]:
        """The teacher's own."""
        return self.own.notes()

    def open(self, given: TeacherSettings) -> PreparingTeacher:
        """The teacher that scores what is missing."""
        return self.own.open(given)


def completing(spec: TeacherSpec, teacher: settings.Teacher) -> TeacherSpec:
    """The teacher, beside the imported logits that `teacher.completes` names, if it does. Raises UserError where no name is given."""
    if teacher.completes is None:
        return spec
    name, _, revision = teacher.completes.rpartition("@") if "@" in teacher.completes else (teacher.completes, "", FIRST_REVISION)
    if not name or not revision or not spec.reads_texts:
        raise UserError(
            f"teacher.completes={teacher.completes}: expected NAME or NAME@REVISION of a declared teacher, beside a teacher that reads "
            "texts (backend=torch, onnx, http or your own)"
        )
    return CompletingSpec(spec, DeclaredTeacher(name, revision, teacher.imported.scores))


def resolve_imported(teacher: settings.Teacher, *, device: str, store: Path | None = None) -> ImportedSpec:
    """The teacher that the settings declare, or whose namespace they name. Reads no logit.

    Raises UserError: a setting of teachers whose model is loaded, a namespace that the store has not, and where no store is at hand.
    """
    if store is None:
        raise UserError(
            "teacher.backend=imported has logits of known pairs alone, in a store, and can read no others: give a teacher that reads texts "
            "(backend=torch, onnx or http)"
        )
    for name in _OF_MODELS:
        if getattr(teacher, name) != settings.Teacher.model_fields[name].default:
            raise UserError(
                f"teacher.{name}={getattr(teacher, name)} means nothing to teacher.backend=imported, which loads no model: leave it out"
            )
    store = store.absolute()
    if not teacher.model.startswith(NAMESPACE):
        declared = DeclaredTeacher(teacher.model, teacher.revision or FIRST_REVISION, teacher.imported.scores)
        return ImportedSpec(teacher.model, declared.key, store)
    for setting, given in (("revision", teacher.revision), ("imported.scores", teacher.imported.scores)):
        if given not in (None, settings.ImportedScores.model_fields["scores"].default):
            raise UserError(f"teacher.{setting}={given}: teacher.model={teacher.model} names all of its teacher; leave it out")
    namespace = _named(teacher.model.removeprefix(NAMESPACE), store)
    note = namespace_note(store, namespace)
    if json_digest(note["key"]) != namespace:
        raise UserError(
            f"{store / 'teacher_logits' / namespace}: its namespace.json is lost or damaged, so whose logits these are is not known: copy "
            "that file from the store that they came from, or import them again (prep cache import)"
        )
    return ImportedSpec(note["name"], note["key"], store)


def _named(start: str, store: Path) -> str:
    """The one namespace that begins so."""
    found = [name for name in namespaces(store) if name.startswith(start)]
    if len(found) == 1:
        return found[0]
    what = f"is the start of {len(found)} namespaces: give more of it" if found else "is no namespace of the store"
    raise UserError(f"teacher.model={NAMESPACE}{start} {what}; {known_teachers(store)}; prep cache import brings logits of another store")


def known_teachers(store: Path) -> str:
    """The namespaces of the store, for people."""
    notes = [(name, namespace_note(store, name)) for name in namespaces(store)]
    listed = [f"{name[:_SHOWN]} ({note['name']}{_declared(note['key'])})" for name, note in notes]
    return f"it has those of {', '.join(listed)}" if listed else "it has no logits of any teacher"


def _declared(key: dict[str, Any]) -> str:
    """How a declared teacher is asked for again."""
    return f", revision={key.get('revision')}, scores={key.get('scores')}" if key.get("kind") == "imported" else ""


def _ways_to_logits(spec: ImportedSpec) -> str:
    if not spec.is_declared:
        return "prep cache import brings them from another store"
    revision, scores = spec.stored_key["revision"], spec.stored_key["scores"]
    return (
        f"bring them in (prep import FILE teacher={shlex.quote(spec.name)} revision={revision} scores={scores}), or score the pairs "
        "elsewhere (prep run stage=ingest, the stages after it up to dark_examples, prep export format=pairs missing=true, prep import "
        "format=pairs)"
    )
