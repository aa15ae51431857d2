"""A device that is far away, made of the CPU: its tensors say that they lie on `meta`, hold numbers, and count what a host waits for.

A tensor of it is met where a GPU's would be: `.to(DEVICE)` and factories with `device=DEVICE` make one, and what is computed of one is one.
Counted are, by PyTorch's name for them:

    read    a number, or an array, comes back: item, tolist, bool, float, cpu, numpy
    sizes   the shape of a result depends on numbers: nonzero, masked_select, indexing by a mask
    sent    an array goes there; `blocking` where the host would wait for the copy
    mixed   an array of the host is an operand beside one of the device, as a list of places to index by

`waits` sums up all but copies that nothing waits for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = "meta"
_aten = torch.ops.aten
_SIZES = {_aten.nonzero.default, _aten.masked_select.default, _aten._unique2.default, _aten.repeat_interleave.Tensor}
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}


class Far(Tensor):
    """A tensor of the device; `near` holds its numbers."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, near.size(), strides=near.stride(), storage_offset=near.storage_offset(), dtype=near.dtype, device=DEVICE,
            requires_grad=near.requires_grad,
        )  # fmt: skip
        made.near = near.detach()
        return made

    def __repr__(self) -> str:  # type: ignore[override]
        return f"Far({tuple(self.shape)})"

    @classmethod
    def __torch_dispatch__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"{function} of a far tensor outside of `counted_waits`")

    def tolist(self) -> Any:  # without the dispatcher
        assert _counting, "outside of `counted_waits`"
        _counting[-1]["read"] += 1
        return self.near.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        assert _counting, "outside of `counted_waits`"
        _counting[-1]["read"] += 1
        return self.near.numpy(*args, **kwargs)


_counting: list[Counter[str]] = []


class _Counting(TorchDispatchMode):
    def __init__(self, counts: Counter[str]) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        operands = tree_flatten((args, kwargs))[0]
        far = [one for one in operands if isinstance(one, Far)]
        sent = "device" in kwargs and kwargs["device"] is not None and torch.device(kwargs["device"]).type == DEVICE
        brought = function is _aten._to_copy.default and far and kwargs.get("device") is not None and not sent
        self._count(function, operands, far=far, sent=sent, brought=bool(brought), blocking=not kwargs.get("non_blocking"))
        if sent:
            kwargs["device"] = torch.device("cpu")
        near_args, near_kwargs = tree_map(lambda one: one.near if isinstance(one, Far) else one, (args, kwargs))
        result = function(*near_args, **near_kwargs)
        if brought or not (far or sent):
            return result
        result = tree_map(lambda one: Far(one) if isinstance(one, Tensor) else one, result)
        return return_and_correct_aliasing(function, args, kwargs, result) if far else result

    def _count(self, function: Any, operands: list[Any], *, far: list[Far], sent: bool, brought: bool, blocking: bool) -> None:
        if brought or (far and function is _aten._local_scalar_dense.default):
            self.counts["read"] += 1
        if far and (function in _SIZES or (function in _INDEXING and any(one.dtype in (torch.bool, torch.uint8) for one in far[1:]))):
            self.counts["sizes"] += 1
        arrays = [one for one in operands if isinstance(one, Tensor) and not isinstance(one, Far) and one.ndim]
        if sent and arrays:
            self.counts["blocking" if blocking else "sent"] += 1
        elif far and arrays:
            self.counts["mixed"] += 1


def _autocast(device: str, **options: Any) -> Any:
    """PyTorch refuses autocast on `meta`."""
    return torch.amp.autocast_mode.autocast("cpu" if device == DEVICE else device, **options)


@contextmanager
def counted_waits() -> Iterator[Counter[str]]:
    """Inside, tensors of the device can be made and used. The counts grow meanwhile."""
    counts: Counter[str] = Counter()
    _counting.append(counts)
    try:
        with mock.patch.object(torch, "autocast", _autocast), _Counting(counts):
            yield counts
    finally:
        _counting.pop()


def waits(counts: Counter[str]) -> int:
    """How often a host would have waited."""
    return sum(count for what, count in counts.items() if what != "sent")


def moved(model: torch.nn.Module) -> torch.nn.Module:
    """The model with parameters and buffers of the device; within `counted_waits`."""
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                module._parameters[name] = torch.nn.Parameter(Far(parameter.detach()), requires_grad=parameter.requires_grad)
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                module._buffers[name] = Far(buffer)
    return model
