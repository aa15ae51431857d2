"""The negatives of one query for one p+: rank windows, rules, sampler, and deeper ranks where the rules leave a list short.

    the rank window of each source -> the rules of `false_negatives` -> the sampler, `draws` times -> `fill_to`

Margins and SimANS go by the p+ that the list is trained with. A deeper passage is judged by the same limits as those of the windows (a
percentile is of the windows alone), and taken by rank, the sources in turn, so that a larger m keeps what a smaller one has.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from data.config.negative_sources import SOURCES
from data.config.settings import HardNegatives
from data.digests import hash64_after
from pipeline.negatives.false_negatives import Dropped, dropped_by, limits_of
from pipeline.negatives.pool_pairs import PoolRow
from pipeline.negatives.samplers import NotAsked, Window, interleave, preferred, round_robin
from pipeline.stages.pools import window_places


@dataclass(frozen=True)
class Logits:
    """The teacher's logits of one query's positives and window passages."""

    positives: list[float]  # in the order of the pool's
    passages: dict[str, float]  # by id


@dataclass(frozen=True)
class Positive:
    """A passage that a list is trained with as p+."""

    id: str
    logit: float = math.nan  # the teacher's; nan where nothing needs it
    score: float = math.nan  # the student's; nan where it ranks nothing


@dataclass(frozen=True)
class Drawn:
    """The negatives of one query for one p+."""

    negatives: list[list[str]]  # of each draw up to m ids, in the order of the pool
    dropped: dict[str, Dropped]
    backfilled: Counter[str] = field(default_factory=Counter)  # by source, how many negatives others gave for it
    filled: int = 0  # negatives from deeper ranks


@dataclass(frozen=True)
class Windows:
    """A query's pool as negatives are drawn from it."""

    row: PoolRow
    settings: HardNegatives
    seed: int
    shallow: list[list[str]]  # of each source its rank window, best first
    deep: list[list[str]]  # of each source the ranks beyond it, up to `fill_to`
    scores: dict[str, float]  # the student's, of what it ranked
    logits: Mapping[str, float]  # the teacher's, where something needs them
    needs: Collection[str]  # what the sampler goes by

    @staticmethod
    def of(row: PoolRow, settings: HardNegatives, *, seed: int, logits: Logits | None) -> Windows:
        """The windows of a pool."""
        windows = [[row.ids[at] for at in window_places(row.sources, source).tolist()] for source in settings.sources]
        further = [[row.ids[at] for at in window_places(row.sources, source).tolist()] for source in settings.filling_sources]
        by_student = np.flatnonzero(row.sources == SOURCES.index("student")).tolist()
        scores = {row.ids[at]: float(row.scores[at]) for at in by_student}
        passages = logits.passages if logits else {}
        return Windows(row, settings, seed, windows, further, scores, passages, settings.sampler_traits.needs)

    def without(self, barred: Collection[str]) -> Windows:
        """The same without some passages."""
        return replace(self, shallow=_without(self.shallow, barred), deep=_without(self.deep, barred)) if barred else self

    @property
    def ids(self) -> list[str]:
        """The distinct passages of the rank windows."""
        return _distinct(self.shallow)

    def draw(self, positive: Positive, draws: Iterable[int]) -> Drawn:
        """The negatives of these draws. Fewer than m where windows and deeper ranks hold fewer that no rule drops."""
        settings, ids = self.settings, self.ids
        limits = limits_of(
            ids,
            settings.false_negatives,
            logits=self.logits,
            positive_logit=positive.logit,
            scores=self.scores,
            positive_score=positive.score,
        )
        dropped = dropped_by(limits, ids)
        windows = _without(self.shallow, dropped) if dropped else self.shallow
        order = [doc_id for doc_id in ids if doc_id not in dropped]
        deeper: list[list[str]] = []
        if self.deep and len(order) < settings.num_negatives:
            dropped |= dropped_by(limits, (doc_id for doc_id in _distinct(self.deep) if doc_id not in dropped))
            deeper = _without(self.deep, {*dropped, *order})
            order += _distinct(deeper)
        sources = settings.sources
        weights = [source.weight for source in sources]
        turns = round_robin(weights, settings.num_negatives)
        listed = []
        backfilled: Counter[str] = Counter()
        filled = 0
        for draw in draws:
            preferences = [self._preferred(window, turns.count(place), draw, positive) for place, window in enumerate(windows)]
            taken, missed = interleave(preferences, turns)
            backfilled.update({source.name: count for source, count in zip(sources, missed, strict=True) if count})
            more, _ = interleave(deeper, round_robin(weights, settings.num_negatives - len(taken))) if deeper else ([], [])
            chosen = {*taken, *more}
            filled += len(more)
            listed.append([doc_id for doc_id in order if doc_id in chosen])
        return Drawn(listed, dropped, backfilled, filled)

    def _preferred(self, window: list[str], count: int, draw: int, positive: Positive) -> list[str]:
        """The window's passages in the order of the sampler's preference."""

        def given(name: str, known: Mapping[str, float]) -> Sequence[float]:
            return [known[doc_id] for doc_id in window] if name in self.needs else NotAsked(name, self.settings)

        return preferred(
            Window(
                query_id=self.row.query_id,
                doc_ids=window,
                count=count,
                hashed=hash64_after(self.seed, "negatives", self.row.query_id, draw),
                settings=self.settings,
                student_scores=given("student_scores", self.scores),
                positive_score=positive.score,
                teacher_logits=given("teacher_logits", self.logits),
                positive_logit=positive.logit,
            )
        )


def _distinct(windows: Iterable[list[str]]) -> list[str]:
    return list(dict.fromkeys(doc_id for window in windows for doc_id in window))


def _without(windows: list[list[str]], barred: Collection[str]) -> list[list[str]]:
    return [[doc_id for doc_id in window if doc_id not in barred] for window in windows]
