"""What a teacher is: pairs of texts in, one raw logit a pair out. Who asks for logits is written against this file alone.

A new kind of teacher is a class with `score`, and a line in `retrieval/teachers/backends.py`. A teacher outside this project is named by
its import path: `teacher.backend=mylab.teachers:Bm25Teacher` is called with `TeacherSettings`. Tokens, prompts and batches are each
teacher's own affair.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.config import settings
from data.digests import DigestCache, json_digest
from data.logits.declared import DeclaredTeacher
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK
from retrieval.model_files.files import tokenizer_digest
from retrieval.teachers.pair_template import PairText

Pair = tuple[str, str]  # query, candidate
WORDS = "words"  # in place of the digest of a tokenizer, of a teacher that has none
OnBatch = Callable[[int, int, int], None]  # of a scored batch: pairs, their tokens, tokens with padding; no tokens: 0


def ignore_batch(pairs: int, tokens: int, padded: int) -> None:
    """An `OnBatch` that does nothing."""


def with_plain_marks(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs for a teacher of texts: `[SEP]` and `[MASK]` in place of the marks of dark examples."""
    return [(query, text.replace(SEPARATOR_MARK, "[SEP]").replace(MASK_MARK, "[MASK]")) for query, text in pairs]


class Teacher(Protocol):
    """Scores pairs of texts."""

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """[n] raw logits of the pairs, in their order. All must be finite, and depend on nothing but the pair."""


@dataclass(frozen=True)
class PreparedPairs:
    """Pairs as a teacher's `score_prepared` takes them."""

    pairs: Sequence[Any]
    token_counts: NDArray[np.int32]  # [n] after truncation, special tokens included; 0 of a teacher that counts none
    truncated: NDArray[np.bool_]  # [n] False of a teacher that counts no tokens


class PreparingTeacher(Teacher, Protocol):
    """A teacher that makes pairs ready (tokens, prompts) in one thread while it scores those before in another."""

    def score(self, pairs: Sequence[Pair]) -> NDArray[np.float32]:
        """[n] raw logits of the pairs, as `score_prepared` gives them."""
        return self.score_prepared(self.prepare(pairs))

    def load(self) -> None:
        """Load now what is else loaded at the first pair, and try it out: before a run's first shard."""

    def prepare(self, pairs: Sequence[Pair]) -> PreparedPairs:
        """The pairs, ready to be scored. Loads no model."""

    def score_prepared(self, prepared: PreparedPairs, *, on_batch: OnBatch = ignore_batch) -> NDArray[np.float32]:
        """[n] raw logits of the pairs, in their order; `on_batch` is called after each batch."""


@dataclass(frozen=True)
class TeacherSettings:
    """What a teacher is opened with. The last four are execution: they may change a logit by rounding, no more."""

    model: str  # hub id, folder, or whatever the teacher makes of it
    revision: str | None
    max_tokens: int
    precision: str  # auto, fp32, bf16 or fp16
    device: str  # cpu or cuda
    threads: int  # of a CPU; beside a GPU they tokenise, and 1 stands for all CPUs
    batch_tokens: int | None  # of a batch, padding included; None: the teacher's choice
    compile: bool

    @staticmethod
    def of(teacher: settings.Teacher, *, device: str, threads: int) -> TeacherSettings:
        """From an experiment's section."""
        own = ("model", "revision", "max_tokens", "precision", "batch_tokens", "compile")
        return TeacherSettings(device=device, threads=threads, **{name: getattr(teacher, name) for name in own})


class TeacherSpec(ABC):
    """A teacher that was found and checked, not opened."""

    name: str  # as the user wrote it; for people, never keyed
    tokenizer_folder: Path | None = None  # whose tokens dark examples are cut and masked by; None: by words
    template: PairText | None = None  # what stands around a pair
    is_remote: bool = False  # a server scores: it may be another one at each run, at another speed and price
    device: str | None = None  # kind of device that its logits are of, whichever computes now; None: that is not said
    reads_texts: bool = True  # False: there are no logits but those of the store
    completes: DeclaredTeacher | None = None  # whose imported logits stand for its own

    @property
    def tokenizer_digest(self) -> str:
        """Of the tokenizer that dark examples are made with; `WORDS` where it has none."""
        return tokenizer_digest(self.tokenizer_folder) if self.tokenizer_folder else WORDS

    @abstractmethod
    def key(self, digests: DigestCache) -> dict[str, Any]:
        """All that decides a logit: the parts of the logit store's namespace."""

    def notes(self) -> list[str]:
        """What a person should know of the teacher before it is paid for, of which nothing is an error."""
        return []

    @abstractmethod
    def open(self, given: TeacherSettings) -> PreparingTeacher:
        """The teacher. Models are loaded when a pair is first scored: a warm store needs none."""

    def namespace(self, digests: DigestCache) -> str:
        """Digest of `key`: the folder of this teacher's logits in the store."""
        return json_digest(self.key(digests))
