"""(query, candidate) pairs of which many have the same query: as many strings as texts, and no tuple a pair until one is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class PairTexts(Sequence[tuple[str, str]]):
    """n pairs."""

    queries: list[str]  # the distinct ones
    query_of: NDArray[np.integer]  # [n] which of them
    texts: list[str]  # [n] candidates

    @staticmethod
    def of(pairs: Sequence[tuple[str, str]]) -> PairTexts:
        """Pairs that may be single ones."""
        if isinstance(pairs, PairTexts):
            return pairs
        numbers: dict[str, int] = {}
        query_of = [numbers.setdefault(query, len(numbers)) for query, _ in pairs]
        return PairTexts(list(numbers), np.array(query_of, np.int64), [text for _, text in pairs])

    @staticmethod
    def of_columns(queries: pa.Array, texts: pa.Array) -> PairTexts:
        """Two columns without nulls."""
        encoded = queries.dictionary_encode()
        return PairTexts(encoded.dictionary.to_pylist(), encoded.indices.to_numpy(), texts.to_pylist())

    def __len__(self) -> int:
        return len(self.texts)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return zip(map(self.queries.__getitem__, self.query_of.tolist()), self.texts, strict=True)

    @overload
    def __getitem__(self, place: int) -> tuple[str, str]: ...
    @overload
    def __getitem__(self, place: slice) -> PairTexts: ...
    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return PairTexts(self.queries, self.query_of[place], self.texts[place])
        return self.queries[self.query_of[place]], self.texts[place]
