"""What scoring will cost, before it is paid: pairs, how many of them are new, their tokens, hours."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.logits.query_shard import QueryShard
from data.tables.shards import read_row_groups
from pipeline.scoring.requested_pairs import RequestedPairs, look_up, open_teacher, texts_of_rows
from pipeline.stage import Stored
from retrieval.models.marks import Marks
from retrieval.models.resolved import ResolvedModels
from retrieval.teachers.base import Pair, PreparingTeacher

_SAMPLED_PAIRS = 2000  # whose mean length stands for all; its error is about 1 %
_ROWS_AT_ONCE = 1 << 20  # of which a lookup holds the keys: some 60 MB


@dataclass(frozen=True)
class Cost:
    """The work of some shards."""

    requested: int  # rows
    distinct: int
    cached: int
    tokens: int  # of the pairs to score, from a sample; 0 where the teacher counts none

    @property
    def to_score(self) -> int:
        """Distinct pairs that no run has scored yet."""
        return self.distinct - self.cached

    def __str__(self) -> str:
        tokens = f", about {self.tokens:,} tokens" if self.tokens else ""
        return f"{self.requested:,} pairs, {self.distinct:,} distinct, {self.cached:,} cached, {self.to_score:,} to score{tokens}"


@dataclass(frozen=True)
class Price:
    """What was counted of one shard or more."""

    requested: int = 0
    distinct: int = 0
    cached: int = 0
    sampled: int = 0  # pairs whose tokens were counted
    sampled_tokens: int = 0

    def __add__(self, other: Price) -> Price:
        return Price(*(mine + its for mine, its in zip(astuple(self), astuple(other), strict=True)))

    @property
    def cost(self) -> Cost:
        """The tokens of the sample stand for those of all pairs to score."""
        to_score = self.distinct - self.cached
        tokens = round(self.sampled_tokens / self.sampled * to_score) if self.sampled else 0
        return Cost(self.requested, self.distinct, self.cached, tokens)


def price_of(
    path: Path, pairs: RequestedPairs, missing: NDArray[np.bool_], teacher: PreparingTeacher, *, shards: int, marks: Marks
) -> Price:
    """The price of one of so many shards; `missing` [distinct] of its pairs are to be scored. Reads a row group, loads no model."""
    sample = _some_missing(path, missing[pairs.pair_of_row], -(-_SAMPLED_PAIRS // shards), marks) if missing.any() else []
    tokens = int(teacher.prepare(sample).token_counts.sum()) if sample else 0
    return Price(len(pairs.pair_of_row), len(missing), int((~missing).sum()), len(sample), tokens)


def estimate_cost(models: ResolvedModels, candidates: Stored, shards: Sequence[int], *, warn: Callable[[str], None] = print) -> Cost:
    """Count the pairs of the shards against the logit store. Reads every text; loads no model."""
    teacher, total = open_teacher(models), Price()
    for path, pairs, missing in _missing_of(models, candidates, shards, warn=warn):
        total += price_of(path, pairs, missing, teacher, shards=len(shards), marks=models.teacher_marks)
    return total.cost


def any_to_score(models: ResolvedModels, candidates: Stored, shards: Sequence[int]) -> bool:
    """Whether a pair of the shards has no logit; reads no further than to the first that has none."""
    return any(missing.any() for _, _, missing in _missing_of(models, candidates, shards, warn=lambda line: None))


def _missing_of(
    models: ResolvedModels, candidates: Stored, shards: Sequence[int], *, warn: Callable[[str], None]
) -> Iterator[tuple[Path, RequestedPairs, NDArray[np.bool_]]]:
    """Shard by shard its pairs, and which of them have no logit; of some shards at a time, which the store is read once for."""
    for some in _some_shards(candidates, shards):
        paths = [candidates.path(shard) for shard in some]
        count = len(candidates.manifest.shards)
        requested = [
            RequestedPairs.read(path, models.teacher_marks, shard=QueryShard(shard, count)) for shard, path in zip(some, paths, strict=True)
        ]
        of = [pairs.shard for pairs in requested if pairs.shard]
        known, _ = look_up(models, np.concatenate([pairs.keys for pairs in requested]), warn=warn, of=of if len(of) == len(some) else ())
        ends = np.cumsum([len(pairs.keys) for pairs in requested])
        yield from zip(paths, requested, np.split(np.isnan(known.logits), ends[:-1]), strict=True)


def _some_shards(candidates: Stored, shards: Sequence[int]) -> Iterator[list[int]]:
    """Shards of up to `_ROWS_AT_ONCE` rows together, or one."""
    some: list[int] = []
    rows = 0
    for shard in shards:
        own = candidates.manifest.shards[shard].rows
        if some and rows + own > _ROWS_AT_ONCE:
            yield some
            some, rows = [], 0
        some.append(shard)
        rows += own
    if some:
        yield some


def first_filled_shard(candidates: Stored, shards: Sequence[int]) -> Path:
    """The first of the shards that has rows: few queries may leave some empty."""
    return candidates.path(next((shard for shard in shards if candidates.manifest.shards[shard].rows), shards[0]))


def _some_missing(path: Path, missing: NDArray[np.bool_], count: int, marks: Marks) -> list[Pair]:
    """Up to `count` missing pairs from the first row group that has some, spread over it."""
    start = 0
    for table in read_row_groups(path, columns=["query", "text"]):
        rows = np.flatnonzero(missing[start : start + table.num_rows])
        if len(rows):
            return texts_of_rows(table.take(rows[:: max(1, len(rows) // count)][:count]), marks)
        start += table.num_rows
    return []


def at_most(experiment: Experiment, queries: int, *, labels: int) -> int:
    """Pairs that so many training queries with so many labels can request, before their negatives are known.

    Without lists of promoted passages, which `positives=each` adds.
    """
    negatives, dark = experiment.hard_negatives.num_negatives, experiment.dark_examples
    queries = min(queries, experiment.hard_negatives.queries or queries)
    lists = labels if experiment.hard_negatives.positives == "each" else queries
    return lists * experiment.draws * (1 + negatives + negatives * dark.reinforced + len(dark.mask_ratios))


def at_most_of_pools(experiment: Experiment, queries: int, *, labels: int) -> int:
    """Pairs that the pools of so many training queries with so many labels can request."""
    settings = experiment.hard_negatives
    whole = experiment.scores_whole_pools
    each = [settings.depth if whole else source.last_rank - source.first_rank + 1 for source in settings.scored_sources]
    return min(queries, settings.queries or queries) * sum(each) + labels
