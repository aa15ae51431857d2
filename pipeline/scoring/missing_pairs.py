"""Pairs that a teacher of stored logits would have to read: it cannot, so a run is told of them before its first shard is built."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from data.config.settings import Experiment
from data.errors import UserError
from data.tables.shards import read_row_groups
from pipeline.scoring.cost import Cost
from pipeline.scoring.requested_pairs import RequestedPairs, store_of
from pipeline.stage import Stored
from retrieval.models.resolved import ResolvedModels

_TO_BE_READ = "dark_examples.reinforced=false dark_examples.mask_ratios=[]"


def refuse_dark_examples(experiment: Experiment) -> None:
    """Raises UserError where lists are to be made of mixtures and masked passages, for a teacher whose tokenizer is not here."""
    if experiment.dark_examples.reinforced or experiment.dark_examples.mask_ratios:
        raise UserError(
            f"teacher.model={experiment.teacher.model}: stage=dark_examples is not complete, and dark examples need a teacher that reads "
            f"texts: copy that table from the store that the logits came from, set {_TO_BE_READ}, or give a teacher of backend=torch, onnx "
            "or http"
        )


def refuse_missing(models: ResolvedModels, cost: Cost, candidates: Stored, shards: Sequence[int], *, label: str) -> None:
    """Raises UserError where pairs of the shards have no logit: how many, one of them, and what can be done. Reads texts, loads nothing."""
    if not cost.to_score:
        return
    query_id, doc_id = _first_missing(models, candidates, shards)
    raise UserError(
        f"{label}: {missing_words(cost)} of teacher.model={models.experiment.teacher.model}, such as that of query {query_id} with passage "
        f"{doc_id}; teacher.backend=imported can score none. {ways(models)}"
    )


def missing_words(cost: Cost) -> str:
    """`12 of 400 pairs (3.0 %) have no logit`."""
    share = 100 * cost.to_score / cost.distinct
    return f"{cost.to_score:,} of {cost.distinct:,} distinct pairs ({share:.1f} %) have no logit"


def ways(models: ResolvedModels) -> str:
    """What makes a store complete that lacks some pairs."""
    declared = models.key("teacher").get("kind") == "imported"
    elsewhere = (
        "Score them elsewhere: prep export config=FILE format=pairs missing=true out=pairs.jsonl, then prep import ANSWERS format=pairs "
        "config=FILE; or"
        if declared
        else "Give the teacher itself, or more of its logits (prep cache import); or"
    )
    if all(source.name == "run" for source in models.experiment.hard_negatives.sources):
        fewer = (
            "ask for fewer: a run of scored candidates alone (prep import, unscored=drop), and qrels of scored positives alone, such as "
            "prep import writes beside the run (copy them into the collection as a split, and name it in ingest.train_split)"
        )
    else:
        fewer = (
            "ask for fewer: hard_negatives.source=run with the run that was imported (lists.trec), or a smaller hard_negatives.depth and "
            "range_max"
        )
    return f"{elsewhere} {fewer}"


def _first_missing(models: ResolvedModels, candidates: Stored, shards: Sequence[int]) -> tuple[str, str]:
    """(query_id, candidate_id) of a pair without a logit."""
    store = store_of(models, warn=lambda line: None)
    for shard in shards:
        path = candidates.path(shard)
        requested = RequestedPairs.read(path, models.teacher_marks)
        missing = np.isnan(store.lookup(requested.keys).logits)[requested.pair_of_row]
        start = 0
        for table in read_row_groups(path, columns=["query_id", "candidate_id"]):
            if (rows := np.flatnonzero(missing[start : start + table.num_rows])).size:
                found = table.slice(int(rows[0]), 1).to_pylist()[0]
                return found["query_id"], found["candidate_id"]
            start += table.num_rows
    raise AssertionError("a pair is missing")
