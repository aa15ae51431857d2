"""Dropout from 16 random bits an element, for CPUs, where the usual masks cost a quarter of the training time of a 3-layer MiniLM.

PyTorch draws a CPU mask serially, one double an element. Here one 64-bit draw gives four elements. The probability is rounded to a
multiple of 2^-16, and the scale 1 / (1 - p) is that of the rounded one, so the expectation is exact. The bits come from the default
generator: whoever seeds it (see `gradients.seed_dropout`) gets the same masks again.

As a context it replaces dropout in whatever model runs inside, within scaled dot product attention too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

_LEVELS = 1 << 16


def dropped(shape: torch.Size, *, p: float) -> tuple[Tensor, float]:
    """A mask that is True with probability p, and the scale that keeps the expectation of what remains."""
    count = shape.numel()
    bits = torch.empty((count + 3) // 4, dtype=torch.int64).random_(-(2**63), None)  # from -2^63: all 64 bits are random
    levels = round(p * _LEVELS)
    mask = bits.view(torch.int16)[:count].view(shape) < levels - _LEVELS // 2
    return mask, _LEVELS / (_LEVELS - levels)


class CheapDropout(TorchFunctionMode):
    """Inside this context, dropout draws its masks with `dropped`."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        """Called by PyTorch in place of each of its functions."""
        kwargs = kwargs or {}
        if func is functional.dropout and kwargs.get("training", True) and 0 < kwargs.get("p", 0.5) < 1 and len(args) == 1:
            return _dropout(args[0], p=kwargs.get("p", 0.5))
        if func is functional.scaled_dot_product_attention and len(args) == 3 and 0 < kwargs.get("dropout_p", 0) < 1:
            known = {name: kwargs[name] for name in ("attn_mask", "scale") if name in kwargs}
            if not any(kwargs.get(name) for name in kwargs if name not in (*known, "dropout_p")):
                return _attention(*args, p=kwargs["dropout_p"], **known)
        return func(*args, **kwargs)


def _dropout(values: Tensor, *, p: float) -> Tensor:
    mask, scale = dropped(values.shape, p=p)
    return values.masked_fill(mask, 0.0) * scale


def _attention(
    query: Tensor, key: Tensor, value: Tensor, *, p: float, attn_mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """softmax(Q K^T * scale + mask), dropout, times V: the formula that PyTorch documents, in the inputs' precision."""
    with torch.autocast("cpu", enabled=False):
        scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-2, -1)
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask.to(scores.dtype)
        mask, kept_scale = dropped(scores.shape, p=p)
        return scores.softmax(-1).masked_fill(mask, 0.0) @ (value * kept_scale)
