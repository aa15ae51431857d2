"""Some whole lists in arrays, as every writer gets them, and what a writer is told and tells."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.tables.ragged import bounds_of


@dataclass(frozen=True)
class Lists:
    """n lists with C candidates, in the order of the store. Ids and texts are looked up by place, so that few are copied."""

    query_ids: pa.Array  # [n]
    queries: pa.Array  # [n] texts
    draws: NDArray[np.int8]  # [n]
    confidences: NDArray[np.float32]  # [n] C(q), nats; NaN without a teacher
    list_of: NDArray[np.int64]  # [C] number of each candidate's list, rising
    places: NDArray[np.int64]  # [C] where its id and text stand in the two below
    ids: pa.Array
    texts: pa.Array
    kinds: NDArray[np.int8]  # [C] CandidateKind
    positive: NDArray[np.bool_]  # [C] carries a label above 0
    logits: NDArray[np.float32]  # [C] the teacher's; NaN without one

    def __len__(self) -> int:
        return len(self.draws)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """[n] candidates of each list."""
        return np.bincount(self.list_of, minlength=len(self))

    @property
    def bounds(self) -> NDArray[np.int64]:
        """[n + 1] where the candidates of a list begin and end."""
        return bounds_of(self.lengths)

    def count(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """[n] how many of the chosen candidates [C] each list has."""
        return np.bincount(self.list_of[chosen], minlength=len(self))

    def keep(self, chosen: NDArray[np.bool_]) -> Lists:
        """The same lists with those candidates [C] alone; some may be empty then."""
        if chosen.all():
            return self
        names = ("list_of", "places", "kinds", "positive", "logits")
        return replace(self, **{name: getattr(self, name)[chosen] for name in names})

    def keep_lists(self, chosen: NDArray[np.bool_]) -> Lists:
        """Those lists [n] alone."""
        if chosen.all():
            return self
        kept = self.keep(chosen[self.list_of])
        of_lists = pa.array(np.flatnonzero(chosen))
        return replace(
            kept, query_ids=self.query_ids.take(of_lists), queries=self.queries.take(of_lists), draws=self.draws[chosen],
            confidences=self.confidences[chosen], list_of=(np.cumsum(chosen) - 1)[kept.list_of],
        )  # fmt: skip

    def ids_of(self, candidates: NDArray[np.int64]) -> pa.Array:
        """Ids of candidates, by their numbers below C."""
        return self.ids.take(pa.array(self.places[candidates]))

    def texts_of(self, candidates: NDArray[np.int64]) -> pa.Array:
        """Texts of candidates, by their numbers below C."""
        return self.texts.take(pa.array(self.places[candidates]))


class ListSource(Protocol):
    """The lists to be written: those of the draws asked for, with the kinds of candidates asked for."""

    def read(self, *, texts: bool = True) -> Iterator[Lists]:
        """All lists from the start, a bounded piece at a time; without `texts`, which is cheap, texts are null."""


@dataclass(frozen=True)
class WriteOptions:
    """What a writer is told."""

    scored: bool  # whether the lists have a teacher's logits
    negatives: int | None = None  # of each list, in layouts that want one number; None: the number that keeps most candidates
    margins: bool = False  # sentence-transformers: labels are margins, not scores


@dataclass
class Written:
    """What came of it."""

    counts: Counter[str] = field(default_factory=Counter)  # of lists, candidates and so on
    left_out: Counter[str] = field(default_factory=Counter)  # by what it is
    notes: list[str] = field(default_factory=list)  # for people
    configs: dict[str, str] = field(
        default_factory=dict
    )  # name of a part -> pattern of its files, for `datasets.load_dataset(FOLDER, NAME)`


class Writer(Protocol):
    """Writes one layout into an empty folder."""

    def __call__(self, folder: Path, source: ListSource, options: WriteOptions) -> Written:
        """Write all lists. Raises UserError where the layout cannot hold an id, or nothing is left to write."""
