"""Dropout of whatever model runs inside a context, with the masks of `trainer.cpu.masks`; within scaled dot product attention too."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, autograd
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from trainer.cpu.attention import attention
from trainer.cpu.masks import drop, keep_mask, keep_scale, mask_stream
from trainer.cpu.packing import Pack, current_pack, packed_attention, packing


class _Dropout(autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, p: float) -> Tensor:
        ctx.scale, mask = keep_scale(p), keep_mask(values.shape, p=p)
        ctx.save_for_backward(mask)
        return drop(values, mask).mul_(ctx.scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (mask,) = ctx.saved_tensors
        return drop(gradient, mask).mul_(ctx.scale), None


@contextlib.contextmanager
def cpu_training(pack: Pack | None = None) -> Iterator[None]:
    """Inside, dropout draws its masks with `keep_mask`, attention that has dropout is `trainer.cpu.attention`, and layer stacks with
    another `forward` (`trainer.cpu.packing`) pack their batches, or go on with `pack`."""
    with packing(pack), _CpuTrainingMode():
        yield


class _CpuTrainingMode(TorchFunctionMode):
    def __torch_function__(self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.dropout and kwargs.get("training", True) and 0 < kwargs.get("p", 0.5) < 1 and len(args) == 1:
            return _Dropout.apply(args[0], kwargs.get("p", 0.5))
        if func is functional.scaled_dot_product_attention and len(args) == 3:
            found = _own_attention(*args, **kwargs)
            if found is not None:
                return found
        return func(*args, **kwargs)


def _own_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    scale: float | None = None,
    **more: Any,
) -> Tensor | None:
    """None where PyTorch's own is to be called: for more than is known here, and for a mask that is trained (T5's relative positions)."""
    if attn_mask is not None and attn_mask.requires_grad:
        return None
    if torch.is_autocast_enabled("cpu"):  # as it would cast them itself
        query, key, value = (part.to(torch.get_autocast_dtype("cpu")) for part in (query, key, value))
    pack = current_pack()
    plain = not any(more.values())
    if pack is not None:
        if attn_mask is not None or not plain:
            raise NotImplementedError("attention with a mask or more inside a pack")
        return packed_attention(query, key, value, pack, p=dropout_p, scale=scale)
    return attention(query, key, value, p=dropout_p, attn_mask=attn_mask, scale=scale) if plain and 0 < dropout_p < 1 else None


def checkpoint_contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """`context_fn` for `torch.utils.checkpoint`: what is computed again on the way back has the masks and the pack that it had.

    Without it the second computation runs outside of `cpu_training`, with other masks, and the gradient is that of no loss.
    """
    return contextlib.nullcontext(), _again(mask_stream.state, current_pack())


@contextlib.contextmanager
def _again(state: tuple[int, int], pack: Pack | None) -> Iterator[None]:
    before, mask_stream.state = mask_stream.state, state
    try:
        with cpu_training(pack):
            yield
    finally:
        mask_stream.state = before
