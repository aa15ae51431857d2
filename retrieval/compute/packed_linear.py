"""Linear layers on a CPU by oneDNN: weights packed once, and a GELU behind the layer computed with it.

In low precision they round less than plain layers: the bias stays in fp32, and a layer with its GELU is rounded once, behind both.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from retrieval.compute import onednn
from retrieval.compute.probe import FP32_NOISE, agree


class LastCast(threading.local):
    """Query, key and value read the same tensor one after the other: it is cast once, by each thread for itself."""

    def __init__(self) -> None:
        self._source: Tensor | None = None
        self._cast: Tensor | None = None

    def of(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """The values in a number format."""
        if values.dtype == dtype:
            return values
        if self._cast is None or self._source is not values or self._cast.dtype != dtype:
            self._source, self._cast = values, values.to(dtype)
        return self._cast


class PackedLinear(nn.Module):
    """A linear layer, with `gelu` the activation behind it too. [..., I] to [..., O] in `dtype`, or, `widened`, in fp32."""

    widened = False

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, casts: LastCast, *, gelu: bool = False) -> None:
        super().__init__()
        self._casts = casts
        self._dtype = dtype
        self._then = onednn.GELU if gelu else onednn.NOTHING
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._weight = onednn.packed(linear.weight.detach().to(dtype))

    def forward(self, values: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        result = onednn.linear(self._casts.of(values, self._dtype), self._weight, self._bias, self._then)
        return result.float() if self.widened else result

    def _save_to_state_dict(self, *unused: Any) -> None:
        raise RuntimeError("packed weights cannot be saved: save the model before it is made ready for inference")


def packed(parent: nn.Module, linear: nn.Linear, dtype: torch.dtype, casts: LastCast) -> PackedLinear | None:
    """The packed layer of a parent's, None where it does not agree with the plain one.

    It takes its parent's activation over where all that the parent computes is a GELU of the layer.
    """
    activation = _only_gelu(parent, linear)
    if activation and packing_agrees(linear, dtype, gelu=True):
        setattr(parent, activation, nn.Identity())
        return PackedLinear(linear, dtype, casts, gelu=True)
    return PackedLinear(linear, dtype, casts) if packing_agrees(linear, dtype) else None


def _only_gelu(parent: nn.Module, linear: nn.Linear) -> str | None:
    """The name of the parent's activation, where all that the parent does is GELU(linear(x))."""
    names = [name for name, child in parent.named_children() if child is not linear]
    if len(names) != 1 or any(True for _ in parent.get_submodule(names[0]).parameters()):
        return None
    probe = _probe(linear)
    before = linear(probe)
    after = nn.functional.gelu(before)
    try:
        found = (parent(probe), parent.get_submodule(names[0])(before))
    except Exception:  # a forward of unknown code, which may want other inputs than one tensor: then it is not this one
        return None
    return names[0] if all(isinstance(one, Tensor) and torch.equal(one, after) for one in found) else None


def packing_agrees(linear: nn.Linear, dtype: torch.dtype, *, gelu: bool = False) -> bool:
    """Whether this build of torch has the packed operator, and it agrees with a plain product to rounding."""
    probe = _probe(linear)
    bias = 0 if linear.bias is None else linear.bias
    try:
        found = PackedLinear(linear, dtype, LastCast(), gelu=gelu)(probe)
    except (RuntimeError, AttributeError):
        return False
    plain = nn.functional.linear(probe.to(dtype), linear.weight.to(dtype)).float() + bias
    return agree(found, nn.functional.gelu(plain) if gelu else plain, within=FP32_NOISE if dtype == torch.float32 else 0.02)


def _probe(linear: nn.Linear) -> Tensor:
    """[4, I] from -1 to 1."""
    return torch.linspace(-1, 1, 4 * linear.in_features).view(4, -1)
