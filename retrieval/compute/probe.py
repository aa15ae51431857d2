"""The batch on which a model, and another way to compute it, is tried out before it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

Check = Callable[[Tensor, Tensor, Tensor], Tensor]  # ids, mask and segments [n, L] to what the model gives for them, [n] or [n, D]

FP32_NOISE = 1e-3  # of a result's own size: what sums in another order may differ by, many times over


def text_config(model: nn.Module) -> Any:
    """The configuration of the part that reads text, which some models keep within another one."""
    return cast(Any, model.config).get_text_config()


def pad_id_of(model: nn.Module) -> int | None:
    """The token id that the model's configuration names for padding."""
    return getattr(text_config(model), "pad_token_id", None)


def probe_batch(model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids, mask and segment ids [4, 64] of sequences of 64, 3, 17 and 40 tokens, on the model's device, padded as it wants it."""
    device = next(model.parameters()).device
    lengths = torch.tensor([64, 3, 17, 40], device=device)
    places = torch.arange(64, device=device)
    ids = (places * 7919 % 1000 + torch.arange(4, device=device)[:, None] * 31) % (text_config(model).vocab_size - 1) + 1
    mask = (places < lengths[:, None]).long()
    return torch.where(mask.bool(), ids, pad_id_of(model) or 0), mask, torch.zeros_like(ids)


def agree(results: Tensor, expected: Tensor, *, within: float) -> bool:
    """Whether two results are the same but for noise: vectors [n, D] each by its own length, logits [n] by the length of them all.

    `within` is a share, since a tolerance in absolute numbers takes anything from a model whose numbers are small.
    """
    return largest_difference(results, expected) <= within


def largest_difference(results: Tensor, expected: Tensor) -> float:
    """What `agree` compares with its tolerance. NaN where one result has NaN, which is below no tolerance."""
    results, expected = (part.detach().float() if part.ndim > 1 else part.detach().float()[None] for part in (results, expected))
    return float(((results - expected).norm(dim=-1) / expected.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)).max())
