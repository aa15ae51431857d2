"""What scoring will cost, before it is paid: pairs, how many of them are new, tokens, hours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.digests import DigestCache
from data.tables.shards import read_row_groups
from pipeline.scoring.calibration import Speed
from pipeline.scoring.requested_pairs import WantedPairs, spec_of, store_of
from pipeline.stage import Stored
from retrieval.teachers.pair_tokens import PairTokenizer

_SAMPLED_PAIRS = 2000  # whose mean length stands for all; its error is about 1 %


@dataclass(frozen=True)
class Price:
    """The work of some shards."""

    wanted: int  # rows
    distinct: int
    cached: int
    tokens: int  # of the pairs to score, from a sample

    @property
    def to_score(self) -> int:
        """Distinct pairs that no run has scored yet."""
        return self.distinct - self.cached

    def __str__(self) -> str:
        tokens = f", about {self.tokens:,} tokens" if self.to_score else ""
        return f"{self.wanted:,} pairs, {self.distinct:,} distinct, {self.cached:,} cached, {self.to_score:,} to score{tokens}"


def price(experiment: Experiment, candidates: Stored, shards: Sequence[int], *, warn: Callable[[str], None] = print) -> Price:
    """Count the pairs of the shards against the logit store. Reads every text, and the store once; loads no model."""
    store = store_of(experiment, spec_of(experiment), DigestCache.of_store(experiment.store), warn=warn)
    paths = [candidates.paths()[shard] for shard in shards]
    wanted = [WantedPairs.read(path) for path in paths]
    missing = np.isnan(store.lookup(np.concatenate([pairs.keys for pairs in wanted])).logits)
    sample: list[tuple[str, str]] = []
    start = 0
    for path, pairs in zip(paths, wanted, strict=True):
        of_shard = missing[start : start + len(pairs.keys)]
        sample += _some_missing(path, of_shard[pairs.pair_of_row], -(-_SAMPLED_PAIRS // len(shards)))
        start += len(pairs.keys)
    rows, to_score = sum(len(pairs.pair_of_row) for pairs in wanted), int(missing.sum())
    return Price(rows, len(missing), len(missing) - to_score, round(_mean_tokens(experiment, sample) * to_score))


def a_full_shard(candidates: Stored, shards: Sequence[int]) -> Path:
    """The first of the shards that has rows: few queries may leave some empty."""
    rows = [candidates.manifest.shards[shard].rows for shard in shards]
    return candidates.paths()[shards[next((place for place, count in enumerate(rows) if count), 0)]]


def _some_missing(path: Path, missing: NDArray[np.bool_], count: int) -> list[tuple[str, str]]:
    """Up to `count` missing pairs from the first row group that has some, spread over it."""
    start = 0
    for table in read_row_groups(path, columns=["query", "text"]):
        rows = np.flatnonzero(missing[start : start + table.num_rows])
        if len(rows):
            rows = rows[:: max(1, len(rows) // count)][:count]
            return [(table.column("query")[row].as_py(), table.column("text")[row].as_py()) for row in rows.tolist()]
        start += table.num_rows
    return []


def _mean_tokens(experiment: Experiment, pairs: list[tuple[str, str]]) -> float:
    if not pairs:
        return 0.0
    spec = spec_of(experiment)
    tokenizer = PairTokenizer(spec.folder, max_tokens=spec.max_tokens, trusted=spec.trust_remote_code)
    return float(np.mean([len(pair.ids) for pair in tokenizer.encode(pairs)]))


def wall_seconds(speed: Speed, tokens: int, *, workers: int) -> float:
    """How long so many workers take together, with torch.compile where that is sooner."""
    each = tokens / workers
    return speed.seconds(each, compiled=speed.compiling_pays(each))


def at_most(experiment: Experiment, queries: int) -> int:
    """Pairs that so many training queries can want, before their negatives are known."""
    negatives, dark = experiment.hard_negatives.num_negatives, experiment.dark_examples
    queries = min(queries, experiment.hard_negatives.queries or queries)
    return queries * experiment.draws * (1 + negatives + negatives * dark.reinforced + len(dark.mask_ratios))


def at_most_of_pools(experiment: Experiment, queries: int, *, labels: int) -> int:
    """Pairs that the pools of so many training queries with so many labels can want."""
    settings = experiment.hard_negatives
    whole = experiment.scores_whole_pools
    each = [settings.depth if whole else source.last_rank - source.first_rank + 1 for source in settings.sources]
    return min(queries, settings.queries or queries) * sum(each) + labels
