"""Linear layers in low precision: what they share changes no bit."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from retrieval.compute import low_precision


class Casts(TorchDispatchMode):
    """Counts how often a tensor is cast to bf16."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, given: Any = (), options: Any = None) -> Any:
        self.count += function is torch.ops.aten._to_copy.default and (options or {}).get("dtype") == torch.bfloat16
        return function(*given, **(options or {}))


class Layer(torch.nn.Module):
    """Query, key and value of one tensor, then a layer of another one."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (torch.nn.Linear(16, 16) for _ in range(4))

    def forward(self, hidden: Any) -> Any:
        context = (self.query(hidden).float() * self.key(hidden).float()).softmax(-1) * self.value(hidden).float()
        return hidden + self.out(context).float()


def test_query_key_and_value_share_one_cast() -> None:
    """Prevents: three casts of one tensor in each layer on a GPU; a cast of the tensor before, taken for that of this one."""
    torch.manual_seed(0)
    shared = torch.nn.ModuleList([Layer() for _ in range(3)])
    alone = copy.deepcopy(shared)
    low_precision.lower_precision(shared, torch.bfloat16, pack=False)
    low_precision.lower_precision(alone, torch.bfloat16, pack=False, compiled=True)
    found, counts = [], []
    with torch.no_grad():
        for stack in (shared, alone):
            for hidden in torch.randn(2, 5, 7, 16, generator=torch.Generator().manual_seed(1)):
                with Casts() as casts:
                    for layer in stack:
                        hidden = layer(hidden)
                found.append(hidden)
                counts.append(casts.count)
    assert counts == [3 * 2, 3 * 2, 3 * 4, 3 * 4]
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
