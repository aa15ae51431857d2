"""The first layers of a model: its stack cut, and its configuration, so that the saved folder is opened as the same model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from data.errors import UserError
from retrieval.compute.probe import text_config


def keep_first_layers(backbone: Any, layers: int) -> None:
    """Cut the encoder to its first `layers` transformer layers, in place, and tell its configuration so.

    Raises UserError where there are fewer, or where the model has no stack of layers of its own for each.
    """
    name = type(backbone).__name__
    stacks = list(_outermost_stacks(backbone))
    if len(stacks) != 1:
        raise UserError(f"student.layers: {name} has {len(stacks)} stacks of layers, and one is expected; leave student.layers out")
    owner, attribute, stack = stacks[0]
    if layers > len(stack):
        raise UserError(f"student.layers={layers}, but the model has {len(stack)} layers")
    config = text_config(backbone)
    if config.num_hidden_layers != len(stack):
        raise UserError(
            f"student.layers: {name} has a stack of {len(stack)} modules and {config.num_hidden_layers} layers, so it cannot be cut; "
            "leave student.layers out"
        )
    if layers < len(stack) and getattr(config, "is_heterogeneous", False):
        raise UserError(f"student.layers: {name} has layers of different sizes, of which it cannot tell a part; leave student.layers out")
    setattr(owner, attribute, stack[:layers])
    _cut_lists(config, len(stack), layers)
    config.num_hidden_layers = layers


def _outermost_stacks(module: nn.Module) -> Iterator[tuple[nn.Module, str, nn.ModuleList]]:
    """Stacks named `layer`, `layers` or `block` (T5's) that lie in no other list: those within are parts of a layer."""
    for name, child in module.named_children():
        if not isinstance(child, nn.ModuleList):
            yield from _outermost_stacks(child)
        elif name in ("layer", "layers", "block"):
            yield module, name, child


def _cut_lists(config: Any, count: int, layers: int) -> None:
    """Lists with an entry for each layer (`layer_types`, `no_rope_layers`): a configuration whose lists do not fit is not saved."""
    for name, value in list(vars(config).items()):
        if isinstance(value, list | tuple) and len(value) == count and name != "architectures":
            setattr(config, name, value[:layers])
