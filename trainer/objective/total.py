"""From vectors of a group's sequences to its part of the total loss: scores, lists, weights. Outside of autocast: scores are fp32, losses
fp64.

Shapes: n sequences of D dimensions, B queries, K candidates, N in-batch passages.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from data.config.registry import plugin_call
from data.errors import UserError
from trainer.objective.losses import DISTILLATION_LOSSES, distillation_loss, supervised_loss
from trainer.objective.plan import BatchWork, QueryWork, Sequenced

_LOSS = "train.objective.distillation"
LOSSES = ("supervised", "distillation", "reference_kl")


@dataclass(frozen=True)
class QueryLosses:
    """Unweighted losses by query, nats (of MarginMSE squared scores; of CL-DRD sums over pairs); only of the queries they were asked of."""

    supervised: dict[str, float]
    distillation: dict[str, float]
    reference_kl: dict[str, float]  # the divergence from the initial student


def list_names(query_ids: Sequence[str]) -> list[str]:
    """The queries' ids, with a number where a query has several lists in the batch: `q`, `q (2)`."""
    seen: dict[str, int] = {}
    names = []
    for query_id in query_ids:
        seen[query_id] = seen.get(query_id, 0) + 1
        names.append(query_id if seen[query_id] == 1 else f"{query_id} ({seen[query_id]})")
    return names


def asked_of(queries: Sequence[QueryWork], *, with_initial: bool) -> NDArray[np.bool_]:
    """[3, B] of which queries each of `LOSSES` is asked; `with_initial`: whether there is an initial student to stay near."""
    asked = np.array([[bool(query.supervised), bool(query.distilled), bool(query.distilled) and with_initial] for query in queries])
    return asked.reshape(-1, len(LOSSES)).T


def total_loss(
    student: GroupScores,
    references: dict[str, GroupScores],
    queries: Sequence[QueryWork],
    *,
    work: BatchWork,
    distillation: str,
    temperature: float,
) -> tuple[Tensor, list[Tensor]]:
    """The queries' part of the total loss of `work`, and each of `LOSSES` of the queries that it is asked of.

    Args:
        student: Its scores, with their graph.
        references: Those of `teacher`, in place of the shards' logits, and of the `initial` student, where there are such.
        queries: Of the group.
        work: The global batch.
        distillation: A name of `DISTILLATION_LOSSES`, or an import path.
        temperature: Of the softmaxes.

    Raises UserError where a loss of one's own returns anything but one number for each query.
    """
    supervised = [query for query in queries if query.supervised]
    distilled = [query for query in queries if query.distilled]
    supervised_B = distillation_B = reference_B = student.none
    if supervised:
        scores_BK, mask_BK = student.listed(supervised, work, loss="supervised")
        supervised_B = supervised_loss(scores_BK[:, 0], scores_BK[:, 1:], mask_BK[:, 1:])
    if distilled:
        scores_BK, mask_BK = student.listed(distilled, work, loss="distillation")
        beside = {name: scores.listed(distilled, work, loss="distillation")[0] for name, scores in references.items()}
        if len(distilled[0].labels):  # of a loss that learns from them
            targets_BK = _padded([query.labels for query in distilled], like_BK=scores_BK)
        elif "teacher" in beside:
            targets_BK = beside["teacher"]
        else:  # in-batch passages have no logits, since the teacher never scored them: minus infinity is probability 0
            targets_BK = _padded([query.teacher_logits for query in distilled], like_BK=scores_BK, padding=-np.inf)
        loss = DISTILLATION_LOSSES.get(distillation, setting=_LOSS)
        targets_BK = targets_BK.masked_fill(~mask_BK, 0.0)  # no infinity on padding, which times a gradient of 0 is no number
        with plugin_call(distillation, setting=_LOSS):
            distillation_B = loss(scores_BK, targets_BK, mask_BK, temperature=temperature).double()
        if scores_BK.requires_grad and not distillation_B.requires_grad:
            raise UserError(f"{_LOSS}={distillation}: it does not depend on the scores by operations that have a gradient")
        if (shape := tuple(distillation_B.shape)) != (len(distilled),):
            raise UserError(f"{_LOSS}={distillation}: it returned {shape}; expected ({len(distilled)},), a loss for each query")
        if "initial" in beside:
            reference_B = distillation_loss(scores_BK, beside["initial"], mask_BK, temperature)
    total = (
        work.supervised_weight * supervised_B.sum()
        + work.distillation_weight * distillation_B.sum()
        + work.reference_kl_weight * reference_B.sum()
    )
    return total, [part.detach() for part in (supervised_B, distillation_B, reference_B)]


def _padded(values: Sequence[NDArray[Any]], *, like_BK: Tensor, padding: float = 0.0) -> Tensor:
    """[B, K] of lists of numbers, in their own precision."""
    padded = np.full(like_BK.shape, padding, dtype=values[0].dtype)
    for row, own in enumerate(values):
        padded[row, : len(own)] = own
    return torch.from_numpy(padded).to(like_BK.device)


class GroupScores:
    """Scores, score_scale * <q, p>, between vectors of known sequences; of pairs the numbers that a cross-encoder gives."""

    def __init__(self, vectors_ND: Tensor, sequences: list[Sequenced], *, scale: float) -> None:
        self._vectors_ND, self._scale = vectors_ND, scale
        self._place = {sequence: place for place, sequence in enumerate(sequences)}
        self._open_to: dict[str, Tensor] = {}  # by loss: [B, N] which of the batch's passages are a query's negatives

    def cut(self, size: int, normalize: bool) -> GroupScores:
        """The scores of vectors cut to their first `size` dimensions, with `normalize` of length 1 again."""
        other = copy.copy(self)
        if size < self._vectors_ND.shape[1]:
            vectors_ND = self._vectors_ND[:, :size]
            other._vectors_ND = functional.normalize(vectors_ND, dim=-1) if normalize else vectors_ND
        return other

    @property
    def none(self) -> Tensor:
        """The losses of no queries."""
        return self._vectors_ND.new_zeros(0, dtype=torch.float64)

    def listed(self, queries: Sequence[QueryWork], work: BatchWork, *, loss: str) -> tuple[Tensor, Tensor]:
        """[B, K + N] scores of each query's list for `supervised` or `distillation`, then of the batch's passages where they join it.

        The second tensor is the mask of those that are no padding, and no passage of the query's own among the batch's.
        """
        scores_BK, mask_BK = self._own(queries, [query.supervised if loss == "supervised" else query.distilled for query in queries])
        if loss not in work.in_batch:
            return scores_BK, mask_BK
        passages = work.in_batch_passages
        scores_BN = self._scale * self._queries(queries) @ self._rows([passage.sequence for passage in passages]).T
        if loss not in self._open_to:
            open_to = [[one.sequence not in query.own and query.own.isdisjoint(one.ids) for one in passages] for query in queries]
            self._open_to[loss] = torch.tensor(open_to, device=mask_BK.device)
        return torch.cat([scores_BK, scores_BN], 1), torch.cat([mask_BK, self._open_to[loss]], 1)

    def _own(self, queries: Sequence[QueryWork], lists: Sequence[tuple[Sequenced, ...]]) -> tuple[Tensor, Tensor]:
        longest = max(map(len, lists))
        mask_BK = torch.from_numpy(np.arange(longest) < np.array([[len(row)] for row in lists])).to(self._vectors_ND.device)
        passages_BKD = self._rows([sequence for row in lists for sequence in (*row, *row[:1] * (longest - len(row)))])
        passages_BKD = passages_BKD.view(len(lists), longest, -1)
        if not queries[0].query:  # pairs, of which D is 1
            return passages_BKD[:, :, 0], mask_BK
        return self._scale * torch.einsum("bd,bkd->bk", self._queries(queries), passages_BKD), mask_BK

    def _rows(self, sequences: Sequence[Sequenced]) -> Tensor:
        # index_select, not indexing: on a CPU the backward of indexing adds in an order that is not fixed.
        places = [self._place[sequence] for sequence in sequences]
        return self._vectors_ND.index_select(0, torch.tensor(places, device=self._vectors_ND.device))

    def _queries(self, queries: Sequence[QueryWork]) -> Tensor:
        return self._rows([query.query for query in queries])
