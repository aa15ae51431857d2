"""From vectors of a group's sequences to its part of the total loss: scores, lists, weights. Outside of autocast: scores are fp32, losses
fp64.

Shapes: n sequences of D dimensions, B queries of a group, Q of a process, K candidates, N in-batch passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from data.config.registry import plugin_call
from data.errors import UserError
from trainer.objective.lists import GroupLists, Lists
from trainer.objective.losses import DISTILLATION_LOSSES, distillation_loss, supervised_loss
from trainer.objective.plan import BatchWork, QueryWork
from trainer.objective.transforms import TRANSFORMS

_LOSS = "train.objective.distillation"
LOSSES = ("supervised", "distillation", "reference_kl")


@dataclass(frozen=True)
class QueryLosses:
    """Unweighted losses by query, nats (of MarginMSE squared scores; of CL-DRD sums over pairs); only of the queries they were asked of."""

    supervised: dict[str, float]
    distillation: dict[str, float]
    reference_kl: dict[str, float]  # the divergence from the initial student


def list_names(query_ids: Sequence[str]) -> list[str]:
    """The queries' ids, with a number where a query has several lists in the batch: `q`, `q (2)`; the next where that is another's id."""
    ids = set(query_ids)
    seen: dict[str, int] = {}
    names = []
    for query_id in query_ids:
        number = seen.get(query_id, 0) + 1
        while number > 1 and f"{query_id} ({number})" in ids:
            number += 1
        seen[query_id] = number
        names.append(query_id if number == 1 else f"{query_id} ({number})")
    return names


def asked_of(queries: Sequence[QueryWork], *, with_initial: bool) -> NDArray[np.bool_]:
    """[3, B] of which queries each of `LOSSES` is asked; `with_initial`: whether there is an initial student to stay near."""
    supervised, distilled = [[bool(len(one)) for one in some] for some in zip(*((q.supervised, q.distilled) for q in queries), strict=True)]
    return np.array([supervised, distilled, np.logical_and(distilled, with_initial)])


def total_loss(
    student: GroupScores,
    references: dict[str, GroupScores],
    lists: GroupLists[Tensor],
    *,
    work: BatchWork,
    distillation: str,
    temperature: float,
    teacher_temperature: float | None = None,
    score_transform: str = "none",
    open_QN: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """A group's part of the total loss of `work`, and each of `LOSSES` of the queries that it is asked of.

    Args:
        student: Its scores, with their graph.
        references: Those of `teacher`, in place of the shards' logits, and of the `initial` student, where there are such.
        lists: Of the group's queries, on the device of the scores.
        work: The global batch.
        distillation: A name of `DISTILLATION_LOSSES`, or an import path.
        temperature: Of the softmaxes.
        teacher_temperature: Of the teacher's alone, for a loss that takes one; None: it is not given.
        score_transform: A name of `TRANSFORMS`, of both sides of the distillation loss.
        open_QN: Which in-batch passages are negatives of which query; None without.

    Raises UserError where a loss of one's own returns anything but one number for each query.
    """
    supervised_B = distillation_B = reference_B = student.none
    supervised_sum = None
    if lists.supervised:
        scores_BK, mask_BK = student.of(lists.supervised), mask_of(lists.supervised, open_QN)
        supervised_B = supervised_loss(scores_BK[:, 0], scores_BK[:, 1:], mask_BK[:, 1:])
        if (weights_B := lists.supervised.weights_B) is not None:
            supervised_sum = (weights_B.double() * supervised_B).sum()
    if lists.distillation:
        scores_BK, mask_BK = student.of(lists.distillation), mask_of(lists.distillation, open_QN)
        beside = {name: scores.of(lists.distillation) for name, scores in references.items()}
        use_teacher = "teacher" in beside and not lists.from_labels
        targets_BK = beside["teacher"] if use_teacher else targets_of(lists.distillation)
        loss = DISTILLATION_LOSSES.get(distillation, setting=_LOSS)
        targets_BK = targets_BK.masked_fill(~mask_BK, 0.0)  # no infinity on padding, which times a gradient of 0 is no number
        temperatures = {"temperature": temperature}
        if teacher_temperature is not None:
            temperatures["teacher_temperature"] = teacher_temperature
        transform = TRANSFORMS[score_transform]
        with plugin_call(distillation, setting=_LOSS):
            distillation_B = loss(transform(scores_BK, mask_BK), transform(targets_BK, mask_BK), mask_BK, **temperatures).double()
        if scores_BK.requires_grad and not distillation_B.requires_grad:
            raise UserError(f"{_LOSS}={distillation}: it does not depend on the scores by operations that have a gradient")
        if (shape := tuple(distillation_B.shape)) != (len(scores_BK),):
            raise UserError(f"{_LOSS}={distillation}: it returned {shape}; expected ({len(scores_BK)},), a loss for each query")
        if "initial" in beside:
            reference_B = distillation_loss(scores_BK, beside["initial"], mask_BK, temperature)
    total = (
        work.supervised_weight * (supervised_B.sum() if supervised_sum is None else supervised_sum)
        + work.distillation_weight * distillation_B.sum()
        + work.reference_kl_weight * reference_B.sum()
    )
    return total, [part.detach() for part in (supervised_B, distillation_B, reference_B)]


def mask_of(lists: Lists[Tensor], open_QN: Tensor | None) -> Tensor:
    """[B, K + N] True where there is a candidate, and an in-batch passage that is a negative of the query."""
    longest = lists.candidates_BK.shape[1]
    own_BK = torch.arange(longest, device=lists.lengths_B1.device) < lists.lengths_B1
    if lists.in_batch is None:
        return own_BK
    assert open_QN is not None
    return torch.cat([own_BK, open_QN.index_select(0, lists.in_batch.queries_B)], 1)


def targets_of(lists: Lists[Tensor]) -> Tensor:
    """[B, K + N] labels or teacher logits, and what stands for none."""
    own_BK = lists.targets_BK
    assert own_BK is not None
    if lists.in_batch is None:
        return own_BK
    return torch.cat([own_BK, own_BK.new_full((len(own_BK), len(lists.in_batch.passages_N)), lists.padding)], 1)


class GroupScores:
    """Scores, score_scale * <q, p>, between a group's vectors; of pairs the numbers that a cross-encoder gives."""

    def __init__(self, vectors_ND: Tensor, *, scale: float) -> None:
        self._vectors_ND, self._scale = vectors_ND, scale

    def cut(self, size: int, normalize: bool) -> GroupScores:
        """The scores of vectors cut to their first `size` dimensions, with `normalize` of length 1 again."""
        if size >= self._vectors_ND.shape[1]:
            return self
        vectors_ND = self._vectors_ND[:, :size]
        return GroupScores(functional.normalize(vectors_ND, dim=-1) if normalize else vectors_ND, scale=self._scale)

    @property
    def none(self) -> Tensor:
        """The losses of no queries."""
        return self._vectors_ND.new_zeros(0, dtype=torch.float64)

    def of(self, lists: Lists[Tensor]) -> Tensor:
        """[B, K + N] scores of each query's list, then of the batch's passages where they join it."""
        candidates_BKD = self._rows(lists.candidates_BK.flatten()).view(*lists.candidates_BK.shape, -1)
        if lists.queries_B is None:  # pairs, of which D is 1
            return candidates_BKD[:, :, 0]
        scores_BK = self._scale * torch.einsum("bd,bkd->bk", self._rows(lists.queries_B), candidates_BKD)
        if lists.in_batch is None:
            return scores_BK
        scores_BN = self._scale * self._rows(lists.queries_B) @ self._rows(lists.in_batch.passages_N).T
        return torch.cat([scores_BK, scores_BN], 1)

    def _rows(self, places: Tensor) -> Tensor:
        # index_select, not indexing: on a CPU the backward of indexing adds in an order that is not fixed.
        return self._vectors_ND.index_select(0, places)
