"""The two small runs that advice is taken from: lists of some training queries, and whole pools of some held-out ones.

Both are runs of the pipeline with a smaller `hard_negatives.queries`, so their logits lie in the store like all others. A subset of the
queries holds every smaller one, and a draw depends on seed and query alone: the run that follows scores none of these pairs again.
"""

from __future__ import annotations

from dataclasses import dataclass

from data.config.settings import Curriculum, DarkExamples, Dev, Experiment, HardNegatives
from data.errors import UserError
from data.formats.collection import find_collection
from pipeline.scoring.cost import at_most

DEPTH = 50  # passages of a held-out query that the teacher puts in its order
_FEWEST = 20  # queries of either sample: below it nothing can be said
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


def samples_of(experiment: Experiment, *, budget_pairs: int) -> Samples:
    """The samples that the teacher reads at most so many pairs for, about half of them each.

    The lists are those of the experiment without what its rules and sampler leave out, uniformly drawn, with dark examples: what they
    are like is what rules and samplers are chosen by.

    Raises:
        UserError: the experiment has no teacher that reads texts, or no mining, or the budget is too small.
    """
    _refuse(experiment)
    collection = find_collection(experiment.ingest.collection, format=experiment.ingest.format)
    split = experiment.dev.split if experiment.dev.split in collection.qrels else experiment.ingest.train_split
    lists = _lists(experiment, queries=1)
    pairs_of_list, pairs_of_pool = at_most(lists, 1, labels=1), DEPTH + 2  # a pool's pairs: its positives, too, mostly one or two
    least = _FEWEST * (pairs_of_list + pairs_of_pool)
    if budget_pairs < least:
        raise UserError(
            f"budget_pairs={budget_pairs:,}: {_FEWEST} lists of {pairs_of_list} candidates and {_FEWEST} pools of {DEPTH} passages are "
            f"{least:,} pairs, and fewer say nothing: raise it"
        )
    held_out = max(_FEWEST, min(_MOST_HELD_OUT, budget_pairs // 2 // pairs_of_pool))
    of_lists = max(_FEWEST, min(_MOST_LISTS, (budget_pairs - held_out * pairs_of_pool) // pairs_of_list))
    return Samples(_lists(experiment, queries=of_lists), _held_out(experiment, split=split, queries=held_out), split)


def _refuse(experiment: Experiment) -> None:
    if experiment.lists.path is not None:
        raise UserError("lists.path has lists that are trained as they are: prep advise looks at what could be mined; leave it out")
    if experiment.teacher.backend in ("none", "imported"):
        raise UserError(
            f"teacher.backend={experiment.teacher.backend}: prep advise has the teacher read a sample; give one that reads texts (torch, "
            "onnx or http)"
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
