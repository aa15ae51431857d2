"""(query, candidate) pairs as the cross-encoder reads them, each text tokenised once and the pairs put together from the stored ids.

A query stands in front of dozens of candidates, and a passage behind several queries: tokenising every pair again would be most of the
work of a fast GPU's host. The result is what the tokenizer's own pair encoding gives (special tokens, segment ids, truncation of the
longer part first); that is tried out when a tokenizer is loaded, and one that differs is asked for every pair.

A pair with a template around it (`PairText`) is one text. It is put together in the same way, from the ids of the half up to the second
of the two texts and of the half from behind the first, each tokenised with the template's words at the seam: a space there belongs to the
token behind it.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from data.tables.ragged import Ragged, bounds_of, spans
from data.tables.schemas import MASK_MARK
from retrieval.batches.encoded import EncodedPairs, PairEncoding
from retrieval.model_files.files import tokenizer_folder
from retrieval.models.tokenizer import Tokenizer
from retrieval.teachers.pair_template import PairText
from retrieval.tokens.pair_texts import PairTexts
from retrieval.tokens.seen_texts import SeenTexts

_KEPT_TOKENS = 250_000  # of texts seen lately, about 3 MB with the texts: a few thousand passages
_LEAST_ROOM = 16  # tokens for query and document beside a template: with fewer a pair says nothing
_DOCUMENT_SHARE = 4  # of that room a document keeps a fourth beside a long query, as FlagEmbedding and mxbai-rerank have it
_PROBES = ["", "a", "Is it 1.5%?", "the quick (brown) fox jumps over the lazy dog", "naïve  café\nlong " * 40]
# Texts that reach into what stands around them, each in a way of its own: spaces, line breaks, digits, signs, other scripts, nothing.
_SEAM_PROBES = [
    "", "a", "Is it?", " two  spaces ", "\n", "line\nbreak\n", "\r\n\r\n", "\ttab\t", "1,5 % in 2026", "7", "...", "(x) -> {y};", "</a>",
    "'s", "ïß É", "e\u0301", "\u0301", "漢字かな", "한국어", "ไทย", "😀👩‍👩‍👧", "\u00a0", "_-_", "http://x.org/?q=1",
    "A" * 60, *string.punctuation,
]  # fmt: skip
_SPLIT_AT_ONCE = 512  # texts: an encoding takes a hundred times the memory of its ids
_SHORT_BETWEEN = 8  # characters, across which two texts may join: all pairs of probes are tried
# What they share is the template's. The second and third are those by which sentence-transformers tells what stands behind a text; the
# first bounds it where a tokenizer knows none of them.
_FILLERS = ["", "0", "1 2 3 4", "a", "the end"]
_MARKS_BEGIN = MASK_MARK[0]  # all of them; most texts hold none, which is seen at once


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

    @property
    def specials(self) -> NDArray[np.int32]:
        """The special tokens of a pair, one after the other."""
        return np.concatenate([self.before, self.between, self.after])

    def join_all(self, ids: Ragged, firsts: NDArray[np.int64], seconds: NDArray[np.int64], *, max_tokens: int) -> EncodedPairs:
        """`join` of many pairs: number i is of the lists `firsts[i]` and `seconds[i]` of `ids`, whose list 0 are `specials`."""
        of_first, of_second = (ids.bounds[numbers + 1] - ids.bounds[numbers] for numbers in (firsts, seconds))
        kept_first, kept_second = truncate_all(of_first, of_second, room=max_tokens - self.added)
        before, between, specials = len(self.before), len(self.before) + len(self.between), self.added
        starts, lengths = np.ones((2, len(kept_first), specials + 2), np.int64)  # a special token is a span of its own
        begins = ids.bounds[firsts], ids.bounds[seconds]
        for column, begin in enumerate([*range(before), begins[0], *range(before, between), begins[1], *range(between, specials)]):
            starts[:, column] = begin
        lengths[:, before], lengths[:, between + 1] = kept_first, kept_second
        joined = ids.values[spans(starts.ravel(), lengths.ravel())]
        segment_of = np.concatenate([np.atleast_1d(part) for part in self.segments]).astype(np.int8)  # of each span
        segments = np.repeat(np.tile(segment_of, len(lengths)), lengths.ravel()) if segment_of.any() else None
        truncated = (kept_first != of_first) | (kept_second != of_second)
        return EncodedPairs(Ragged(joined, bounds_of(kept_first + kept_second + specials)), segments, truncated)


def truncate_all(first: NDArray[np.int64], second: NDArray[np.int64], *, room: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`truncate_longest_first` of many pairs: [n] and [n] lengths to [n] and [n]."""
    short, long = np.minimum(first, second), np.maximum(first, second)
    cut = np.where(short <= room, np.maximum(short, room - short), short)
    both = short + cut > room
    kept_short, kept_long = np.where(both, room // 2, short), np.where(both, room // 2 + room % 2, cut)
    fits = first + second <= room
    kept_short, kept_long = np.where(fits, short, kept_short), np.where(fits, long, kept_long)
    longer = first > second
    return np.where(longer, kept_long, kept_short), np.where(longer, kept_short, kept_long)


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


@dataclass(frozen=True)
class Frame:
    """The ids of a half of a templated pair that are the same whatever its text is."""

    head: int  # how many before the text
    tail: NDArray[np.int32]  # those behind it

    @staticmethod
    def of(halves: Sequence[NDArray[np.int32]]) -> Frame:
        """From the half with each of `_FILLERS`. A line break behind the empty text may be another id than behind a word."""
        empty, some, *others = halves
        head = min(_common(empty, half) for half in (some, *others))
        tail = min(_common(some[::-1], half[::-1]) for half in others)
        return Frame(head, some[len(some) - min(tail, len(empty) - head) :])

    @property
    def added(self) -> int:
        """How many ids are the template's."""
        return self.head + len(self.tail)

    def cut(self, half: NDArray[np.int32], kept: int) -> NDArray[np.int32]:
        """The half with so many ids of its text."""
        return half if len(half) <= self.added + kept else np.concatenate([half[: self.head + kept], self.tail])


def _common(first: NDArray[np.int32], second: NDArray[np.int32]) -> int:
    """How many ids two sequences begin with together."""
    length = min(len(first), len(second))
    differing = np.flatnonzero(first[:length] != second[:length])
    return int(differing[0]) if len(differing) else length


class TemplatedPairs:
    """Pairs with a template around them, each one sequence without further special tokens, of which the document is cut.

    `ids` gives those of texts, special tokens in them recognised.
    """

    def __init__(
        self, tokenizer: Tokenizer, text: PairText, *, ids: Callable[[list[str]], list[NDArray[np.int32]]], max_tokens: int
    ) -> None:
        """Raises UserError where the template leaves query and document no room in `max_tokens`."""
        self._tokenizer = tokenizer
        self._text = text
        self._ids = ids
        self._max_tokens = max_tokens
        self.seam = self._find_seam()
        halves = self._halves([(filler, filler) for filler in _FILLERS])
        self.frames = Frame.of([first for first, _ in halves]), Frame.of([second for _, second in halves])
        self.room = max_tokens - sum(frame.added for frame in self.frames)
        if self.room < _LEAST_ROOM:
            needed = max_tokens - self.room
            raise UserError(
                f"teacher.max_tokens={max_tokens}: the template takes {needed} of them, which leaves too little for query and document; "
                f"set teacher.max_tokens={needed + 160} or so"
            )

    def encode(self, pairs: Sequence[tuple[str, str]]) -> EncodedPairs:
        """Each (query, document) as one sequence of at most `max_tokens`."""
        return EncodedPairs.of([self._join(first, second) for first, second in self._halves(pairs)])

    def kept(self, query: int, document: int) -> tuple[int, int]:
        """How many tokens of each stay: the document is cut, down to its share of the room, then the query."""
        of_document = min(document, max(self.room - query, self.room // _DOCUMENT_SHARE))
        return min(query, self.room - of_document), of_document

    def _join(self, first: NDArray[np.int32], second: NDArray[np.int32]) -> PairEncoding:
        truncated = len(first) + len(second) > self._max_tokens
        if truncated:
            of_first, of_second = (max(0, len(half) - frame.added) for half, frame in zip((first, second), self.frames, strict=True))
            kept = self.kept(of_second, of_first)[::-1] if self._text.document_first else self.kept(of_first, of_second)
            first, second = (frame.cut(half, n) for frame, half, n in zip(self.frames, (first, second), kept, strict=True))
        ids = np.concatenate([first, second])
        return PairEncoding(ids, np.zeros(len(ids), np.int32), truncated)

    def _halves(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """The ids of each pair in two parts, which together are those of the whole text."""
        if self.seam is None:
            return [half for start in range(0, len(pairs), _SPLIT_AT_ONCE) for half in self._split(pairs[start : start + _SPLIT_AT_ONCE])]
        firsts, seconds = self._overlapping(pairs)
        last, begin = self.seam
        return [(first[: len(first) - last], second[begin:]) for first, second in zip(firsts, seconds, strict=True)]

    def _overlapping(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[NDArray[np.int32]], list[NDArray[np.int32]]]:
        """The ids of both halves, each with what stands between the texts."""
        halves = [self._text.key_halves(*pair) for pair in pairs]
        return self._ids([first for first, _ in halves]), self._ids([self._text.between + second for _, second in halves])

    def _split(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """The whole texts' ids, parted before the second of the two texts and the space before it, which a word joins with."""
        halves = [self._text.key_halves(*pair) for pair in pairs]
        space = len(self._text.between) - len(self._text.between.rstrip())
        parted = []
        encodings = self._tokenizer.backend.encode_batch([first + second for first, second in halves], add_special_tokens=False)
        for encoding, (first, _) in zip(encodings, halves, strict=True):
            ids = np.array(encoding.ids, np.int32)
            place = next((place for place, (start, _) in enumerate(encoding.offsets) if start >= len(first) - space), len(ids))
            parted.append((ids[:place], ids[place:]))
        return parted

    def _find_seam(self) -> tuple[int, int] | None:
        """How many ids to leave out, at the end of the first half and at the beginning of the second, so that the two are the whole text.

        Both halves have what stands between the texts. Where a text reaches furthest into it, the ids are another's than those of the
        whole; the seam is in the middle of what is left. None where nothing is left: the whole text is tokenised, for every pair.
        """
        step = 1 if len(self._text.between) <= _SHORT_BETWEEN else 7
        pairs = [(query, document) for place, query in enumerate(_SEAM_PROBES) for document in _SEAM_PROBES[place % step :: step]]
        wholes = self._tokenizer.bare_ids([self._text.of(*pair) for pair in pairs])
        low, high, both = 0, len(wholes[0]), None
        for whole, first, second in zip(wholes, *self._overlapping(pairs), strict=True):
            overlap = len(first) + len(second) - len(whole)
            low = max(low, len(first) - _common(first, whole))
            high = min(high, overlap - len(second) + _common(second[::-1], whole[::-1]))
            if both not in (None, overlap):
                return None
            both = overlap
        last = (low + high) // 2
        return (last, (both or 0) - last) if low <= high else None


def template_tokens(folder: Path, text: PairText) -> int:
    """How many tokens a template takes of a pair, without loading more than tokenizer.json; 0 where there is none."""
    path = tokenizer_folder(folder) / "tokenizer.json"
    if not path.is_file():
        return 0
    from tokenizers import Tokenizer as Backend

    return len(Backend.from_file(str(path)).encode(text.of("", ""), add_special_tokens=False).ids)


class PairTokenizer:
    """Encodes pairs for one teacher; remembers the ids of texts seen lately."""

    def __init__(
        self,
        folder: Path,
        *,
        max_tokens: int,
        kept_tokens: int = _KEPT_TOKENS,
        trusted: bool = False,
        text: PairText | None = None,
        threads: int = 1,
    ) -> None:
        """`text`: what stands around the pair; `threads` tokenise.

        Raises UserError where it leaves query and document no room in `max_tokens`.
        """
        self._tokenizer = Tokenizer(folder, trusted=trusted, threads=threads)
        self._max_tokens = max_tokens
        self._seen = SeenTexts(self._tokenise, kept_tokens=kept_tokens)
        self.pad_id = self._tokenizer.pad_id
        self.backend = self._tokenizer.backend
        self._text = text
        self.templated: TemplatedPairs | None = None
        if text is not None and not text.pair:
            self.templated = TemplatedPairs(self._tokenizer, text, ids=self._seen.lists, max_tokens=max_tokens)
        # What is put around two texts' ids; None: the tokenizer encodes every pair.
        self.template = None if self.templated else PairTemplate.of(self._tokenizer)
        if self.template is not None:
            self._seen = SeenTexts(self._tokenise, kept_tokens=kept_tokens, first=self.template.specials)
            if not self._agrees():
                self.template = None

    def _tokenise(self, texts: list[str]) -> list[NDArray[np.int32]]:
        return self._tokenizer.bare_ids(texts)

    def _agrees(self) -> bool:
        pairs = [(first, second) for first in _PROBES for second in _PROBES]
        ours = [(pair.ids.tolist(), pair.segments.tolist(), pair.truncated) for pair in self._joined(PairTexts.of(pairs))]
        return ours == self._tokenizer.encode_pairs(pairs, max_tokens=self._max_tokens)

    def encode(self, pairs: Sequence[tuple[str, str]]) -> EncodedPairs:
        """Each (query, candidate) as one sequence of at most `max_tokens`, the longer part cut first, with a template the candidate.
        Marks become special tokens in the candidate."""
        if self.templated is not None:
            return self.templated.encode([(query, self._tokenizer.with_special_tokens(text)) for query, text in pairs])
        texts = PairTexts.of(pairs)
        if self._text is not None:
            before, between, after = self._text.before, self._text.between, self._text.after
            queries = [f"{before}{query}" for query in texts.queries]
            texts = PairTexts(queries, texts.query_of, [f"{between}{text}{after}" for text in texts.texts])
        return self._joined(texts)

    def _joined(self, pairs: PairTexts) -> EncodedPairs:
        """Pairs as the tokenizer itself encodes them."""
        if self.template is None:
            theirs = self._tokenizer.encode_pairs(list(pairs), max_tokens=self._max_tokens)
            single = [PairEncoding(np.array(ids, np.int32), np.array(segments, np.int32), cut) for ids, segments, cut in theirs]
            return EncodedPairs.of(single)
        marked = self._tokenizer.with_special_tokens
        texts = [marked(text) if _MARKS_BEGIN in text else text for text in pairs.texts]
        of_queries, seconds = np.split(self._seen.numbers([*pairs.queries, *texts]), [len(pairs.queries)])
        return self.template.join_all(self._seen.ids, of_queries[pairs.query_of], seconds, max_tokens=self._max_tokens)


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
