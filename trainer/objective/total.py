"""From vectors of a group's sequences to its part of the total loss: scores, lists, weights. Outside of autocast: scores are fp32, losses
fp64.

Shapes: n sequences of D dimensions, B queries, K candidates, N in-batch passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from trainer.objective.losses import curriculum_loss, distillation_loss, margin_mse_loss, supervised_loss
from trainer.objective.plan import BatchWork, PoolPassage, QueryWork, Sequenced

LOSSES = ("supervised", "distillation", "kept")


@dataclass(frozen=True)
class QueryLosses:
    """Unweighted losses by query, nats (of MarginMSE squared scores; of CL-DRD sums over pairs); only of the queries they were asked of."""

    supervised: dict[str, float]
    distillation: dict[str, float]
    kept: dict[str, float]  # the divergence from the student's start


def asked_of(queries: Sequence[QueryWork], *, keeps: bool) -> NDArray[np.bool_]:
    """[3, B] of which queries each of `LOSSES` is asked; `keeps`: whether there is a student's start to stay near."""
    asked = np.array([[bool(query.supervised), bool(query.distilled), bool(query.distilled) and keeps] for query in queries])
    return asked.reshape(-1, len(LOSSES)).T


def total_loss(
    student: Scores, frozen: dict[str, Scores], queries: Sequence[QueryWork], *, work: BatchWork, distillation: str, temperature: float
) -> tuple[Tensor, list[Tensor]]:
    """These queries' part of the total loss, and each of `LOSSES` of the queries that it is asked of.

    Args:
        student: Its scores, with their graph.
        frozen: Those of `teacher`, in place of the shards' logits, and of the student's start, `initial`, where there are such.
        queries: Of the group.
        work: The global batch.
        distillation: kl, margin_mse or curriculum.
        temperature: Of the KL.
    """
    supervised = [query for query in queries if query.supervised]
    distilled = [query for query in queries if query.distilled]
    supervised_B = distillation_B = kept_B = student.none
    if supervised:
        scores_BK, mask_BK = student.listed(supervised, [query.supervised for query in supervised], work, loss="supervised")
        supervised_B = supervised_loss(scores_BK[:, 0], scores_BK[:, 1:], mask_BK[:, 1:])
    if distilled:
        lists = [query.distilled for query in distilled]
        scores_BK, mask_BK = student.listed(distilled, lists, work, loss="distillation")
        beside = {name: scores.listed(distilled, lists, work, loss="distillation")[0] for name, scores in frozen.items()}
        if distillation == "curriculum":
            distillation_B = curriculum_loss(scores_BK, _padded([query.labels for query in distilled], like_BK=scores_BK), mask_BK)
        else:
            logits_BK = beside["teacher"] if "teacher" in beside else _logits(distilled, like_BK=scores_BK)
            if distillation == "margin_mse":
                distillation_B = margin_mse_loss(scores_BK, logits_BK, mask_BK)
            else:
                distillation_B = distillation_loss(scores_BK, logits_BK, mask_BK, temperature)
        if "initial" in beside:
            kept_B = distillation_loss(scores_BK, beside["initial"], mask_BK, temperature)
    total = work.supervised_weight * supervised_B.sum() + work.distillation_weight * distillation_B.sum() + work.keep_weight * kept_B.sum()
    return total, [part.detach() for part in (supervised_B, distillation_B, kept_B)]


def _logits(queries: Sequence[QueryWork], *, like_BK: Tensor) -> Tensor:
    """[B, K] logits of the shards. Minus infinity, probability 0, for in-batch passages: the teacher never scored them."""
    return _padded([query.teacher_logits for query in queries], like_BK=like_BK, padding=-np.inf)


def _padded(values: Sequence[NDArray[Any]], *, like_BK: Tensor, padding: float = 0.0) -> Tensor:
    """[B, K] of lists of numbers, in their own precision."""
    padded = np.full(like_BK.shape, padding, dtype=values[0].dtype)
    for row, own in enumerate(values):
        padded[row, : len(own)] = own
    return torch.from_numpy(padded).to(like_BK.device)


class Scores:
    """Scores, score_scale * <q, p>, between vectors of known sequences; of pairs the numbers that a cross-encoder gives."""

    def __init__(self, vectors_ND: Tensor, sequences: list[Sequenced], *, scale: float) -> None:
        self._vectors_ND, self._scale = vectors_ND, scale
        self._place = {sequence: place for place, sequence in enumerate(sequences)}

    @property
    def none(self) -> Tensor:
        """The losses of no queries."""
        return self._vectors_ND.new_zeros(0, dtype=torch.float64)

    def own(self, queries: Sequence[QueryWork], passages: Sequence[tuple[Sequenced, ...]]) -> tuple[Tensor, Tensor]:
        """[B, K] scores of each query's own passages, and the mask of those that are no padding."""
        longest = max(map(len, passages))
        mask = np.arange(longest) < np.array([[len(row)] for row in passages])
        places = [self._place[sequence] for row in passages for sequence in (*row, *row[:1] * (longest - len(row)))]
        passages_BKD = self._rows(places).view(len(passages), longest, -1)
        mask_BK = torch.from_numpy(mask).to(passages_BKD.device)
        if not queries[0].query:  # pairs, of which D is 1
            return passages_BKD[:, :, 0], mask_BK
        return self._scale * torch.einsum("bd,bkd->bk", self._queries(queries), passages_BKD), mask_BK

    def listed(
        self, queries: Sequence[QueryWork], passages: Sequence[tuple[Sequenced, ...]], work: BatchWork, *, loss: str
    ) -> tuple[Tensor, Tensor]:
        """[B, K + N] scores of each query's own passages, and of the batch's where they join this loss; and the mask."""
        scores_BK, mask_BK = self.own(queries, passages)
        if work.in_batch not in (loss, "both"):
            return scores_BK, mask_BK
        pool_BN, pool_mask_BN = self.pool(queries, work.pool)
        return torch.cat([scores_BK, pool_BN], 1), torch.cat([mask_BK, pool_mask_BN], 1)

    def pool(self, queries: Sequence[QueryWork], passages: Sequence[PoolPassage]) -> tuple[Tensor, Tensor]:
        """[B, N] scores of in-batch passages, and the mask of those that are negatives of the query: none equal to its own."""
        passages_ND = self._rows([self._place[passage.sequence] for passage in passages])
        scores_BN = self._scale * self._queries(queries) @ passages_ND.T
        mask = [[passage.sequence not in query.own and query.own.isdisjoint(passage.ids) for passage in passages] for query in queries]
        return scores_BN, torch.tensor(mask, device=scores_BN.device)

    def _rows(self, places: Sequence[int]) -> Tensor:
        # index_select, not indexing: on a CPU the backward of indexing adds in an order that is not fixed.
        return self._vectors_ND.index_select(0, torch.tensor(places, device=self._vectors_ND.device))

    def _queries(self, queries: Sequence[QueryWork]) -> Tensor:
        return self._rows([self._place[query.query] for query in queries])
