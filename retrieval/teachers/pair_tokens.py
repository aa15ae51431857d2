"""(query, candidate) pairs as the cross-encoder reads them, each text tokenised once and the pairs put together from the stored ids.

A query stands in front of dozens of candidates, and a passage behind several queries: tokenising every pair again would be most of the
work of a fast GPU's host. The result is what the tokenizer's own pair encoding gives (special tokens, segment ids, truncation of the
longer part first); that is tried out when a tokenizer is loaded, and one that differs is asked for every pair.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from retrieval.models.tokenizer import Tokenizer

_KEPT_TOKENS = 250_000  # of texts seen lately, about 3 MB: a few thousand passages
_PROBES = ["", "a", "Is it 1.5%?", "the quick (brown) fox jumps over the lazy dog", "naïve  café\nlong " * 40]


@dataclass(frozen=True)
class PairEncoding:
    """A pair as the cross-encoder reads it."""

    ids: NDArray[np.int32]
    segments: NDArray[np.int32]
    truncated: bool


@dataclass(frozen=True)
class PairTemplate:
    """What a tokenizer puts around and between two sequences: special ids, and the segment id of every place."""

    before: NDArray[np.int32]
    between: NDArray[np.int32]
    after: NDArray[np.int32]
    segments: tuple[NDArray[np.int32], int, NDArray[np.int32], int, NDArray[np.int32]]

    @staticmethod
    def of(tokenizer: Tokenizer) -> PairTemplate | None:
        """Read off an encoded pair; None where the tokenizer does not put the first sequence whole before the second."""
        encoded = tokenizer.backend.encode("a", "a")
        owners = list(encoded.sequence_ids)
        ids = np.array(encoded.ids, np.int32)
        types = np.array(tokenizer.segments(encoded), np.int32)
        if 0 not in owners or 1 not in owners:
            return None
        start, stop = owners.index(0), len(owners) - owners[::-1].index(0)
        second, end = owners.index(1), len(owners) - owners[::-1].index(1)
        if stop > second:
            return None
        segments = (types[:start], int(types[start]), types[stop:second], int(types[second]), types[end:])
        return PairTemplate(ids[:start], ids[stop:second], ids[end:], segments)

    @property
    def added(self) -> int:
        """Special tokens of a pair."""
        return len(self.before) + len(self.between) + len(self.after)

    def join(self, first: NDArray[np.int32], second: NDArray[np.int32], *, max_tokens: int) -> PairEncoding:
        """The pair of two token sequences, cut to `max_tokens`."""
        kept = truncate_longest_first(len(first), len(second), room=max_tokens - self.added)
        truncated = kept != (len(first), len(second))
        ids = np.concatenate([self.before, first[: kept[0]], self.between, second[: kept[1]], self.after])
        before, of_first, between, of_second, after = self.segments
        segments = np.concatenate([before, np.full(kept[0], of_first, np.int32), between, np.full(kept[1], of_second, np.int32), after])
        return PairEncoding(ids, segments, truncated)


def truncate_longest_first(first: int, second: int, *, room: int) -> tuple[int, int]:
    """How many tokens of each sequence stay: the longer is cut first, then both to a half.

    The rule of huggingface/tokenizers, `utils/truncation.rs`, where the odd token goes to the longer one.
    """
    if first + second <= room:
        return first, second
    short, long = sorted((first, second))
    long = max(short, room - short) if short <= room else short
    if short + long > room:
        short = room // 2
        long = short + room % 2
    return (long, short) if first > second else (short, long)


class PairTokenizer:
    """Encodes pairs for one teacher; remembers the ids of texts seen lately."""

    def __init__(self, folder: Path, *, max_tokens: int, kept_tokens: int = _KEPT_TOKENS, trusted: bool = False) -> None:
        self._tokenizer = Tokenizer(folder, trusted=trusted)
        self._max_tokens = max_tokens
        self._kept_tokens = kept_tokens
        self._seen: OrderedDict[bytes, NDArray[np.int32]] = OrderedDict()
        self._seen_tokens = 0
        self.pad_id = self._tokenizer.pad_id
        self.backend = self._tokenizer.backend
        self.template = PairTemplate.of(self._tokenizer)  # what is put around two texts' ids; None: the tokenizer encodes every pair
        if self.template is not None and not self._agrees():
            self.template = None

    def _agrees(self) -> bool:
        pairs = [(first, second) for first in _PROBES for second in _PROBES]
        ours = [(pair.ids.tolist(), pair.segments.tolist(), pair.truncated) for pair in self.encode(pairs)]
        return ours == self._tokenizer.encode_pairs(pairs, max_tokens=self._max_tokens)

    def encode(self, pairs: Sequence[tuple[str, str]]) -> list[PairEncoding]:
        """Each (query, candidate) as one sequence of at most `max_tokens`, the longer part cut first. Marks become special tokens
        in the candidate."""
        if self.template is None:
            theirs = self._tokenizer.encode_pairs(list(pairs), max_tokens=self._max_tokens)
            return [PairEncoding(np.array(ids, np.int32), np.array(segments, np.int32), cut) for ids, segments, cut in theirs]
        firsts = self._ids([query for query, _ in pairs])
        seconds = self._ids([self._tokenizer.with_special_tokens(text) for _, text in pairs])
        return [self.template.join(first, second, max_tokens=self._max_tokens) for first, second in zip(firsts, seconds, strict=True)]

    def _ids(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """The token ids of the texts without special tokens, each distinct text tokenised once."""
        digests = [hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts]
        new = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in self._seen}
        fresh = dict(zip(new, self._tokenizer.bare_ids(list(new.values())), strict=True))
        found = [fresh[digest] if digest in fresh else self._seen[digest] for digest in digests]
        for digest, ids in zip(digests, found, strict=True):
            self._seen_tokens += 0 if digest in self._seen else len(ids)
            self._seen[digest] = ids
            self._seen.move_to_end(digest)
        while self._seen_tokens > self._kept_tokens:  # those not used for longest go first
            _, gone = self._seen.popitem(last=False)
            self._seen_tokens -= len(gone)
        return found


class StoredPairs:
    """Pairs from the stored token ids of two texts, each with the special tokens of a text alone."""

    def __init__(self, folder: Path, *, max_tokens: int, trusted: bool = False) -> None:
        """Raises UserError where the tokenizer's pairs are not two token sequences with something around and between them."""
        tokenizer = PairTokenizer(folder, max_tokens=max_tokens, trusted=trusted)
        alone = tokenizer.backend.encode("a")
        special = np.array(alone.special_tokens_mask, dtype=bool)
        ids = np.array(alone.ids, np.int32)
        inside = np.flatnonzero(~special)
        if tokenizer.template is None or not len(inside):
            raise UserError(f"{folder}: pairs of this tokenizer cannot be put together from the tokens of their texts")
        self._template = tokenizer.template
        self._max_tokens = max_tokens
        self._before = ids[: inside[0]]
        self._after = ids[inside[-1] + 1 :]

    def join(self, first: NDArray[np.int32], second: NDArray[np.int32]) -> PairEncoding:
        """The tokenizer's own encoding of the pair of these texts, the longer one cut first."""
        return self._template.join(self._bare(first), self._bare(second), max_tokens=self._max_tokens)

    def _bare(self, stored: NDArray[np.int32]) -> NDArray[np.int32]:
        before, end = len(self._before), len(stored) - len(self._after)
        if not (np.array_equal(stored[:before], self._before) and np.array_equal(stored[end:], self._after)):
            raise UserError("stored tokens do not begin and end as this tokenizer has it; make the training shards again")
        return stored[before:end]
