"""The two small runs that advice is taken from: lists of some training queries, and whole pools of some held-out ones.

Both are runs of the pipeline with a smaller `hard_negatives.queries`, so their logits lie in the store like all others. A subset of the
queries holds every smaller one, and a draw depends on seed and query alone: the run that follows scores none of these pairs again.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from data.config.settings import Curriculum, DarkExamples, Dev, Experiment, HardNegatives
from data.errors import UserError
from pipeline.pooling.judged_queries import in_order_of_choice
from pipeline.scoring.cost import at_most

DEPTH = 50  # passages of a held-out query that the teacher puts in its order
FEWEST = 20  # queries of either sample: below it nothing can be said
_MOST_HELD_OUT = 200
_MOST_LISTS = 400


@dataclass(frozen=True)
class Samples:
    """The experiments of both runs."""

    lists: Experiment
    held_out: Experiment
    split: str  # that the held-out queries are of

    @property
    def trains_on_split(self) -> bool:
        """Whether there is no other split, and the queries are training queries."""
        return self.split == self.lists.ingest.train_split

    def fewest(self, labels: pl.DataFrame) -> int:
        """Queries of the smaller sample: those that are asked for, as far as the splits have them."""
        asked = ((self.lists, self.lists.ingest.train_split), (self.held_out, self.split))
        there = [labels.filter(pl.col("split") == split)["query_id"].n_unique() for _, split in asked]
        return min(min(count, run.hard_negatives.queries or count) for (run, _), count in zip(asked, there, strict=True))


def refuse_early(experiment: Experiment, *, budget_pairs: int) -> None:
    """Raises UserError, before any work, where the experiment has no teacher that reads texts, or no mining, or the budget is too small."""
    if experiment.lists.path is not None:
        raise UserError("lists.path has lists that are trained as they are: prep advise looks at what could be mined; leave it out")
    if experiment.teacher.backend in ("none", "imported"):
        raise UserError(
            f"teacher.backend={experiment.teacher.backend}: prep advise has the teacher read a sample; give one that reads texts (torch, "
            "onnx or http)"
        )
    _check(budget_pairs, pairs_of_list=_pairs_of_list(experiment), pairs_of_pools=FEWEST * (DEPTH + 1))


def samples_of(experiment: Experiment, labels: pl.DataFrame, *, budget_pairs: int) -> Samples:
    """The samples that the teacher reads at most so many pairs for, about half of them each.

    The lists are those of the experiment without what its rules and sampler leave out, uniformly drawn, with dark examples: what they
    are like is what rules and samplers are chosen by.

    Args:
        labels: those above 0 of all splits, columns of `schemas.QRELS`.

    Raises UserError where queries have so many labels that the budget is too small.
    """
    train_split = experiment.ingest.train_split
    split = experiment.dev.split if (labels["split"] == experiment.dev.split).any() else train_split
    pairs_of_list, pairs_of_pools = _pairs_of_list(experiment), _pairs_of_pools(experiment, labels.filter(pl.col("split") == split))
    _check(budget_pairs, pairs_of_list=pairs_of_list, pairs_of_pools=int(pairs_of_pools[:FEWEST][-1]))
    held_out = max(FEWEST, min(_MOST_HELD_OUT, int(np.searchsorted(pairs_of_pools, budget_pairs // 2, "right"))))
    of_pools = int(pairs_of_pools[:held_out][-1])
    of_lists = max(FEWEST, min(_MOST_LISTS, (budget_pairs - of_pools) // pairs_of_list))
    return Samples(_lists(experiment, queries=of_lists), _held_out(experiment, split=split, queries=held_out), split)


def _pairs_of_list(experiment: Experiment) -> int:
    return at_most(_lists(experiment, queries=1), 1, labels=1)


def _pairs_of_pools(experiment: Experiment, labels: pl.DataFrame) -> NDArray[np.int64]:
    """Of the first query in the order of choice, of the first two, and so on: passages and all positives."""
    count = dict(labels.group_by("query_id").len().iter_rows())
    return np.cumsum([DEPTH + count[query] for query in in_order_of_choice(count, seed=experiment.seed)])


def _check(budget_pairs: int, *, pairs_of_list: int, pairs_of_pools: int) -> None:
    least = FEWEST * pairs_of_list + pairs_of_pools
    if budget_pairs < least:
        raise UserError(
            f"budget_pairs={budget_pairs:,}: {FEWEST} lists of {pairs_of_list} candidates and {FEWEST} pools of {DEPTH} passages and "
            f"their positives are {least:,} pairs, and fewer say nothing: raise it"
        )


def _lists(experiment: Experiment, *, queries: int) -> Experiment:
    ratios = experiment.dark_examples.mask_ratios or DarkExamples().mask_ratios
    dark = experiment.dark_examples.model_copy(update={"reinforced": True, "mask_ratios": ratios, "mask_draws": 1})
    negatives = _plainly_drawn(experiment, queries=min(queries, experiment.hard_negatives.queries or queries))
    return _alone(experiment).model_copy(update={"hard_negatives": negatives, "dark_examples": dark})


def _held_out(experiment: Experiment, *, split: str, queries: int) -> Experiment:
    """The student's best passages for queries of a split, all scored by the teacher, as if they were trained on."""
    pools = {"source": "student", "depth": DEPTH, "range_min": 0, "range_max": DEPTH, "score_pools": True}
    negatives = _plainly_drawn(experiment, queries=queries).model_copy(update=pools)
    ingest = experiment.ingest.model_copy(update={"train_split": split})
    return _alone(experiment).model_copy(update={"hard_negatives": negatives, "ingest": ingest})


def _plainly_drawn(experiment: Experiment, *, queries: int) -> HardNegatives:
    """Negatives by chance from the rank windows, without rules."""
    plain = HardNegatives()
    unset = ("draws", "sampler", "positives", "select", "fill_to", "promote_margin", "score_pools", "false_negatives")
    return experiment.hard_negatives.model_copy(update={"queries": queries, **{name: getattr(plain, name) for name in unset}})


def _alone(experiment: Experiment) -> Experiment:
    """Without dev sets and curricula, which make other tables."""
    return experiment.model_copy(update={"dev": Dev(), "curriculum": Curriculum()})
