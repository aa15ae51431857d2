"""Matryoshka: the whole objective on vectors cut to their first dimensions, as a weighted sum (Kusupati et al., 2022, arXiv 2205.13147).

    sum over (d, w) of w * objective(first d dimensions of every vector, of length 1 again where the student's vectors have that)

Supervised loss, distillation, in-batch negatives and the divergence from the initial student, whose vectors are cut likewise, are all in
it. The targets are the teacher's at each d: a dual encoder that teaches keeps its whole vectors. Sequences are encoded once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data.errors import UserError
from trainer.objective.lists import GroupLists
from trainer.objective.total import GroupScores, total_loss

_SETTING = "train.objective.dimensions"


@dataclass(frozen=True)
class Dimensions:
    """How the vectors of a step are cut."""

    weighted: tuple[tuple[int, float], ...] = ()  # (dimensions kept, weight of the objective on these); empty: whole vectors, once
    normalize: bool = False  # cut vectors get length 1, as the student's whole ones have

    def check(self, size: int) -> None:
        """Raises UserError where a student of `size` dimensions has fewer than are asked for."""
        largest = max((kept for kept, _ in self.weighted), default=0)
        if largest > size:
            raise UserError(f"{_SETTING} asks for the first {largest}, and the student's vectors have {size}: leave larger ones out")

    def below(self, size: int) -> list[int]:
        """Those that cut a vector of `size` dimensions, the largest first."""
        return sorted((kept for kept, _ in self.weighted if kept < size), reverse=True)


WHOLE = Dimensions()


def total_over_dimensions(
    student: GroupScores, references: dict[str, GroupScores], lists: GroupLists[Tensor], *, dimensions: Dimensions, **objective: Any
) -> tuple[Tensor, list[Tensor]]:
    """`total_loss` of whole vectors, or its weighted sum over `dimensions`; each query's losses likewise. `objective` goes to it."""
    if not dimensions.weighted:
        return total_loss(student, references, lists, **objective)
    totals, losses = [], []
    for kept, weight in dimensions.weighted:
        beside = {name: scores if name == "teacher" else scores.cut(kept, dimensions.normalize) for name, scores in references.items()}
        total, of_queries = total_loss(student.cut(kept, dimensions.normalize), beside, lists, **objective)
        totals.append(weight * total)
        losses.append([weight * loss for loss in of_queries])
    return torch.stack(totals).sum(), [torch.stack(same).sum(0) for same in zip(*losses, strict=True)]
