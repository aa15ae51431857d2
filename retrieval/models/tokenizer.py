"""Text to tokens, for students and teachers alike, with the neutral marks of dark examples replaced by their special tokens."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
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
from retrieval.tokens.word_ids import WordIds

_MARKS = ((MASK_MARK, "mask_token"), (SEPARATOR_MARK, "sep_token"))
_ENCODED_AT_ONCE = 512  # texts: an encoding takes a hundred times the memory of its ids
_LEAST_PART = 32  # texts that a thread gets at once

Item = TypeVar("Item")


class Tokenizer:
    """A fast tokenizer of a checkpoint folder.

    `lower_case` lower-cases texts first (sentence-transformers' do_lower_case). `trusted`: code that comes with the checkpoint may run.
    `threads` tokenise many texts, also where TOKENIZERS_PARALLELISM=false forbids the library's own.
    """

    def __init__(self, folder: Path, *, lower_case: bool = False, trusted: bool = False, threads: int = 1) -> None:
        self.folder = folder
        self._threads = threads
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
        read = [self.with_special_tokens(text) for text in texts]
        words, around = self._words, self._around if self._words else None
        if words is None or around is None or max_tokens <= sum(map(len, around)):
            return self._encoded(read, max_tokens)
        (before, after), room = around, max_tokens - sum(map(len, around))
        return [[*before, *ids[:room].tolist(), *after] for ids in words.lists(read)]

    def _encoded(self, texts: list[str], max_tokens: int) -> list[list[int]]:
        self.backend.enable_truncation(max_tokens)
        try:
            return self._of_parts(texts, self._ids_of)
        finally:
            self.backend.no_truncation()

    @cached_property
    def _around(self) -> tuple[list[int], list[int]] | None:
        """The ids before and behind those of any text; None where they are not the same for texts of all lengths."""
        alone = self.backend.encode("a")
        inside = [place for place, special in enumerate(alone.special_tokens_mask) if not special]
        if not inside:
            return None
        before, after = alone.ids[: inside[0]], alone.ids[inside[-1] + 1 :]
        texts = ["", "a", "a a a a a a", "a [SEP]"]
        for most in (len(before) + len(after) + 2, 99):
            room = most - len(before) - len(after)
            bare = [encoding.ids[:room] for encoding in self.backend.encode_batch(texts, add_special_tokens=False)]
            if self._encoded(texts, most) != [before + ids + after for ids in bare]:
                return None
        return before, after

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
        """Token ids of each text without special tokens, uncut; from those of its words, where a tokenizer allows it."""
        return self._tokenised(texts) if self._words is None else self._words.lists(texts)

    @cached_property
    def _words(self) -> WordIds | None:
        return WordIds.of(self.backend, self._tokenised)

    def _tokenised(self, texts: list[str]) -> list[NDArray[np.int32]]:
        return self._of_parts(texts, self._bare_ids_of)

    def _ids_of(self, texts: list[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self.backend.encode_batch_fast(texts)]

    def _bare_ids_of(self, texts: list[str]) -> list[NDArray[np.int32]]:
        encodings = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def _of_parts(self, texts: list[str], encode: Callable[[list[str]], list[Item]]) -> list[Item]:
        """What `encode` gives for the texts, a part of them at a time; parts side by side, since the library leaves Python's lock."""
        if self._threads == 1 or len(texts) <= _LEAST_PART:
            return [made for part in _parts(texts) for made in encode(part)]
        size = min(_ENCODED_AT_ONCE, max(_LEAST_PART, -(-len(texts) // (4 * self._threads))))
        parts = [_executor(self._threads).submit(encode, part) for part in _parts(texts, size)]
        try:
            return [made for part in parts for made in part.result()]
        finally:
            wait([part for part in parts if not part.cancel()])  # the backend's settings cannot change while a thread is in it

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


def _parts(items: list[Item], size: int = _ENCODED_AT_ONCE) -> Iterator[list[Item]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@functools.cache
def _executor(threads: int) -> ThreadPoolExecutor:
    """The same threads for all tokenizers of the process."""
    return ThreadPoolExecutor(threads, thread_name_prefix="tokenize")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_executor.cache_clear)  # a forked process has none of them


def tokenizing_threads(*, device: str, threads: int) -> int:
    """How many tokenise beside a model: those of its worker. On a GPU, where one is the default, all of the process's CPUs."""
    if device == "cpu" or threads > 1:
        return threads
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@functools.lru_cache(maxsize=16)
def splits_words(folder: Path, digest: str, trusted: bool) -> bool:
    """`Tokenizer.splits_words` of a folder whose tokenizer has this digest, for a plan."""
    return Tokenizer(folder, trusted=trusted).splits_words


def tokenizer_of(student: StudentSpec, *, threads: int = 1) -> Tokenizer:
    """The tokenizer that reads a student's texts, opened; `threads` are its own.

    Raises UserError where there is none, and where a prompt leaves no room for a text.
    """
    tokenizer = Tokenizer(student.weights_folder, lower_case=student.lower_case, trusted=student.trust_remote_code, threads=threads)
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
