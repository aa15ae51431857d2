"""How the vectors of a text's tokens become one: `student.pooling`, and what sentence-transformers' files call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def cls(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """[n, L, D] token vectors and [n, L] mask to [n, D] fp32: the first token's."""
    return hidden[:, 0].float()


def mean(hidden: Tensor, attention_mask: Tensor) -> Tensor:
    """[n, L, D] token vectors and [n, L] mask to [n, D] fp32: the mean over the text's own tokens."""
    weights = attention_mask.unsqueeze(-1).to(torch.float32)
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


POOLINGS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cls": cls, "mean": mean}


def pooling_config(pooling: str, size: int) -> dict[str, Any]:
    """The content of 1_Pooling/config.json, as sentence-transformers of any version reads it."""
    return {
        "word_embedding_dimension": size,
        "pooling_mode_cls_token": pooling == "cls",
        "pooling_mode_mean_tokens": pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
