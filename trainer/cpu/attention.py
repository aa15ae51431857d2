"""Scaled dot product attention with dropout, forward and backward by hand, for CPUs: batched products around an fp32 softmax.

Of what autograd would keep, the weights before dropout and its mask are: 4 bytes for each pair of tokens and head in bf16.

Shapes: n sequences, h heads, L tokens, d dimensions a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from trainer.cpu.masks import drop, keep_mask, keep_scale

# Stands for minus infinity: exp() of it is exactly 0, but it makes no NaN where nothing is seen (padding far from the text, where a
# model looks at neighbours only).
_UNSEEN = -1e30
Saved = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]


def attend(query: Tensor, key: Tensor, value: Tensor, *, bias: Tensor | None, scale: float, p: float) -> tuple[Tensor, Saved]:
    """softmax(Q K^T * scale + bias), dropped with probability p, times V.

    Args:
        query, key, value: [n, h, L, d], of one dtype.
        bias: fp32, added to the scores [n, h, L, L], to which it broadcasts.
        scale: Of the scores.
        p: Of dropout; 0 for none.

    Returns:
        [n, h, L, d], and the tensors that `attend_backward` needs.
    """
    n, h, length, d = query.shape
    query, key, value = (part.reshape(n * h, length, d) for part in (query, key, value))
    scores = query.new_empty(n * h, length, length)
    torch.baddbmm(scores, query, key.transpose(1, 2), beta=0, alpha=scale, out=scores)
    if scores.element_size() == 2:
        scores = scores.float()
    if bias is not None:
        scores.view(n, h, length, length).add_(bias)
    weights = torch.softmax(scores, -1).to(query.dtype)
    mask = keep_mask(weights.shape, p=p) if p else None
    result = torch.bmm(drop(weights, mask), value).mul_(keep_scale(p))
    return result.view(n, h, length, d), (query, key, value, weights, mask)


def attend_backward(gradient: Tensor, saved: Saved, *, scale: float, p: float) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of query, key and value, [n, h, L, d] each, from that of the result."""
    query, key, value, weights, mask = saved
    shape, gradient = gradient.shape, gradient.reshape(query.shape).mul(keep_scale(p))
    of_value = torch.bmm(drop(weights, mask).transpose(1, 2), gradient)
    of_weights = drop(torch.bmm(gradient, value.transpose(1, 2)), mask)
    of_scores = torch._softmax_backward_data(of_weights, weights, -1, weights.dtype)
    of_query = torch.empty_like(query)
    torch.baddbmm(of_query, of_scores, key, beta=0, alpha=scale, out=of_query)
    of_key = torch.empty_like(key)
    torch.baddbmm(of_key, of_scores.transpose(1, 2), query, beta=0, alpha=scale, out=of_key)
    return of_query.view(shape), of_key.view(shape), of_value.view(shape)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float, p: float) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            result, saved = attend(query, key, value, bias=bias, scale=scale, p=p)
        ctx.scale, ctx.p = scale, p
        ctx.save_for_backward(*saved)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        parts = attend_backward(gradient, ctx.saved_tensors, scale=ctx.scale, p=ctx.p)
        return *parts, None, None, None


def attention(
    query: Tensor, key: Tensor, value: Tensor, *, p: float, attn_mask: Tensor | None = None, scale: float | None = None
) -> Tensor:
    """`torch.nn.functional.scaled_dot_product_attention` with dropout, in the inputs' precision; no gradient of the mask."""
    bias = as_bias(attn_mask, dtype=query.dtype)
    return _Attention.apply(query, key, value, bias, query.shape[-1] ** -0.5 if scale is None else scale, p)


def as_bias(mask: Tensor | None, *, dtype: torch.dtype) -> Tensor | None:
    """A mask that PyTorch or transformers pass, True for what is seen or added to the scores, as what is added to scores of `dtype`."""
    if mask is None:
        return None
    wide = torch.promote_types(dtype, torch.float32)
    return torch.zeros((), dtype=wide).masked_fill(~mask, _UNSEEN) if mask.dtype == torch.bool else mask.to(wide)
