"""Lists of numbers as flat values and bounds: the tokens of many texts in two arrays, 4 bytes a token."""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True)
class Ragged:
    """n lists; number i is `values[bounds[i]:bounds[i + 1]]`."""

    values: NDArray[Any]  # [T], of all lists, one after the other
    bounds: NDArray[np.int64]  # [n + 1]

    def __len__(self) -> int:
        return len(self.bounds) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[n] values of each list."""
        return np.diff(self.bounds)

    def part(self, start: int, stop: int) -> list[NDArray[Any]]:
        """The lists from number `start` to before `stop`, without a copy."""
        return [self.values[first:last] for first, last in itertools.pairwise(self.bounds[start : stop + 1].tolist())]

    def take(self, rows: NDArray[np.integer]) -> Ragged:
        """Copies of some lists, in the order asked for."""
        lengths = self.lengths[rows]
        return Ragged(self.values[spans(self.bounds[rows], lengths)], bounds_of(lengths))

    def arrow(self) -> pa.ListArray:
        """The same as an Arrow array; refuses more values than its 32-bit offsets can count."""
        return pa.ListArray.from_arrays(pa.array(self.bounds).cast(pa.int32()), pa.array(self.values))

    @staticmethod
    def of_lists(lists: pa.ListArray) -> Ragged:
        """The lists of an Arrow array without nulls."""
        values = lists.flatten().to_numpy(zero_copy_only=False)
        offsets = lists.offsets.to_numpy().astype(np.int64)
        return Ragged(values, offsets - offsets[0])


class RaggedBuilder:
    """Grows by lists of 32-bit numbers. Its memory is that of the numbers: it grows in place where the system can do that."""

    def __init__(self) -> None:
        self._values, self._lengths = array("i"), array("q")

    def extend(self, lists: Iterable[Iterable[int]]) -> None:
        """Append lists."""
        before = len(self._values)
        for one in lists:
            self._values.extend(one)
            self._lengths.append(len(self._values) - before)
            before = len(self._values)

    def finish(self) -> Ragged:
        """All lists; nothing can be appended any more."""
        return Ragged(np.frombuffer(self._values, np.int32), bounds_of(np.frombuffer(self._lengths, np.int64)))


def bounds_of(lengths: NDArray[np.integer]) -> NDArray[np.int64]:
    """[n + 1] where lists of these lengths [n] begin and end."""
    bounds = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=bounds[1:])
    return bounds


def spans(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """start, start + 1, ... of each span, one span after the other."""
    return np.repeat(starts - bounds_of(lengths)[:-1], lengths) + np.arange(int(lengths.sum()))
