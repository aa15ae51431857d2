"""Text to tokens, for students and teachers alike, with the neutral marks of dark examples replaced by their special tokens."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK
from retrieval.model_files.files import gives_segments, tokenizer_digest
from retrieval.models.loading import open_tokenizer
from retrieval.models.student import StudentSpec

_MARKS = ((MASK_MARK, "mask_token"), (SEPARATOR_MARK, "sep_token"))
_ENCODED_AT_ONCE = 512  # texts: an encoding takes a hundred times the memory of its ids

Item = TypeVar("Item")


class Tokenizer:
    """A fast tokenizer of a checkpoint folder.

    `lower_case` lower-cases texts first (sentence-transformers' do_lower_case). `trusted`: code that comes with the checkpoint may run.
    """

    def __init__(self, folder: Path, *, lower_case: bool = False, trusted: bool = False) -> None:
        self.folder = folder
        self.digest = tokenizer_digest(folder)
        self._tokenizer = open_tokenizer(folder, trusted=trusted)
        self.backend: Any = self._tokenizer.backend_tokenizer
        self.backend.no_padding()
        self.backend.no_truncation()
        if lower_case:  # before its own normaliser, as in sentence-transformers: marks stay, special tokens are found first
            from tokenizers import normalizers

            own = [] if self.backend.normalizer is None else [self.backend.normalizer]
            self.backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        self.pad_id = int(self._tokenizer.pad_token_id or 0)
        self._gives_segments = gives_segments(folder)

    def role_token(self, role: str) -> str | None:
        """The token of a role (mask_token, sep_token, ...); None where there is none."""
        return cast("str | None", getattr(self._tokenizer, role))

    def with_special_tokens(self, text: str) -> str:
        """The text with mask and separator marks replaced by this tokenizer's own tokens."""
        for mark, role in _MARKS:
            if mark in text:
                token = self.role_token(role)
                if token is None:
                    raise UserError(f"the tokenizer in {self.folder} has no token for {mark}: leave these dark examples out")
                text = text.replace(mark, token)
        return text

    def encode(self, texts: list[str], *, max_tokens: int) -> list[list[int]]:
        """Token ids of each text with special tokens, cut on the right to `max_tokens`."""
        self.backend.enable_truncation(max_tokens)
        try:
            marked = ([self.with_special_tokens(text) for text in part] for part in _parts(texts))
            return [encoding.ids for part in marked for encoding in self.backend.encode_batch_fast(part)]
        finally:
            self.backend.no_truncation()

    def encode_pairs(self, pairs: list[tuple[str, str]], *, max_tokens: int) -> list[tuple[list[int], list[int], bool]]:
        """Token ids, segment ids, whether cut: each (query, candidate) as the tokenizer itself encodes pairs, the longer cut first."""
        self.backend.enable_truncation(max_tokens, strategy="longest_first")
        try:
            encoded: list[tuple[list[int], list[int], bool]] = []
            for part in _parts(pairs):
                encodings = self.backend.encode_batch([(query, self.with_special_tokens(text)) for query, text in part])
                encoded += [(encoding.ids, self.segments(encoding), bool(encoding.overflowing)) for encoding in encodings]
            return encoded
        finally:
            self.backend.no_truncation()

    def segments(self, encoding: Any) -> list[int]:
        """Segment ids of an encoded pair, all 0 where its model is given none."""
        return encoding.type_ids if self._gives_segments else [0] * len(encoding.ids)

    def prompt_length(self, prompt: str) -> int:
        """How many leading tokens of a text that begins with the prompt are the prompt's, as sentence-transformers counts them.

        Those of the prompt alone, special ones before it too, without a special one behind it.
        """
        ids = self.backend.encode(self.with_special_tokens(prompt)).ids if prompt else []
        return len(ids) - (ids[-1] in self._tokenizer.all_special_ids if ids else 0)

    def bare_ids(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """Token ids of each text without special tokens, uncut."""
        encodings = (encoding for part in _parts(texts) for encoding in self.backend.encode_batch_fast(part, add_special_tokens=False))
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def count(self, text: str) -> int:
        """Tokens of a text with marks, special ones included, uncut."""
        return len(self.backend.encode(self.with_special_tokens(text)).ids)

    def pieces(self, text: str) -> list[tuple[int, int]]:
        """Character spans (start, end) of the text's tokens, special tokens left out."""
        return self.backend.encode(text, add_special_tokens=False).offsets

    @cached_property
    def splits_words(self) -> bool:
        """Whether it cuts texts into words first; LLaMA's and Gemma's take a whole text for one word."""
        return len(set(self.backend.encode("a b c", add_special_tokens=False).word_ids)) > 1

    def words(self, text: str) -> list[tuple[int, int]]:
        """Character spans of the text's words, as the tokenizer splits them before cutting words into pieces; else by white space, which
        belongs to the word that it precedes, as in the pieces of such tokenizers."""
        if not self.splits_words:
            return [match.span() for match in re.finditer(r"\s*\S+", text)]
        encoding = self.backend.encode(text, add_special_tokens=False)
        spans: dict[int, tuple[int, int]] = {}
        for word, (start, end) in zip(encoding.word_ids, encoding.offsets, strict=True):
            first, _ = spans.get(word, (start, end))
            spans[word] = (first, end)
        return list(spans.values())


def _parts(items: list[Item]) -> Iterator[list[Item]]:
    return (items[start : start + _ENCODED_AT_ONCE] for start in range(0, len(items), _ENCODED_AT_ONCE))


@functools.lru_cache(maxsize=16)
def splits_words(folder: Path, digest: str, trusted: bool) -> bool:
    """`Tokenizer.splits_words` of a folder whose tokenizer has this digest, for a plan."""
    return Tokenizer(folder, trusted=trusted).splits_words


def tokenizer_of(student: StudentSpec) -> Tokenizer:
    """The tokenizer that reads a student's texts, opened.

    Raises UserError where there is none, and where a prompt leaves no room for a text.
    """
    tokenizer = Tokenizer(student.weights_folder, lower_case=student.lower_case, trusted=student.trust_remote_code)
    for role, prompt, longest in (
        ("query", student.query_prefix, student.query_tokens),
        ("passage", student.passage_prefix, student.passage_tokens),
    ):
        count = len(tokenizer.encode([prompt], max_tokens=longest + 1)[0]) if prompt else 0
        if count >= longest:
            raise UserError(
                f"student.{role}_tokens={longest}: the prompt of {student.option} alone ({prompt!r}) is as long, so that nothing of a text "
                f"would be read; set a larger number, or another student.{role}_prefix"
            )
    return tokenizer
