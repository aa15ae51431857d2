"""The scores of a list on one scale, before a distillation loss compares them: `train.objective.score_transform`.

A teacher's logits may lie 13 apart where a student's scores, 20 times a cosine, lie 3 apart: MarginMSE then asks for what the student
cannot give. Both sides are transformed alike, the student's with their gradient, so that what is asked for is the shape of a list alone.

    zscore   less the list's mean, over its standard deviation. Of both sides as in Sun et al., "Logit Standardization in Knowledge
             Distillation" (CVPR 2024, https://arxiv.org/abs/2403.01427), there before a KL
    minmax   0 for the least, 1 for the greatest. Of the student's as PyLate's `Distillation` does, also before a KL; that the teacher's
             are scaled here, and not before, is ours

[ours: either of them before MarginMSE] `score_scale` cancels out. A list whose scores are equal has nothing to teach: all become 0,
without a gradient.

Shapes: B queries, K candidates of a query.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Transform = Callable[[Tensor, Tensor], Tensor]
_EQUAL = 1e-6  # of the greatest magnitude: scores of fp32 that are nearer are equal but for rounding


def zscore(scores_BK: Tensor, mask_BK: Tensor) -> Tensor:
    """[B, K] float64: each list with mean 0 and standard deviation 1 (over K, not K - 1); 0 on padding, where `mask_BK` is False."""
    scores_BK, count_B1 = scores_BK.double().masked_fill(~mask_BK, 0.0), mask_BK.sum(-1, keepdim=True).clamp(min=1)
    rest_BK = (scores_BK - scores_BK.sum(-1, keepdim=True) / count_B1).masked_fill(~mask_BK, 0.0)
    return _over(rest_BK, rest_BK.square().sum(-1, keepdim=True) / count_B1, scores_BK, root=True)


def minmax(scores_BK: Tensor, mask_BK: Tensor) -> Tensor:
    """[B, K] float64: each list from 0 to 1; 0 on padding, where `mask_BK` is False."""
    scores_BK = scores_BK.double().masked_fill(~mask_BK, 0.0)
    least_B1 = scores_BK.masked_fill(~mask_BK, torch.inf).amin(-1, keepdim=True)
    greatest_B1 = scores_BK.masked_fill(~mask_BK, -torch.inf).amax(-1, keepdim=True)
    rest_BK = (scores_BK - least_B1).masked_fill(~mask_BK, 0.0)
    return _over(rest_BK, greatest_B1 - least_B1, scores_BK)


def _over(rest_BK: Tensor, spread_B1: Tensor, scores_BK: Tensor, *, root: bool = False) -> Tensor:
    """Each list over its spread, or the root of it; 0 where that is rounding."""
    least_B1 = _EQUAL * scores_BK.detach().abs().amax(-1, keepdim=True)
    equal_B1 = ~(spread_B1 > (least_B1.square() if root else least_B1))  # also where a list is all padding, which has no spread
    spread_B1 = spread_B1.masked_fill(equal_B1, 1.0)
    return (rest_BK / (spread_B1.sqrt() if root else spread_B1)).masked_fill(equal_B1, 0.0)


TRANSFORMS: dict[str, Transform] = {"none": lambda scores_BK, mask_BK: scores_BK, "zscore": zscore, "minmax": minmax}
