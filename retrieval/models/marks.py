"""What stands for the marks of dark examples in the texts that a model reads, chosen from its tokenizer before any work.

A tokenizer's own mask and separator tokens, which `Tokenizer.with_special_tokens` puts in. Where it has none, or a setting says so, a text,
which is put in before the model is asked. Then a pair's key in the logit store is of that text: another one is another pair.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from data.config.settings import DarkExamples
from data.errors import UserError
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK
from retrieval.model_files.files import role_tokens, tokenizer_digest
from retrieval.models.tokenizer import Tokenizer

# By role: the setting, and what null means where a tokenizer has no token: the first of which it makes one. Some read a line break as a
# space.
_TEXTS = {"mask_token": (MASK_MARK, "mask_text", ("...",)), "sep_token": (SEPARATOR_MARK, "separator", ("\n", "---"))}


@dataclass(frozen=True)
class Marks:
    """(mark, text) of those that are replaced by texts; the tokenizer's own tokens stand for the others."""

    texts: tuple[tuple[str, str], ...] = ()

    def read(self, text: str) -> str:
        """The text as the model's tokenizer gets it."""
        for mark, own in self.texts:
            text = text.replace(mark, own)
        return text

    def read_all(self, texts: pa.Array) -> pa.Array:
        """`read` of each text."""
        for mark, own in self.texts:
            texts = pc.replace_substring(texts, mark, own)
        return texts

    @property
    def key(self) -> dict[str, Any]:
        """What a fingerprint holds of it: nothing where all tokens are the tokenizer's own."""
        return {"marks": dict(self.texts)} if self.texts else {}

    @property
    def separator(self) -> str | None:
        """The text between the parts of a mixed passage; None: the tokenizer's own token."""
        return dict(self.texts).get(SEPARATOR_MARK)

    def notes(self, settings: DarkExamples, *, option: str) -> list[str]:
        """Which texts were chosen since the tokenizer has no token, for people."""
        chosen = [(role, name, text) for role, (mark, name, _) in _TEXTS.items() for own, text in self.texts if own == mark]
        return [
            f"{option}: its tokenizer has no {role}: dark examples hold {text!r} for it (dark_examples.{name})"
            for role, name, text in chosen
            if getattr(settings, name) is None
        ]


def usual_marks(settings: DarkExamples | None) -> tuple[Marks, ...]:
    """What teachers may have read in place of marks, but for their own tokens: the texts of the settings, and those chosen without one."""
    choices = [[None, *dict.fromkeys([*filter(None, [getattr(settings, name, None)]), *usual])] for _, name, usual in _TEXTS.values()]
    marks = [mark for mark, _, _ in _TEXTS.values()]
    chosen = ([(mark, text) for mark, text in zip(marks, texts, strict=True) if text is not None] for texts in itertools.product(*choices))
    return tuple(Marks(tuple(texts)) for texts in chosen if texts)


def marks_of(folder: Path | None, settings: DarkExamples, *, option: str, trusted: bool = False) -> Marks:
    """What stands for the marks of the dark examples asked for, in what the tokenizer in `folder` reads; None: a model without one.

    The tokenizer is loaded, in about three seconds, only where its files do not name the token.

    Raises UserError where a text would make no token.
    """
    texts = []
    for role, asked in (("mask_token", bool(settings.mask_ratios)), ("sep_token", settings.reinforced)):
        mark, name, _ = _TEXTS[role]
        text = getattr(settings, name)
        if asked and folder is not None and (text is not None or role not in role_tokens(folder)):
            text = _text(folder, tokenizer_digest(folder), role, text, option, trusted)
        if asked and text is not None:
            texts.append((mark, text))
    return Marks(tuple(texts))


@functools.lru_cache(maxsize=64)
def _text(folder: Path, digest: str, role: str, given: str | None, option: str, trusted: bool) -> str | None:
    """The text for a role; None where the tokenizer's own token is meant."""
    tokenizer = Tokenizer(folder, trusted=trusted)
    if given is None and tokenizer.role_token(role) is not None:
        return None
    _, name, usual = _TEXTS[role]
    for text in usual if given is None else (given,):
        if len(tokenizer.pieces(f"a {text} a")) > len(tokenizer.pieces("a a")):
            return text
    said = "has no " + role if given is None else f"makes no token of dark_examples.{name}={given!r}"
    raise UserError(f"{option}: the tokenizer in {folder} {said}: give dark_examples.{name}=TEXT that it reads")
