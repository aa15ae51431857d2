"""The losses, as pure functions of tensors: scores and logits come in, one loss per query goes out.

`DISTILLATION_LOSSES` has those that `train.objective.distillation` may name. Each is called as
`loss(student_scores_BK, targets_BK, mask_BK, temperature=T)` and returns [B]; what else it asks of the settings is in `data.config.traits`.

ADAM, section 3: Eq. 4 (distillation) and the supervised loss of 3.1; MarginMSE; CL-DRD's pairs. All of it is computed in float64: these
are B x K numbers (B x K x K pairs), so it costs nothing, and neither large logits nor a student that already agrees with its teacher lose
digits.

Shapes: B queries, K candidates of a query, N negatives of a query.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from data.config.registry import Registry

# Stands for minus infinity: exp() of it is exactly 0 and so is its gradient, but it makes no NaN where a whole row is padding.
_NEVER = -1e300
# Below this |d| the excess d + e^-d - 1 is taken from its series: the closed form would cancel.
_SERIES_BELOW = 0.03


def distillation_loss(student_scores_BK: Tensor, teacher_logits_BK: Tensor, mask_BK: Tensor, temperature: float = 1.0) -> Tensor:
    """KL( softmax t || softmax s ) of each query's list (ADAM, Eq. 3 and 4; the minus sign of Eq. 4 is a misprint).

    With d = log p - log q it is the sum of p * (d + e^-d - 1), which equals the usual sum of p * d because p and q both sum to 1,
    and whose terms are all >= 0: a KL near zero keeps its digits.

    Args:
        student_scores_BK: Student scores s.
        teacher_logits_BK: Raw teacher logits t; minus infinity stands for "never scored" and has probability 0.
        mask_BK: True where there is a candidate, False on padding, which gets no probability and no gradient.
        temperature: Divides both before the softmax. The loss is not multiplied by its square.

    Returns:
        [B] float64, nats.
    """
    teacher_BK = (teacher_logits_BK.double() / temperature).clamp(min=_NEVER).masked_fill(~mask_BK, _NEVER)
    student_BK = (student_scores_BK.double() / temperature).masked_fill(~mask_BK, _NEVER)
    log_p_BK, log_q_BK = teacher_BK.log_softmax(-1), student_BK.log_softmax(-1)
    p_BK, d_BK = log_p_BK.exp(), log_p_BK - log_q_BK
    small_BK = d_BK.abs() < _SERIES_BELOW
    excess_BK = torch.where(
        small_BK,
        p_BK * _excess_series(torch.where(small_BK, d_BK, 0.0)),
        p_BK * d_BK + (log_q_BK.exp() - p_BK),  # p * e^-d is q: no overflow where p is 0
    )
    return excess_BK.masked_fill(~mask_BK, 0.0).sum(-1)


def listwise_loss(
    student_scores_BK: Tensor,
    teacher_logits_BK: Tensor,
    mask_BK: Tensor,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
) -> Tensor:
    """KL( softmax t/T_t || softmax s/T_s ) of each query's list: `distillation_loss` where teacher and student are on different scales.

    Args:
        student_scores_BK: Student scores s.
        teacher_logits_BK: Raw teacher logits t; minus infinity has probability 0.
        mask_BK: True where there is a candidate; padding gets no probability and no gradient.
        temperature: T_s of the student's softmax.
        teacher_temperature: T_t of the teacher's; None: T_s.

    Returns:
        [B] float64, nats.
    """
    of_teacher = temperature if teacher_temperature is None else teacher_temperature
    return distillation_loss(student_scores_BK.double() / temperature, teacher_logits_BK.double() / of_teacher, mask_BK)


def _excess_series(d: Tensor) -> Tensor:
    """d + e^-d - 1 = d^2/2 - d^3/6 + d^4/24 - ..., to full float64 precision for |d| < 0.03."""
    series = torch.zeros_like(d)
    for divisor in (9, 8, 7, 6, 5, 4, 3):  # Horner's scheme: 1 - d/3 (1 - d/4 (1 - ...))
        series = 1 - d / divisor * series if divisor < 9 else 1 - d / divisor
    return d * d / 2 * series


def supervised_loss(positive_B: Tensor, negatives_BN: Tensor, mask_BN: Tensor) -> Tensor:
    """-log( e^s(q,p+) / (e^s(q,p+) + sum of e^s(q,p-)) ) of each query (ADAM, 3.1).

    Args:
        positive_B: Scores of the positives.
        negatives_BN: Scores of the negatives.
        mask_BN: True where there is a negative; padding gets no gradient.

    Returns:
        [B] float64, nats; 0 for a query without negatives.
    """
    rivals_B = negatives_BN.double().masked_fill(~mask_BN, _NEVER).logsumexp(-1)
    return -functional.logsigmoid(positive_B.double() - rivals_B)  # exact for a loss near zero and for a large one


def margin_mse_loss(student_scores_BK: Tensor, teacher_logits_BK: Tensor, mask_BK: Tensor, temperature: float = 1.0) -> Tensor:
    """Mean over a query's negatives of ((s+ - s-) - (t+ - t-))^2 (MarginMSE; Hofstaetter et al., 2020, arXiv 2010.02666).

    Args:
        student_scores_BK: Student scores, those of p+ first.
        teacher_logits_BK: Raw teacher logits, in the same order.
        mask_BK: True where there is a candidate; padding gets no gradient.
        temperature: Unused: there is no softmax.

    Returns:
        [B] float64, squared scores; 0 for a query without negatives.
    """
    student_BK, teacher_BK = student_scores_BK.double(), teacher_logits_BK.double()
    margins_BN = (student_BK[:, :1] - student_BK[:, 1:]) - (teacher_BK[:, :1] - teacher_BK[:, 1:])
    mask_BN = mask_BK[:, 1:]
    return margins_BN.masked_fill(~mask_BN, 0.0).square().sum(-1) / mask_BN.sum(-1).clamp(min=1)


def curriculum_loss(student_scores_BK: Tensor, labels_BK: Tensor, mask_BK: Tensor, temperature: float = 1.0) -> Tensor:
    """Sum over the pairs with y_i > y_j of |1/pi(i) - 1/pi(j)| * log(1 + e^-(s_i - s_j)) of each query's list.

    CL-DRD (Zeng et al., SIGIR 2022, https://arxiv.org/abs/2204.13679). pi is the student's present rank of a candidate in its list, from
    1, of equal scores the first place first. No gradient goes through it.

    Args:
        student_scores_BK: Student scores s.
        labels_BK: Labels y; equal ones make no pair.
        mask_BK: True where there is a candidate; padding has no rank, makes no pair and gets no gradient.
        temperature: Unused: there is no softmax.

    Returns:
        [B] float64, nats: sums, so that their mean over all pairs of a batch is for whoever knows the whole batch.
    """
    student_BK = student_scores_BK.double().masked_fill(~mask_BK, 0.0)
    order_BK = student_BK.detach().masked_fill(~mask_BK, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    reciprocal_BK = 1 / (1 + order_BK.argsort(-1).double())
    pairs_BKK = (labels_BK.unsqueeze(2) > labels_BK.unsqueeze(1)) & mask_BK.unsqueeze(2) & mask_BK.unsqueeze(1)
    weights_BKK = (reciprocal_BK.unsqueeze(2) - reciprocal_BK.unsqueeze(1)).abs()
    margins_BKK = student_BK.unsqueeze(2) - student_BK.unsqueeze(1)
    # -logsigmoid is softplus of the negative without softplus's threshold, beyond which it drops e^-20 and its gradient.
    return (-functional.logsigmoid(margins_BKK) * weights_BKK).masked_fill(~pairs_BKK, 0.0).sum((1, 2))


def ordered_pairs(labels_K: NDArray[np.floating[Any]]) -> int:
    """The terms of `curriculum_loss`: how many pairs (i, j) of a list have y_i > y_j."""
    _, same = np.unique(labels_K, return_counts=True)
    return (len(labels_K) ** 2 - int((same**2).sum())) // 2


Loss = Callable[..., Tensor]
_BUILT_IN: dict[str, Loss] = {
    "kl": distillation_loss, "listwise": listwise_loss, "margin_mse": margin_mse_loss, "curriculum": curriculum_loss,
}  # fmt: skip
DISTILLATION_LOSSES = Registry("loss", _BUILT_IN)
