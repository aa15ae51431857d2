"""Attention for CPUs, whose softmax is taken in place.

Torch's fused kernel takes two and a half times as long for heads of 32 dimensions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from retrieval.compute.probe import FP32_NOISE, Check, agree, probe_batch

CPU_ATTENTION = "cpu_attention"


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Scaled dot-product attention: [n, h, L, d] each to [n, L, h, d].

    `mask` is added to the scores; it broadcasts to [n, h, L, L], and is [n or 1, 1, 1, L] where all queries see the same keys.
    """
    value = value.to(query.dtype)  # a model that turns queries and keys by angles in fp32 has them in fp32
    if mask is None or mask.shape[1:3] == (1, 1):
        result = _without_maximum(query, key, value, mask, scaling)
        if result is not None:
            return result
    return _by_softmax(query, key, value, mask, scaling)


_LARGEST_SUM = 1e33  # of exponentials: fp32 and bf16 end at 3e38, and the sum is yet to be weighted with values of up to some thousands


def _without_maximum(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor | None:
    """A softmax that passes over the scores twice, to take exponentials in place and to add them up: no maximum, no copy in fp32.

    None where a row's sum leaves the range that exponentials may have: where a token's score is some 75 above the first's, or a query sees
    nothing. Other values of a mask than 0 and the lowest are rounded as keys are.
    """
    n, h, length, d = query.shape
    size = d if mask is None else d + 1
    queries, keys = query.new_empty(n, h, length, size), query.new_empty(n, h, length, size)
    queries[..., :d] = query
    # Keys relative to the first token's: every score of a query falls by the same amount, which a softmax does not see, and the smaller
    # scores lose less when the product is rounded to bf16 (largest error of 250 sensitive pairs 0.038 instead of 0.062). The first
    # token's own score is 0, so that a row's sum is at least 1.
    torch.sub(key, key[:, :, :1], out=keys[..., :d])
    if mask is not None:  # one dimension more, in which every query is 1, adds the mask within the product
        queries[..., d] = 1
        keys[..., d] = (mask[:, :, 0] / scaling).clamp(min=-_LARGEST_SUM)
    queries, keys = queries.view(n * h, length, size), keys.view(n * h, length, size)
    weights = torch.baddbmm(query.new_empty(1, 1, 1), queries, keys.transpose(1, 2), beta=0, alpha=scaling).exp_()
    sums = weights.sum(-1, keepdim=True)
    least, most = torch.aminmax(sums)
    if not (least > 1 / _LARGEST_SUM and most < _LARGEST_SUM):
        return None
    weighted = torch.bmm(weights, value.reshape(n * h, length, d))
    result = query.new_empty(n, length, h, d)
    torch.div(weighted.view(n, h, length, d), sums.view(n, h, length, 1), out=result.transpose(1, 2))
    return result


def _by_softmax(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """The same for any mask and scores of any size, with scores and softmax in fp32."""
    n, h, length, d = query.shape
    relative = torch.sub(key, key[:, :, :1], out=query.new_empty(n, h, length, d))
    query, key, value = (part.reshape(n * h, length, d) for part in (query, relative, value))
    scores = torch.bmm(query, key.transpose(1, 2)).view(n, h, length, length).float().mul_(scaling)
    if mask is not None:
        scores += mask
    weights = torch.softmax(scores, dim=-1).to(value.dtype)
    return torch.bmm(weights.view(n * h, length, length), value).view(n, h, length, d).transpose(1, 2).contiguous()


# An operator of its own under torch.compile, whose generated softmax is three times slower, too. Elsewhere a plain call costs less.
_operators = torch.library.Library("adam_distillation", "DEF")
_operators.define("cpu_attention(Tensor query, Tensor key, Tensor value, Tensor? mask, float scaling) -> Tensor")
_operators.impl("cpu_attention", _attention, "CPU")


@torch.library.register_fake("adam_distillation::cpu_attention")
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    n, h, length, d = query.shape
    return query.new_empty(n, length, h, d)


def _transformers_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float | None = None, **unused: Any
) -> tuple[Tensor, None]:
    """The signature that transformers calls."""
    if not query.shape == key.shape == value.shape or any(unused.get(name) is not None for name in ("softcap", "s_aux", "position_bias")):
        raise NotImplementedError("grouped keys, keys of another text, capped scores, attention sinks and biases of relative positions")
    mask = None if attention_mask is None else attention_mask.float()
    attend = torch.ops.adam_distillation.cpu_attention if torch.compiler.is_compiling() else _attention
    return attend(query, key, value, mask, query.shape[-1] ** -0.5 if scaling is None else scaling), None


def _transformers_mask(*, mask_function: Callable[..., Any], q_length: int, **options: Any) -> Tensor | None:
    """The mask of 0 and the lowest number that transformers asks for; of one row where all queries see the same keys."""
    from transformers.masking_utils import bidirectional_mask_function, eager_mask

    rows = 1 if mask_function is bidirectional_mask_function else q_length
    return cast("Tensor | None", eager_mask(mask_function=mask_function, q_length=rows, **options))


def register_cpu_attention() -> str:
    """Make the attention known to transformers; returns the name for `attn_implementation`."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(CPU_ATTENTION, _transformers_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(CPU_ATTENTION, _transformers_mask)
    return CPU_ATTENTION


def check_attention(model: nn.Module, *, check: Check) -> None:
    """Go back to the model's own attention where ours does not serve it: it never calls ours, ours refuses what it asks for, or ours gives
    other results on a batch of different lengths."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    config: Any = model.config
    if config._attn_implementation != CPU_ATTENTION:
        return
    calls: list[Tensor] = []

    def noted(module: nn.Module, query: Tensor, *rest: Any, **options: Any) -> tuple[Tensor, None]:
        calls.append(query)
        return _transformers_attention(module, query, *rest, **options)

    probe = probe_batch(model)
    ALL_ATTENTION_FUNCTIONS.register(CPU_ATTENTION, noted)
    try:
        ours = check(*probe)
    except NotImplementedError:
        ours = None
    finally:
        ALL_ATTENTION_FUNCTIONS.register(CPU_ATTENTION, _transformers_attention)
    with own_attention(model):
        same = bool(calls) and ours is not None and agree(ours, check(*probe), within=FP32_NOISE)
    if not same:
        config._attn_implementation = _own_attention(model)


@contextlib.contextmanager
def own_attention(model: nn.Module) -> Iterator[None]:
    """The model with the attention that transformers gives it, for the length of the block."""
    config: Any = model.config
    before = config._attn_implementation
    if before == CPU_ATTENTION:
        config._attn_implementation = _own_attention(model)
    try:
        yield
    finally:
        config._attn_implementation = before


def _own_attention(model: nn.Module) -> str:
    """A model without sdpa adds the mask to its scores itself, and would get one of true and false."""
    return "sdpa" if cast(Any, model)._supports_sdpa else "eager"
