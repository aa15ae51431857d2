"""Layers without padding on a CPU: a batch goes through the layer stack as one row of its real tokens.

Only embeddings, pooling and each layer's attention see padding, the last in buckets of sequences of like length; and since buckets are
small whatever the batch, a micro-batch needs one pass, one cast of the weights and one gradient of each. The stack of a BERT-like model
(its `encoder`) gets another `forward`; its parameters and their names stay as they are. It packs only inside
`trainer.cpu.dropout.cpu_training`, which sends attention here. `retrieval.compute.unpadded` is the same for GPUs, without gradients.

Shapes: n sequences of at most L tokens, T real tokens of all of them, h heads, d dimensions a head, H = h d.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, autograd, nn

from retrieval.compute.batching import token_budget_batches
from trainer.cpu.attention import attend, attend_backward

_BUCKET_TOKENS = 2048  # padding included; larger ones leave the cache


@dataclass(frozen=True)
class Bucket:
    """Sequences of like length, which lie together in the pack."""

    start: int
    stop: int
    sequences: int
    longest: int
    source: Tensor | None  # [sequences * longest] which token of the bucket each place holds; None: no padding
    places: Tensor | None  # [stop - start] where each token is
    bias: Tensor | None  # [sequences, 1, 1, longest] fp32, minus infinity where there is padding

    def pad(self, values_Thd: Tensor) -> Tensor:
        """[T, h, d] of the pack to [sequences, h, longest, d]; what stands in padding is some token's."""
        own = values_Thd[self.start : self.stop]
        padded = own if self.source is None else own.index_select(0, self.source)
        return padded.view(self.sequences, self.longest, *own.shape[1:]).transpose(1, 2)

    def unpad(self, values: Tensor) -> Tensor:
        """[sequences, h, longest, d] to the bucket's tokens, [stop - start, h, d]."""
        flat = values.transpose(1, 2).reshape(-1, values.shape[1], values.shape[3])
        return flat if self.places is None else flat.index_select(0, self.places)


@dataclass(frozen=True)
class Pack:
    """Where the tokens of a batch [n, L] lie."""

    tokens: Tensor  # [T] places in the flattened batch
    buckets: tuple[Bucket, ...]


def make_pack(mask_NL: Tensor) -> Pack:
    """Buckets of sequences by length, the longest first. The mask is 1 on the first tokens of each sequence, and else 0."""
    longest = mask_NL.shape[1]
    lengths = mask_NL.sum(1)
    buckets: list[Bucket] = []
    order: list[int] = []
    for rows in token_budget_batches(lengths.tolist(), budget=_BUCKET_TOKENS):
        buckets.append(_bucket(lengths[rows], buckets[-1].stop if buckets else 0))
        order += rows
    rows_N = torch.tensor(order)
    real = torch.arange(longest) < lengths[rows_N, None]
    return Pack((rows_N[:, None] * longest + torch.arange(longest))[real], tuple(buckets))


def _bucket(lengths: Tensor, start: int) -> Bucket:
    sequences, longest, total = len(lengths), int(lengths.max()), int(lengths.sum())
    if total == sequences * longest:
        return Bucket(start, start + total, sequences, longest, None, None, None)
    real = torch.arange(longest) < lengths[:, None]
    source = torch.zeros(real.shape, dtype=torch.long)
    source[real] = torch.arange(total)
    bias = torch.zeros(real.shape).masked_fill(~real, -torch.inf)
    return Bucket(start, start + total, sequences, longest, source.flatten(), real.flatten().nonzero().flatten(), bias[:, None, None])


class _Current(threading.local):
    """Of the thread: whether batches may be packed, the mask of the batch in work, and its pack while it is in the stack."""

    allowed: bool = False
    mask: Tensor | None = None
    pack: Pack | None = None


_current = _Current()


def current_pack() -> Pack | None:
    """The pack that this thread's layers are working on."""
    return _current.pack


@contextmanager
def packing(pack: Pack | None = None) -> Iterator[None]:
    """Inside, stacks of `pack_layers` pack their batches; `pack` is one to go on with."""
    before = _current.allowed, _current.mask, _current.pack
    _current.allowed, _current.mask, _current.pack = True, None, pack
    try:
        yield
    finally:
        _current.allowed, _current.mask, _current.pack = before


def pack_layers(backbone: nn.Module) -> Callable[[], None]:
    """Have the backbone's layer stack pack its batches, where it has one by the name of `encoder`. Returns what undoes it."""
    stack: Any = getattr(backbone, "encoder", None)
    if not isinstance(stack, nn.Module):
        return lambda: None
    hook = backbone.register_forward_pre_hook(_note_mask, with_kwargs=True)
    stack.forward = functools.partial(_forward, stack.forward)

    def undo() -> None:
        hook.remove()
        del stack.forward

    return undo


def packs(model: nn.Module) -> bool:
    """Whether some layer stack of the model packs."""
    return any(getattr(vars(module).get("forward"), "func", None) is _forward for module in model.modules())


def _note_mask(backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """The [n, L] mask, before the model makes another shape of it."""
    _current.mask = kwargs.get("attention_mask")


def _forward(forward: Callable[..., Any], hidden_NLH: Tensor, *unused: Any, **options: Any) -> Any:
    """In place of the stack's own `forward`: places of padding come out as zeros."""
    if not _current.allowed or _current.mask is None:
        return forward(hidden_NLH, *unused, **options)
    _current.pack = pack = make_pack(_current.mask)
    flat = hidden_NLH.reshape(-1, hidden_NLH.shape[-1])
    try:
        output = forward(flat.index_select(0, pack.tokens)[None], **{**options, "attention_mask": None})
    finally:
        _current.pack = None
    packed_TH = output.last_hidden_state[0]
    output.last_hidden_state = packed_TH.new_zeros(flat.shape).index_copy(0, pack.tokens, packed_TH).view(hidden_NLH.shape)
    return output


class _PackedAttention(autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, pack: Pack, scale: float, p: float) -> Tensor:
        inputs = [part[0].transpose(0, 1) for part in (query, key, value)]
        result_Thd = query.new_empty(inputs[0].shape)
        saved: list[Any] = []
        for bucket in pack.buckets:
            attended, own = attend(*(bucket.pad(part) for part in inputs), bias=bucket.bias, scale=scale, p=p)
            result_Thd[bucket.start : bucket.stop] = bucket.unpad(attended)
            saved += own
        ctx.save_for_backward(*saved)
        ctx.pack, ctx.scale, ctx.p = pack, scale, p
        return result_Thd.transpose(0, 1)[None]

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        gradient_Thd = gradient[0].transpose(0, 1)
        parts = [gradient.new_empty(gradient_Thd.shape) for _ in range(3)]
        for number, bucket in enumerate(ctx.pack.buckets):
            saved = ctx.saved_tensors[5 * number : 5 * number + 5]
            own = bucket.pad(gradient_Thd)
            if bucket.bias is not None:
                own = own * (bucket.bias.transpose(2, 3) == 0)  # nothing comes back from padding
            for part, found in zip(parts, attend_backward(own, saved, scale=ctx.scale, p=ctx.p), strict=True):
                part[bucket.start : bucket.stop] = bucket.unpad(found)
        return *(part.transpose(0, 1)[None] for part in parts), None, None, None


def packed_attention(query: Tensor, key: Tensor, value: Tensor, pack: Pack, *, p: float, scale: float | None) -> Tensor:
    """Attention of each sequence to itself: [1, h, T, d] each to [1, h, T, d]."""
    if query.shape != key.shape or query.shape[0] != 1 or query.shape[2] != len(pack.tokens):
        raise NotImplementedError("attention to anything else than the packed tokens")
    return _PackedAttention.apply(query, key, value, pack, query.shape[-1] ** -0.5 if scale is None else scale, p)
