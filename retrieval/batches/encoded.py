"""Encoded pairs, as one sequence each or as whole arrays of many: 5 bytes a token, and no Python object a pair."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from data.tables.ragged import Ragged, bounds_of


@dataclass(frozen=True)
class PairEncoding:
    """A pair as the cross-encoder reads it."""

    ids: NDArray[np.int32]
    segments: NDArray[np.int32]
    truncated: bool


@dataclass(frozen=True)
class EncodedPairs(Sequence[PairEncoding]):
    """n pairs as the cross-encoder reads them."""

    ids: Ragged  # int32
    segments: NDArray[np.int8] | None  # [T] of all places; None: all are 0
    truncated: NDArray[np.bool_]  # [n]

    @staticmethod
    def of(pairs: Sequence[PairEncoding]) -> EncodedPairs:
        """Single pairs together."""
        if isinstance(pairs, EncodedPairs):
            return pairs
        segments = np.concatenate([np.empty(0, np.int32), *(pair.segments for pair in pairs)]).astype(np.int8)
        truncated = np.array([pair.truncated for pair in pairs], bool)
        return EncodedPairs(ragged([pair.ids for pair in pairs]), segments if segments.any() else None, truncated)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[n] tokens of each pair."""
        return self.ids.lengths

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, place: int) -> PairEncoding: ...
    @overload
    def __getitem__(self, place: slice) -> list[PairEncoding]: ...
    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        number = range(len(self))[place]
        part = slice(*self.ids.bounds[number : number + 2].tolist())
        ids = self.ids.values[part]
        segments = np.zeros(len(ids), np.int32) if self.segments is None else self.segments[part].astype(np.int32)
        return PairEncoding(ids, segments, bool(self.truncated[number]))


def ragged(sequences: Ragged | Sequence[Sequence[int] | NDArray[np.integer]]) -> Ragged:
    """Sequences of ids, lists or arrays, one after the other."""
    if isinstance(sequences, Ragged):
        return sequences
    bounds = bounds_of(np.fromiter(map(len, sequences), np.int64, len(sequences)))
    if len(sequences) and isinstance(sequences[0], np.ndarray):
        return Ragged(np.concatenate(sequences), bounds)
    return Ragged(np.fromiter(itertools.chain.from_iterable(sequences), np.int32, int(bounds[-1])), bounds)
