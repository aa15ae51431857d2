"""The models of an experiment, each resolved once a command: its folder, the settings that its files name, the digests of its content.

The driver resolves them. They travel with each task, so a worker computes by the driver's settings and looks at digests alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from data.config.settings import Experiment, Student
from data.digests import DigestCache, json_digest
from data.errors import UserError
from data.logits.store import LogitStore, namespace_note, namespaces
from data.store.paths import store_root
from retrieval.compute import precision
from retrieval.compute.settled import Note
from retrieval.model_files.files import resolve_folder
from retrieval.model_files.sentence_transformers_files import is_sentence_transformers
from retrieval.models.marks import Marks, marks_of
from retrieval.models.student import OF_THE_OTHERS, StudentSpec, resolve_student
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.base import TeacherSpec
from retrieval.teachers.cross_encoder import CrossEncoderSpec
from retrieval.teachers.imported import CompletingSpec
from retrieval.teachers.pair_template import PairText

Found = StudentSpec | TeacherSpec | UserError  # of a role: what it is, or why it is nothing
Key = dict[str, Any]  # what a fingerprint holds of a model


class ResolvedModels:
    """Student, miner and teacher, each resolved when it is first asked for, and never again.

    What cannot be resolved raises the same UserError each time; see `resolve_student` and `resolve_teacher`.
    """

    def __init__(self, experiment: Experiment, digests: DigestCache | None = None) -> None:
        self.experiment = experiment
        self.digests = digests or DigestCache.of_store(experiment.store)
        self._found: dict[str, Found] = {}
        self._keys: dict[str, Key] = {}
        self._settled: dict[str, str] = {}  # role -> what `auto` means
        self._notes: dict[str, Note] = {}  # of these roles

    @property
    def student(self) -> StudentSpec:
        """What is trained."""
        return cast(StudentSpec, self._resolved("student", lambda: resolve_student(self.experiment.student)))

    @property
    def has_student(self) -> bool:
        """Whether the student's files are here: scoring does without them."""
        try:
            return bool(self.student)
        except UserError:
            return False

    @property
    def miner(self) -> StudentSpec:
        """What embeds and mines: the student as it starts, or `embed.model`, with all of its layers.

        `embed.model` reads as long a text as the student. Pooling, normalisation and prompts are those of its own files where it is a
        sentence-transformers folder, as trained students are, and else the student's.
        """
        if self.experiment.embed.model is None:
            return self.student
        return cast(StudentSpec, self._resolved("miner", self._resolve_miner))

    @property
    def teacher(self) -> TeacherSpec:
        """What scores pairs, its precision resolved."""
        return cast(TeacherSpec, self._resolved("teacher", self._resolve_teacher))

    def _resolve_teacher(self) -> TeacherSpec:
        """Of one that this project opens under torch, the precision is the store's; that this machine computes it is seen when it opens."""
        settings, device, store = self.experiment.teacher, self.experiment.runner.device, store_root(self.experiment.store)
        if settings.backend != "torch":
            return self._where_scored(resolve_teacher(settings, device=device, store=store))
        spec = resolve_teacher(settings.model_copy(update={"precision": "auto"}), device=device, store=store)
        if settings.precision == "auto":
            key = {name: value for name, value in spec.key(self.digests).items() if name != "precision"}
            return self._where_scored(_computing_in(self._meaning("teacher", key), spec))
        return self._where_scored(_computing_in(precision.chosen(settings.precision, device=device), spec))

    def _where_scored(self, spec: TeacherSpec) -> TeacherSpec:
        """The teacher on the kind of device whose logits the store has: for a CPU's command those of GPUs, where no CPU scored any.

        So what was scored on GPUs is not paid for again. What is missing in it a CPU does not add: see `load_cross_encoder`.
        """
        root = store_root(self.experiment.store)
        if self.experiment.runner.device != "cpu" or not any(_is_of_gpus(root, name) for name in namespaces(root)):
            return spec
        of_gpus = _on_device("cuda", spec)  # logits count, not folders: a job may have ended before its first one
        own, theirs = (LogitStore(root, one.namespace(self.digests)).segment_paths() for one in (spec, of_gpus))
        return of_gpus if theirs and not own else spec

    @property
    def teacher_precision(self) -> str | None:
        """In which number format the teacher computes; None where that is not this project's choice."""
        spec = self.teacher
        own = spec.own if isinstance(spec, CompletingSpec) else spec
        return own.precision if isinstance(own, CrossEncoderSpec) and own.backend == "torch" else None

    def precision_of(self, kind: str) -> str:
        """In which format the vectors of `corpus` or `queries` are computed: fp32, bf16 or fp16."""
        asked = self.experiment.embed.precision if kind == "corpus" else self.experiment.embed.query_precision
        if asked != "auto":
            return precision.chosen(asked, device=self.experiment.runner.device)
        return self._meaning("embed.corpus", self.key_of_vectors(kind))

    def key_of_vectors(self, kind: str) -> Key:
        """What a fingerprint holds of the miner for `corpus` or `queries`."""
        return {name: value for name, value in self.key("miner").items() if name not in OF_THE_OTHERS[kind]}

    def _meaning(self, role: str, key: Key) -> str:
        """What `auto` means: as noted in the store; as in its tables; as this machine has it."""
        if role not in self._settled:
            device = self.experiment.runner.device
            note, own = Note(self.experiment.store, role, key), precision.chosen("auto", device=device)
            self._notes[role] = note
            self._settled[role] = note.read() or note.of_tables(own=own, device=device) or own
        return self._settled[role]

    def settle(self, role: str) -> bool:
        """Note in the store what `auto` means for `embed.corpus` or `teacher`. Returns whether another command noted something else."""
        if role == "teacher" and self.experiment.teacher.backend == "torch":
            _ = self.teacher
        elif role == "embed.corpus":
            _ = self.precision_of("corpus")
        if (note := self._notes.get(role)) is None:  # the settings say which
            return False
        before, self._settled[role] = self._settled[role], note.settle(self._settled[role])
        if before == self._settled[role]:
            return False
        if role == "teacher":
            self._found.pop("teacher")
            self._keys.pop("teacher", None)
        return True

    @property
    def teacher_tokenizer(self) -> Path | None:
        """Folder of the tokenizer that dark examples are made with; None without a teacher, or where it has no tokens."""
        spec = self._teacher_for_texts
        return spec.tokenizer_folder if spec else None

    @property
    def teacher_tokenizer_digest(self) -> str | None:
        """What a fingerprint holds of that tokenizer; None without a teacher."""
        spec = self._teacher_for_texts
        return spec.tokenizer_digest if spec else None

    @property
    def teacher_template(self) -> PairText | None:
        """What stands around the teacher's pairs."""
        spec = self._teacher_for_texts
        return spec.template if spec else None

    @property
    def _teacher_for_texts(self) -> TeacherSpec | None:
        """The teacher, if there is one. Asks for no precision: a host that cannot compute the teacher's may make dark examples."""
        settings = self.experiment.teacher
        if settings.backend == "none":
            return None
        try:
            return self.teacher
        except UserError:
            store = store_root(self.experiment.store)
            return resolve_teacher(settings.model_copy(update={"precision": "auto"}), device="cpu", store=store)

    @property
    def teacher_marks(self) -> Marks:
        """What stands for the marks of dark examples in what the teacher reads."""
        teacher = self.experiment.teacher
        if not self._has_dark_examples:
            return Marks()
        settings = self.experiment.dark_examples
        return marks_of(self.teacher_tokenizer, settings, option="teacher.model", trusted=teacher.trust_remote_code)

    @property
    def student_marks(self) -> Marks:
        """The same in what the student reads."""
        if not self._has_dark_examples:
            return Marks()
        student = self.student
        settings = self.experiment.dark_examples
        return marks_of(student.weights_folder, settings, option="student.model", trusted=student.trust_remote_code)

    @property
    def _has_dark_examples(self) -> bool:
        return self.experiment.teacher.backend != "none" and not self.experiment.curriculum.enabled

    @property
    def namespace(self) -> str:
        """The folder of the teacher's logits in the store."""
        return json_digest(self.key("teacher"))

    def key(self, role: str) -> Key:
        """What a fingerprint holds of `student`, `miner` or `teacher`: digests of content and resolved settings, never a path."""
        if role == "miner" and self.experiment.embed.model is None:
            role = "student"
        if role not in self._keys:
            self._keys[role] = getattr(self, role).key(self.digests)
        return self._keys[role]

    def reread(self) -> ResolvedModels:
        """The same models with the digests of their files as they are now. A file that was not touched is not read."""
        again = ResolvedModels(self.experiment, self.digests)
        again._found, again._settled, again._notes = self._found, self._settled, self._notes
        return again

    def resolved(self) -> dict[str, tuple[Found, Key | None]]:
        """What was resolved so far, for a worker: by role, with the key where it was asked for."""
        return {role: (found, self._keys.get(role)) for role, found in self._found.items()}

    @staticmethod
    def of_driver(resolved: dict[str, tuple[Found, Key | None]], experiment: Experiment, digests: DigestCache) -> ResolvedModels:
        """What the driver resolved. A folder that this host does not have, as with a hub's cache of its own, is looked for here."""
        models = ResolvedModels(experiment, digests)
        for role, (found, key) in resolved.items():
            folder = getattr(found, "folder", None)
            if folder is None or folder.is_dir():
                models._found[role] = found
            if key is not None:
                models._keys[role] = key
        return models

    def _resolved(self, role: str, resolve: Callable[[], StudentSpec | TeacherSpec]) -> StudentSpec | TeacherSpec:
        if role not in self._found:
            try:
                self._found[role] = resolve()
            except UserError as error:
                self._found[role] = error
        found = self._found[role]
        if isinstance(found, UserError):
            raise found
        return found

    def _resolve_miner(self) -> StudentSpec:
        settings: dict[str, Any] = {"model": self.experiment.embed.model}
        of_student = ["query_tokens", "passage_tokens"]
        if not is_sentence_transformers(resolve_folder(settings["model"], option="embed.model")):
            of_student += ["pooling", "normalize", "query_prefix", "passage_prefix"]
        settings |= {name: getattr(self.student, name) for name in of_student}
        return resolve_student(Student(**settings), option="embed.model")


def _computing_in(meant: str, spec: TeacherSpec) -> TeacherSpec:
    """A teacher that this project opens under torch, in another number format."""
    if isinstance(spec, CompletingSpec):
        return replace(spec, own=_computing_in(meant, spec.own))
    return replace(spec, precision=meant) if isinstance(spec, CrossEncoderSpec) else spec


def _on_device(device: str, spec: TeacherSpec) -> TeacherSpec:
    """The same teacher as another kind of device computes it."""
    if isinstance(spec, CompletingSpec):
        return replace(spec, own=_on_device(device, spec.own))
    return replace(spec, device=device) if isinstance(spec, CrossEncoderSpec) else spec


def _is_of_gpus(store: Path, namespace: str) -> bool:
    return str(namespace_note(store, namespace)["key"].get("precision")).endswith(precision.OF_GPUS)
