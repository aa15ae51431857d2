"""Weights in bf16 once a step, for all of its passes, instead of once a pass.

Autocast casts the weights of a linear layer whenever it is called. Inside `cast_once` each layer has a copy that was made at the start, and
every call reads it through a node of its own, which gives its gradient to the fp32 weight as autocast's cast does: in bf16 from the layer,
then in fp32 to the sum. So results are autocast's to the bit. (Autocast's own cache adds up the gradients of several passes in bf16, and a
copy that was made without a graph cuts those of later calls.) What a model computes with a weight by itself is left to autocast.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, autograd, nn
from torch.nn import functional


@contextmanager
def cast_once(models: Sequence[nn.Module], dtype: torch.dtype) -> Iterator[None]:
    """Inside, linear layers of the models read copies of their weights as they are now, under autocast to `dtype`.

    Compiled models, in which a cast is part of another kernel, and layers with a `forward` of their own are left as they are.
    """
    copies: dict[Tensor, Tensor] = {}
    layers = [layer for model in models if not _compiled(model) for layer in model.modules() if type(layer) is nn.Linear]
    layers = [layer for layer in layers if "forward" not in vars(layer)]
    for layer in layers:
        for parameter in layer.parameters(recurse=False):
            if parameter not in copies and parameter.dtype == torch.float32:
                copies[parameter] = parameter.detach().to(dtype)
    try:
        for layer in layers:
            vars(layer)["forward"] = partial(_linear, layer, copies, dtype)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def _compiled(model: nn.Module) -> bool:
    return any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules())


def _linear(layer: nn.Linear, copies: dict[Tensor, Tensor], dtype: torch.dtype, values: Tensor) -> Tensor:
    device = values.device.type
    if not torch.is_autocast_enabled(device) or torch.get_autocast_dtype(device) != dtype:  # a head that is computed in fp32
        return functional.linear(values, layer.weight, layer.bias)
    weight, bias = (None if one is None else copies.get(one) for one in (layer.weight, layer.bias))
    if weight is None or (bias is None) != (layer.bias is None):
        return functional.linear(values, layer.weight, layer.bias)
    return functional.linear(values, *_Cast.apply(weight, bias, layer.weight, layer.bias))


class _Cast(autograd.Function):
    """The copies of a layer's weight and bias, as if they were cast now."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor | None, own: Tensor, own_bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), None if bias is None else bias.view_as(bias)

    @staticmethod
    def backward(ctx: Any, weight: Tensor | None, bias: Tensor | None) -> tuple[None, None, Tensor | None, Tensor | None]:
        return None, None, None if weight is None else weight.float(), None if bias is None else bias.float()
