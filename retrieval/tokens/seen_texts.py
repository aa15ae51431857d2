"""Texts seen lately with their token ids, in one array that grows: who needs them gathers them by number."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.tables.ragged import Ragged, bounds_of

_AT_FIRST = 1024  # places of the arrays; they double
_OF_A_TOKEN = 16  # characters that are kept for each token: of a language it has four or five, of what a tokenizer does not know any number


class SeenTexts:
    """The ids of texts, each distinct one tokenised once.

    Past `kept_tokens`, or `_OF_A_TOKEN` times as many characters, all are forgotten, before the next texts are looked up: what is alive is
    that, and what one call brings. `first` is list 0 of the ids whatever is forgotten.
    """

    def __init__(
        self, tokenise: Callable[[list[str]], list[NDArray[np.int32]]], *, kept_tokens: int, first: NDArray[np.int32] | None = None
    ) -> None:
        self._tokenise = tokenise
        self._kept_tokens = kept_tokens
        self._first = [] if first is None else [first]
        self._forget()

    def _forget(self) -> None:
        self._numbers: dict[str, int] = {}
        self._values: NDArray[Any] = np.empty(_AT_FIRST, np.int32)  # new ones: who asked before may still read the old
        self._bounds: NDArray[Any] = np.zeros(_AT_FIRST, np.int64)
        self._count = self._tokens = self._characters = 0
        self._append(self._first)

    @property
    def ids(self) -> Ragged:
        """Those of all texts that are remembered, by number."""
        return Ragged(self._values[: self._tokens], self._bounds[: self._count + 1])

    def numbers(self, texts: list[str]) -> NDArray[np.int64]:
        """[n] which list of `ids` each text has, until the next call."""
        if self._tokens > self._kept_tokens or self._characters > _OF_A_TOKEN * self._kept_tokens:
            self._forget()
        known = self._numbers
        found = list(map(known.get, texts))
        if None in found:
            new = list(dict.fromkeys(text for text, number in zip(texts, found, strict=True) if number is None))
            first = self._count
            self._append(self._tokenise(new))
            self._characters += sum(map(len, new))
            known.update(zip(new, range(first, self._count), strict=True))
            found = list(map(known.get, texts))
        return np.array(found, np.int64)

    def lists(self, texts: list[str]) -> list[NDArray[np.int32]]:
        """The ids of each text."""
        numbers = self.numbers(texts).tolist()
        ids = self.ids
        starts, ends = ids.bounds[:-1].tolist(), ids.bounds[1:].tolist()
        return [ids.values[starts[number] : ends[number]] for number in numbers]

    def _append(self, lists: list[NDArray[np.int32]]) -> None:
        if not lists:
            return
        bounds = bounds_of(np.fromiter(map(len, lists), np.int64, len(lists)))
        count, tokens = self._count + len(lists), self._tokens + int(bounds[-1])
        self._values, self._bounds = _grown(self._values, tokens), _grown(self._bounds, count + 1)
        np.concatenate(lists, out=self._values[self._tokens : tokens], casting="same_kind")
        self._bounds[self._count + 1 : count + 1] = bounds[1:] + self._tokens
        self._count, self._tokens = count, tokens


def _grown(array: NDArray[Any], size: int) -> NDArray[Any]:
    """The array, or a copy with room for so many."""
    if size <= len(array):
        return array
    larger = np.empty(max(size, 2 * len(array)), array.dtype)
    larger[: len(array)] = array
    return larger
