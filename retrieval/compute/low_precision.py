"""Low-precision linear layers inside a float32 model.

A model cast to bf16 as a whole carries its sums (residual stream, normalisation, head) in 8 bits of mantissa: logits of the MS MARCO
MiniLM-L12 cross-encoder are then off by up to 0.1, and many tie. Here only the linear layers of the layer stack, nine tenths of the
work, run in bf16 or fp16, and all between them in fp32: off by 0.006 on average, at nearly the same speed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from data.errors import UserError, first_line
from retrieval.compute.cpu_attention import CPU_ATTENTION, check_attention
from retrieval.compute.packed_linear import LastCast, PackedLinear, packed
from retrieval.compute.probe import FP32_NOISE, Check, agree, probe_batch
from retrieval.compute.stored_precision import StoredLinear

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
# Layers that make the keys of attention, as transformers' encoders call them. In the last quarter of a model's layers, one at least, they
# stay in fp32: in all-MiniLM-L6 for 1 % of the time, and 0.99515 of the exact top 100 instead of 0.99496 (upper half: 3 %, 0.9954).
_KEYS = {"key", "k", "k_lin", "k_proj"}


def apply(model: nn.Module, *, precision: str, check: Check, option: str, compiled: bool = False) -> None:
    """Give a model that is in fp32 and on its device the linear layers of its precision, and on a CPU our own attention.

    The attention, and other linear layers in fp32, stay only if the model, tried out by `check`, gives with them what it gives without.
    `compiled`: torch.compile comes after, with its own linear layers.

    Raises UserError, naming `option`, where the model does not run in low precision.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    pack = on_cpu and not compiled
    if on_cpu:
        check_attention(model, check=check)
    if precision != "fp32":
        exact_keys = pack and cast(Any, model.config)._attn_implementation == CPU_ATTENTION
        lower_precision(model, _TYPES[precision], pack=pack, exact_keys=exact_keys, compiled=compiled)
        make_it_run(model, check=check, option=option)
    elif pack:
        pack_linear(model, check=check)


class LowPrecisionLinear(nn.Module):
    """A linear layer in bf16 or fp16; its input may be fp32. [..., I] to [..., O] in the low precision, or, `widened`, in fp32.

    Layers with the same `casts` cast an input that they share once; None: each for itself, as torch.compile wants it.
    """

    widened = False

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, casts: LastCast | None = None) -> None:
        super().__init__()
        self._casts = casts
        self.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)

    def forward(self, values: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        dtype = self.weight.dtype
        low = values.to(dtype) if self._casts is None else self._casts.of(values, dtype)
        result = nn.functional.linear(low, self.weight, self.bias)
        return result.float() if self.widened else result


def pack_linear(model: nn.Module, *, check: Check) -> None:
    """Let oneDNN compute a model's linear layers in fp32, on a CPU without torch.compile, where it then gives the same logits."""
    probe = probe_batch(model)
    expected = check(*probe)
    before = {name: module for name, module in model.named_modules() if name}
    lower_precision(model, torch.float32, pack=True)
    try:
        same = agree(check(*probe), expected, within=FP32_NOISE)
    except Exception:  # code of any model, which may read a layer's weights itself
        same = False
    if not same:
        for name, module in before.items():
            model.set_submodule(name, module)


def lower_precision(model: nn.Module, dtype: torch.dtype, *, pack: bool, exact_keys: bool = False, compiled: bool = False) -> None:
    """Replace the linear layers of the model's layer stacks, in place.

    `pack` is for a CPU without torch.compile; `exact_keys`, with it, for our own attention, which takes keys in fp32 too. Not `compiled`,
    query, key and value share one cast.
    """
    casts = LastCast()
    layers = list(_linear_layers(model))[::-1]
    while layers:  # each goes before the next is made, so that a large model is never there twice
        last, parent, name, linear = layers.pop()
        if getattr(parent, name) is not linear:  # of a stack within a stack, replaced before
            continue
        kind = torch.float32 if exact_keys and last and name in _KEYS else dtype
        made: nn.Module | None = packed(parent, linear, kind, casts) if pack else None
        if made is None and not (pack and kind == torch.float32):
            made = LowPrecisionLinear(linear, kind, None if compiled else casts)
        setattr(parent, name, linear if made is None else made)


def _linear_layers(model: nn.Module) -> Iterator[tuple[bool, nn.Module, str, nn.Linear]]:
    """Whether it is in the last quarter of its stack, parent, name and layer of all linear layers of the model's layer stacks.

    Without those that the model's class wants in fp32: T5 reads the weights of its `wo`, whose sums leave the range of fp16.
    """
    kept = set(getattr(model, "_keep_in_fp32_modules", None) or ())
    for stack in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        first_of_last = len(stack) - max(1, len(stack) // 4)
        for number, layer in enumerate(stack):
            for parent in layer.modules():
                for name, child in parent.named_children():
                    if type(child) in (nn.Linear, StoredLinear) and name not in kept:
                        yield number >= first_of_last, parent, name, cast(nn.Linear, child)


def make_it_run(model: nn.Module, *, check: Check, option: str) -> None:
    """Let the lowered layers hand on fp32 where the model does not run otherwise.

    An example is a model that multiplies two layers' results itself, of which one went through an operation in fp32.

    Raises UserError, naming `option`, where it does not run even so.
    """
    layers = [module for module in model.modules() if isinstance(module, LowPrecisionLinear | PackedLinear)]
    reason = ""
    for widened in (False, True):
        for layer in layers:
            layer.widened = widened
        try:
            check(*probe_batch(model))
            return
        except (RuntimeError, AttributeError, TypeError) as error:  # packed layers have no weight to read
            reason = first_line(error)
    raise UserError(f"{type(model).__name__} cannot compute with linear layers in low precision ({reason}): set {option}=fp32")
