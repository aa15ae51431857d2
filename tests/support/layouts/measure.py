"""What becomes of a row here: as exact as its reference, to a figure; refused, with the message; anything else is a fault.

Nothing but `UserError` is a refusal, and it comes before a run's first shard: from the files (`resolve_teacher`, `resolve_student`), or
from the model when it is tried out (`pipeline/opening.py`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray
from support.layouts.references import Peer, by_transformers
from support.layouts.student_rows import StudentRow
from support.layouts.teacher_rows import TeacherRow
from support.layouts.texts import PAIRS, PASSAGES, QUERIES
from support.layouts.tokenizers import TOKENIZERS
from support.layouts.weights import shared
from support.training import write_shards

from data.config import fields
from data.config.settings import DarkExamples, Student, Teacher, load
from data.digests import DigestCache
from data.errors import UserError
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK, CandidateKind
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.model_files.files import tokenizer_digest
from retrieval.models.marks import marks_of as marks_in
from retrieval.models.student import resolve_student
from retrieval.models.tokenizer import Tokenizer
from retrieval.teachers.backends import resolve_teacher
from retrieval.teachers.base import TeacherSettings

Encode = Callable[[list[str]], list[Any]]
MAX_TOKENS = 160
MESSAGE = 230  # characters of a message in the table


@dataclass(frozen=True)
class Outcome:
    """A cell of the table: the largest difference to the reference, why it is refused, or what went wrong."""

    difference: float | None = None
    message: str = ""  # of a refusal, on one line, without paths of this machine
    fault: Exception | None = None  # neither

    @property
    def cell(self) -> str:
        """As the page has it. A difference is doubled, then rounded up: other processors round in other places."""
        if self.fault:
            return f"WRONG: {type(self.fault).__name__}"
        return f"refused: {shortened(self.message)}" if self.difference is None else f"works, {bound(2 * self.difference)}"


def bound(difference: float) -> str:
    """The power of ten that a difference stays below, not below 1e-6."""
    return next(f"≤ 1e-{power}" for power in (6, 5, 4, 3, 2, 1) if difference <= 10.0**-power or power == 1)


def outcome_of(measure: Callable[[], float], folder: Path) -> Outcome:
    """What `measure` gives, or what it raises."""
    try:
        return Outcome(measure())
    except UserError as error:
        return Outcome(message=_plain(str(error), folder))
    except Exception as error:  # a library's, a reference's, or an AssertionError of this file
        return Outcome(fault=error)


@contextmanager
def nothing_refused() -> Iterator[None]:
    """A refusal inside comes too late: a run's first shard is being made."""
    try:
        yield
    except UserError as error:
        raise AssertionError(f"refused after it was opened: {error}") from error


def shortened(message: str) -> str:
    """Without the setting and the folder in front, cut between words."""
    message = re.sub(r"^((teacher|student)\.(model|layers): )?(FOLDER )?", "", message)
    if len(message) <= MESSAGE:
        return message
    return message[:MESSAGE].rsplit(" ", 1)[0].rstrip(",;:") + " ..."


def _plain(message: str, folder: Path) -> str:
    message = re.sub(rf"{re.escape(str(folder.resolve()))}(?!-)|{re.escape(str(folder))}(?!-)", "FOLDER", " ".join(message.split()))
    return re.sub(rf"{re.escape(gettempdir())}/\S*/", ".../", message)


# Teachers


@dataclass(frozen=True)
class TeacherOutcome:
    """Of a row: as it is, and trained by `train.task=cross_encoder` and saved. None: not measured."""

    plain: Outcome
    trained: Outcome | None = None


def teacher_outcome(row: TeacherRow, work: Path) -> TeacherOutcome:
    """Token ids that differ are a fault. `work` is a folder for digests and the training's files."""
    folder = shared(row.layout) / row.at
    plain = outcome_of(lambda: _teacher_difference(row, folder, DigestCache(work / "digests.json")), folder)
    return TeacherOutcome(plain, outcome_of(lambda: _trained_teacher(row, folder, work), folder) if row.trained else None)


def _teacher_difference(row: TeacherRow, folder: Path, digests: DigestCache) -> float:
    given = {"model": str(folder), "precision": "fp32", "max_tokens": MAX_TOKENS, **row.settings}
    settings = fields.build(Teacher, given)
    spec = resolve_teacher(settings, device="cpu")
    spec.key(digests)
    teacher = spec.open(TeacherSettings.of(settings, device="cpu", threads=1))
    teacher.load()
    with nothing_refused():
        prepared = teacher.prepare(PAIRS)
        logits = teacher.score_prepared(prepared)
    assert row.reference, f"{row.name} works, but is to be refused"
    expected = row.reference(folder, settings.max_tokens)
    different = [pair for pair, ours, theirs in zip(PAIRS, prepared.pairs, expected.ids, strict=True) if ours.ids.tolist() != theirs]
    assert not different, f"{len(different)} of {len(PAIRS)} pairs have other token ids, {different[0]!r} first"
    assert np.std(expected.logits) > 0.01, "the reference tells no pairs apart"
    return largest(logits, expected.logits)


def _trained_teacher(row: TeacherRow, folder: Path, work: Path) -> float:
    """Of the cross-encoder that three steps leave."""
    reader = Tokenizer(folder)
    rows = [training_row(number, *(partial(reader.encode, max_tokens=MAX_TOKENS),) * 2) for number in range(12)]
    student = {"model": str(folder), "pooling": "mean", "query_tokens": 64, "passage_tokens": MAX_TOKENS}
    teacher = {"model": str(folder), "max_tokens": MAX_TOKENS}
    saved = trained(rows, work, tokenizer=tokenizer_digest(folder), task="cross_encoder", teacher=teacher, student=student)
    before, after = (by_transformers()(place, MAX_TOKENS).logits for place in (folder, saved))
    assert largest(before, after) > 1e-4, "the steps changed nothing"
    return _teacher_difference(row, saved, DigestCache(work / "digests.json"))


def trained(rows: list[dict[str, Any]], work: Path, *, tokenizer: str, task: str, **sections: dict[str, Any]) -> Path:
    """The folder of the model that three steps on these 12 rows leave. `tokenizer` is the digest of that which made their tokens."""
    from trainer.loop import train

    write_shards(work / "shards", [rows], tokenizer=tokenizer)
    settings = {
        "store": str(work / "store"), "ingest": {"path": "nowhere"}, "teacher": {"model": "none"}, **sections,
        "train": {
            "task": task, "output": str(work / "run"), "batch_queries": 4, "epochs": 1, "warmup_steps": 0, "learning_rate": 1e-3,
            "precision": "fp32", "threads": 1,
        },
    }  # fmt: skip
    (work / "experiment.yaml").write_text(yaml.safe_dump(settings))
    assert train(load({"config": str(work / "experiment.yaml")}), shards_folder=work / "shards") == 0
    assert len((work / "run" / "metrics.jsonl").read_text().splitlines()) == 3
    return next(path for path in (work / "run").iterdir() if (path / "config.json").is_file())


def training_row(number: int, read_queries: Encode, read_passages: Encode) -> dict[str, Any]:
    """A query, its positive and three negatives, in tokens."""
    chance = np.random.default_rng(number)
    passages = [PASSAGES[(number + place) % len(PASSAGES)] for place in range(4)]
    return {
        "query_id": f"q{number}", "draw": 0, "query_tokens": read_queries([QUERIES[number]])[0],
        "candidate_tokens": read_passages(passages), "candidate_id": [f"q{number}-{place}" for place in range(4)],
        "candidate_kind": [int(CandidateKind.POSITIVE), *[int(CandidateKind.NEGATIVE)] * 3],
        "teacher_logits": chance.normal(size=4).astype(np.float32).tolist(), "confidence": float(np.float32(-chance.random())),
        "never_ids": [],
    }  # fmt: skip


def largest(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """The largest difference. Raises AssertionError for other shapes and what is no number."""
    assert ours.shape == theirs.shape, f"{list(ours.shape)}, the reference {list(theirs.shape)}"
    assert np.isfinite(ours).all()
    return float(np.abs(ours - theirs).max())


# Students


@dataclass(frozen=True)
class StudentOutcome:
    """Of a row: as it is, trained and saved, and cut to one layer. None: not measured."""

    plain: Outcome
    trained: Outcome | None = None
    layers: Outcome | None = None


def student_outcome(row: StudentRow, work: Path) -> StudentOutcome:
    """`work` is a folder for the training's files."""
    folder = shared(row.layout)
    plain = outcome_of(lambda: _student_difference(row, folder), folder)
    if plain.difference is None:
        return StudentOutcome(plain)
    trained = outcome_of(lambda: _trained_difference(row, folder, work), folder) if row.trained else None
    layers = outcome_of(lambda: _student_difference(row, folder, layers=1), folder) if row.layers else None
    return StudentOutcome(plain, trained, layers)


def encoder_of(folder: Path, **settings: Any) -> TextEncoder:
    """With the lengths that the folder names."""
    given = {"model": str(folder), "query_tokens": None, "passage_tokens": None, **settings}
    return TextEncoder(resolve_student(fields.build(Student, given)), precision="fp32", device="cpu", batch_tokens=1024)


def _student_difference(row: StudentRow, folder: Path, *, layers: int | None = None) -> float:
    ours = encoder_of(folder, **row.settings, **({"layers": layers} if layers else {}))
    with nothing_refused():
        return _vector_difference(ours, row.peer, row.peer.open(folder, layers=layers))


def _vector_difference(ours: TextEncoder, peer: Peer, model: Any, *, saved: bool = False) -> float:
    """Of all queries and passages."""
    both = zip((ours.queries(QUERIES), ours.passages(PASSAGES)), peer.vectors(model, QUERIES, PASSAGES, saved=saved), strict=True)
    found = [(vectors, np.asarray(theirs)) for vectors, theirs in both]
    assert min(len(np.unique(np.round(vectors, 4), axis=0)) for vectors, _ in found) == len(QUERIES), "vectors of unlike texts are equal"
    return max(largest(*pair) for pair in found)


def _trained_difference(row: StudentRow, folder: Path, work: Path) -> float:
    """Of the student that three steps leave, opened here and by sentence-transformers."""
    start = encoder_of(folder, **row.settings)
    rows = [training_row(number, start.query_tokens, start.passage_tokens) for number in range(12)]
    student = {"model": str(folder), "query_tokens": None, "passage_tokens": None, **row.settings}
    saved = trained(rows, work, tokenizer=start.spec.tokenizer_digest, task="student", student=student)
    ours = encoder_of(saved)
    assert largest(ours.passages(PASSAGES), start.passages(PASSAGES)) > 1e-4, "the steps changed nothing"
    peer = Peer(row.peer.reopened, words=row.peer.words)
    return _vector_difference(ours, peer, peer.open(saved), saved=True)


# Tokenizers


def marks_of(tokenizer: str, folder: Path) -> tuple[str, str]:
    """What a tokenizer reads for the mark of a masked word, and for that between two passages; or why it is refused."""
    TOKENIZERS[tokenizer](folder)
    given: list[str] = []
    for mark in (MASK_MARK, SEPARATOR_MARK):
        try:
            marks, ours = marks_in(folder, DarkExamples(), option="student.model"), Tokenizer(folder)
            (ids,) = ours.bare_ids([ours.with_special_tokens(marks.read(f"claim {mark} premium"))])
            given.append(" ".join(ours.backend.id_to_token(int(number)) for number in ids))
        except UserError as error:
            given.append(f"refused: {shortened(_plain(str(error), folder))}")
    return given[0], given[1]
