"""How the vectors of a text's tokens become one: `student.pooling`, under the names that sentence-transformers has for it.

Shapes: n texts of at most L tokens, D dimensions. A mask [n, L] is 1 where a token counts: not in padding, which is on the right, and not
in a prompt that is left out.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def cls(hidden: Tensor, mask: Tensor) -> Tensor:
    """[n, D] fp32: the first token's."""
    return _tokens(hidden, mask.int().argmax(1))


def lasttoken(hidden: Tensor, mask: Tensor) -> Tensor:
    """[n, D] fp32: the last token's; 0 where none counts."""
    last = mask.shape[1] - 1 - mask.int().flip(1).argmax(1)
    return _tokens(hidden, last) * mask.any(1, keepdim=True)


def mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """[n, D] fp32: the mean."""
    return _weighted(hidden, mask.unsqueeze(-1).to(torch.float32))


def weightedmean(hidden: Tensor, mask: Tensor) -> Tensor:
    """[n, D] fp32: the mean, each token weighted by its place in the text, from 1; a prompt that is left out has places, too."""
    places = torch.arange(1, hidden.shape[1] + 1, device=hidden.device)
    return _weighted(hidden, (mask * places).unsqueeze(-1).to(torch.float32))


def mean_sqrt_len_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """[n, D] fp32: the sum over the square root of the number of tokens."""
    weights = mask.unsqueeze(-1).to(torch.float32)
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1).sqrt()


def maximum(hidden: Tensor, mask: Tensor) -> Tensor:
    """[n, D] fp32: the largest number of each dimension."""
    return hidden.float().masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).max(1).values


def _tokens(hidden: Tensor, places: Tensor) -> Tensor:
    return hidden.gather(1, places[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0].float()


def _weighted(hidden: Tensor, weights: Tensor) -> Tensor:
    return (hidden.float() * weights).sum(1) / weights.sum(1).clamp(min=1)


_MODES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": cls, "mean": mean, "max": maximum, "mean_sqrt_len_tokens": mean_sqrt_len_tokens, "weightedmean": weightedmean,
    "lasttoken": lasttoken,
}  # fmt: skip


def pool(hidden: Tensor, mask: Tensor, modes: str) -> Tensor:
    """[n, L, D] token vectors and [n, L] mask to [n, D] fp32, or D for each of the modes, joined by + in their name."""
    vectors = [_MODES[mode](hidden, mask) for mode in modes.split("+")]
    return vectors[0] if len(vectors) == 1 else torch.cat(vectors, -1)
