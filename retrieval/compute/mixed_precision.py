"""How a model computes fast and still exactly enough: low-precision linear layers inside a float32 model, attention for CPUs.

A model cast to bf16 as a whole carries its sums (residual stream, normalisation, head) in 8 bits of mantissa: logits of the MS MARCO
MiniLM-L12 cross-encoder are then off by up to 0.1, and many tie. Here only the linear layers of the layer stack, nine tenths of the
work, run in bf16 or fp16, and all between them in fp32: off by 0.006 on average, at nearly the same speed.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from data.errors import UserError, first_line
from retrieval.compute import onednn
from retrieval.compute.precision import torch_type
from retrieval.compute.probe import FP32_NOISE, agree, probe_batch

CPU_ATTENTION = "cpu_attention"

Check = Callable[[Tensor, Tensor, Tensor], Tensor]  # ids, mask and segments [n, L] to what the model gives for them, [n] or [n, D]


def apply(model: nn.Module, *, precision: str, check: Check, option: str, compiled: bool = False) -> None:
    """Give a model that is in fp32 and on its device the linear layers of its precision, and on a CPU our own attention.

    The attention, and other linear layers in fp32, stay only if the model, tried out by `check`, gives with them what it gives without.
    `compiled`: torch.compile comes after, with its own linear layers.

    Raises UserError, naming `option`, where the model does not run in low precision.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    if on_cpu:
        check_attention(model, check=check)
    if precision != "fp32":
        pack = on_cpu and not compiled
        exact_keys = pack and cast(Any, model.config)._attn_implementation == CPU_ATTENTION
        lower_precision(model, torch_type(precision), pack=pack, exact_keys=exact_keys)
        make_it_run(model, check=check, option=option)
    elif on_cpu and not compiled:
        pack_linear(model, check=check)


# Layers that make the keys of attention, as transformers' encoders call them. In the last quarter of a model's layers, one at least, they
# stay in fp32: in all-MiniLM-L6 for 1 % of the time, and 0.99515 of the exact top 100 instead of 0.99496 (upper half: 3 %, 0.9954).
_KEYS = {"key", "k", "k_lin", "k_proj"}


class LowPrecisionLinear(nn.Module):
    """A linear layer in bf16 or fp16; its input may be fp32. [..., I] to [..., O] in the low precision, or, `widened`, in fp32."""

    widened = False

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach().to(dtype), requires_grad=False)

    def forward(self, values: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        result = nn.functional.linear(values.to(self.weight.dtype), self.weight, self.bias)
        return result.float() if self.widened else result


class PackedLinear(nn.Module):
    """A linear layer on a CPU, by oneDNN.

    In low precision it rounds less than the plain one: the bias stays in fp32, and with `gelu` the layer's result is rounded once, behind
    the activation.
    """

    widened = False

    def __init__(self, linear: nn.Linear, dtype: torch.dtype, casts: _LastCast, *, gelu: bool = False) -> None:
        super().__init__()
        self._casts, self._dtype = casts, dtype
        self._then = onednn.GELU if gelu else onednn.NOTHING
        self._bias = None if linear.bias is None else linear.bias.detach()
        self._weight = onednn.packed(linear.weight.detach().to(dtype))

    def forward(self, values: Tensor) -> Tensor:
        """[..., I] to [..., O]."""
        result = onednn.linear(self._casts.of(values, self._dtype), self._weight, self._bias, self._then)
        return result.float() if self.widened else result

    def _save_to_state_dict(self, *unused: Any) -> None:
        raise RuntimeError("packed weights cannot be saved: save the model before it is made ready for inference")


class _LastCast(threading.local):
    """Query, key and value read the same tensor one after the other: it is cast once, by each thread for itself."""

    def __init__(self) -> None:
        self._source: Tensor | None = None
        self._cast: Tensor | None = None

    def of(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        if values.dtype == dtype:
            return values
        if self._cast is None or self._source is not values or self._cast.dtype != dtype:
            self._source, self._cast = values, values.to(dtype)
        return self._cast


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


def lower_precision(model: nn.Module, dtype: torch.dtype, *, pack: bool, exact_keys: bool = False) -> None:
    """Replace the linear layers of the model's layer stacks, in place.

    `pack` is for a CPU without torch.compile; `exact_keys`, with it, for our own attention, which takes keys in fp32 too.
    """
    casts = _LastCast()
    for last, parent, name, linear in list(_linear_layers(model)):
        if getattr(parent, name) is not linear:  # of a stack within a stack, replaced before
            continue
        kind = torch.float32 if exact_keys and last and name in _KEYS else dtype
        setattr(parent, name, _lowered(parent, linear, kind, casts) if pack else LowPrecisionLinear(linear, dtype))


def _linear_layers(model: nn.Module) -> Iterator[tuple[bool, nn.Module, str, nn.Linear]]:
    """Whether it is in the last quarter of its stack, parent, name and layer of all linear layers of the model's layer stacks."""
    for stack in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        first_of_last = len(stack) - max(1, len(stack) // 4)
        for number, layer in enumerate(stack):
            for parent in layer.modules():
                for name, child in parent.named_children():
                    if type(child) is nn.Linear:
                        yield number >= first_of_last, parent, name, child


def make_it_run(model: nn.Module, *, check: Check, option: str) -> None:
    """Let the lowered layers hand on fp32 where the model does not run otherwise: one that multiplies two layers' results itself, say, of
    which one went through an operation in fp32.

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
        except RuntimeError as error:
            reason = first_line(error)
    raise UserError(f"{type(model).__name__} cannot compute with linear layers in low precision ({reason}): set {option}=fp32")


def _lowered(parent: nn.Module, linear: nn.Linear, dtype: torch.dtype, casts: _LastCast) -> nn.Module:
    """The packed layer where it agrees with the plain one, with its parent's activation where that is nothing but a GELU of it."""
    activation = _only_gelu(parent, linear)
    if activation and packing_agrees(linear, dtype, gelu=True):
        setattr(parent, activation, nn.Identity())
        return PackedLinear(linear, dtype, casts, gelu=True)
    if packing_agrees(linear, dtype):
        return PackedLinear(linear, dtype, casts)
    return linear if dtype == torch.float32 else LowPrecisionLinear(linear, dtype)


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
    probe, bias = _probe(linear), 0 if linear.bias is None else linear.bias
    try:
        packed = PackedLinear(linear, dtype, _LastCast(), gelu=gelu)(probe)
    except (RuntimeError, AttributeError):
        return False
    plain = nn.functional.linear(probe.to(dtype), linear.weight.to(dtype)).float() + bias
    return agree(packed, nn.functional.gelu(plain) if gelu else plain, within=FP32_NOISE if dtype == torch.float32 else 0.02)


def _probe(linear: nn.Linear) -> Tensor:
    """[4, I] from -1 to 1."""
    return torch.linspace(-1, 1, 4 * linear.in_features).view(4, -1)


def _attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """Scaled dot-product attention: [n, h, L, d] each to [n, L, h, d].

    `mask` is added to the scores; it broadcasts to [n, h, L, L], and is [n or 1, 1, 1, L] where all queries see the same keys. On a CPU
    torch's fused kernel takes two and a half times as long for heads of 32 dimensions.
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
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **unused: object,
) -> tuple[Tensor, None]:
    """The signature that transformers calls."""
    if not query.shape == key.shape == value.shape or any(unused.get(name) is not None for name in ("softcap", "s_aux")):
        raise NotImplementedError("grouped keys, keys of another text, capped scores and attention sinks")
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
    """Go back to the model's own attention where it does not ask for ours, ours cannot serve it, or ours gives other logits on a batch of
    different lengths."""
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
