"""What scoring will cost, before it is paid: pairs, how many of them are new, their tokens, hours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.tables.shards import read_row_groups
from pipeline.scoring.requested_pairs import RequestedPairs, look_up, open_teacher, texts_of_rows
from pipeline.stage import Stored
from retrieval.models.marks import Marks
from retrieval.models.resolved import ResolvedModels
from retrieval.teachers.base import Pair

_SAMPLED_PAIRS = 2000  # whose mean length stands for all; its error is about 1 %


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


def estimate_cost(models: ResolvedModels, candidates: Stored, shards: Sequence[int], *, warn: Callable[[str], None] = print) -> Cost:
    """Count the pairs of the shards against the logit store. Reads every text, and the store once; loads no model."""
    paths = [candidates.path(shard) for shard in shards]
    marks = models.teacher_marks
    requested = [RequestedPairs.read(path, marks) for path in paths]
    known, _ = look_up(models, np.concatenate([pairs.keys for pairs in requested]), warn=warn)
    missing = np.isnan(known.logits)
    sample: list[Pair] = []
    start = 0
    for path, pairs in zip(paths, requested, strict=True):
        of_shard = missing[start : start + len(pairs.keys)]
        sample += _some_missing(path, of_shard[pairs.pair_of_row], -(-_SAMPLED_PAIRS // len(shards)), marks)
        start += len(pairs.keys)
    rows, to_score = sum(len(pairs.pair_of_row) for pairs in requested), int(missing.sum())
    tokens_each = float(open_teacher(models).prepare(sample).token_counts.mean()) if sample else 0.0
    return Cost(rows, len(missing), len(missing) - to_score, round(tokens_each * to_score))


def first_filled_shard(candidates: Stored, shards: Sequence[int]) -> Path:
    """The first of the shards that has rows: few queries may leave some empty."""
    return candidates.paths()[next((shard for shard in shards if candidates.manifest.shards[shard].rows), shards[0])]


def _some_missing(path: Path, missing: NDArray[np.bool_], count: int, marks: Marks) -> list[Pair]:
    """Up to `count` missing pairs from the first row group that has some, spread over it."""
    start = 0
    for table in read_row_groups(path, columns=["query", "text"]):
        rows = np.flatnonzero(missing[start : start + table.num_rows])
        if len(rows):
            return texts_of_rows(table.take(rows[:: max(1, len(rows) // count)][:count]), marks)
        start += table.num_rows
    return []


def at_most(experiment: Experiment, queries: int) -> int:
    """Pairs that so many training queries can request, before their negatives are known."""
    negatives, dark = experiment.hard_negatives.num_negatives, experiment.dark_examples
    queries = min(queries, experiment.hard_negatives.queries or queries)
    return queries * experiment.draws * (1 + negatives + negatives * dark.reinforced + len(dark.mask_ratios))


def at_most_of_pools(experiment: Experiment, queries: int, *, labels: int) -> int:
    """Pairs that the pools of so many training queries with so many labels can request."""
    settings = experiment.hard_negatives
    whole = experiment.scores_whole_pools
    each = [settings.depth if whole else source.last_rank - source.first_rank + 1 for source in settings.sources]
    return min(queries, settings.queries or queries) * sum(each) + labels
