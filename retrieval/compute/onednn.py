"""Products by oneDNN, which is inside torch. For fp32 torch itself asks MKL, which is half as fast on AMD processors.

The operators are torch's own, those that torch.compile uses, but not public: `works` tries them out before they are used.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

GELU: tuple[str, list[float], str] = ("gelu", [], "none")  # "none": by the error function, not its approximation by tanh
NOTHING: tuple[str, list[float], str] = ("none", [], "")


def packed(weight: Tensor) -> Tensor:
    """A weight [O, I] in oneDNN's own order, as torch.compile makes it when it freezes: 6 to 30 % faster than the plain one."""
    return torch.ops.mkldnn._reorder_linear_weight(weight, None)


def linear(values: Tensor, weight: Tensor, bias: Tensor | None = None, then: tuple[str, list[float], str] = NOTHING) -> Tensor:
    """[..., I] with a weight [O, I], packed or not, to [..., O]: sums in fp32, one rounding to the type of `values` at the end."""
    return torch.ops.mkldnn._linear_pointwise(values, weight, bias, *then)


@cache
def works() -> bool:
    """Whether this build of torch multiplies fp32 matrices so."""
    values = torch.linspace(-1, 1, 24).view(4, 6)
    weight = torch.linspace(2, -2, 30).view(5, 6)
    try:
        with torch.inference_mode():
            return bool(torch.allclose(linear(values, weight), values @ weight.t(), rtol=1e-5, atol=1e-5))
    except (RuntimeError, AttributeError):
        return False
