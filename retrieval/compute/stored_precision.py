"""A language model's large weights as its files store them: bf16 or fp16 in memory, fp32 in every product.

Opened in fp32, a model of 8 billion weights takes 32 GB before its layers are lowered to the 16 GB that its files have. Here the linear
layers, the token table and the output matrix keep the number format of the file. Until the layers are lowered (`low_precision`), each
takes its weight to fp32 as it computes: what the model gives is, to the bit, what it gives when it is opened in fp32. What an adapter
changes is summed in fp32, and rounded to the format of its base once (`retrieval.models.adapters`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retrieval.model_files.adapter_files import base_folder

_LOW = {"BF16": torch.bfloat16, "F16": torch.float16}  # as safetensors names them
_ROWS_AT_ONCE = 16_384  # of a weight that is taken to fp32: an output matrix of 150,000 rows is not copied whole


class StoredLinear(nn.Linear):
    """A linear layer whose weight is stored low, and whose bias is in fp32."""

    def forward(self, input: Tensor) -> Tensor:
        """[..., I] to [..., O], both in fp32; another input is refused, as by a layer in fp32."""
        if self.out_features <= _ROWS_AT_ONCE:
            return nn.functional.linear(input, self.weight.float(), self.bias)
        result = torch.cat([nn.functional.linear(input, rows.float()) for rows in self.weight.split(_ROWS_AT_ONCE)], dim=-1)
        return result if self.bias is None else result + self.bias


class StoredEmbedding(nn.Embedding):
    """A token table that is stored low, whose rows come out in fp32."""

    def forward(self, input: Tensor) -> Tensor:
        """[...] ids to [..., D]."""
        return super().forward(input).float()


_STORED: dict[type, type] = {nn.Linear: StoredLinear, nn.Embedding: StoredEmbedding}


@contextlib.contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Models that are opened from the folder, in fp32, keep their large weights as its files store them, for the length of the block.

    What the files store in fp32, or under other names than the model's, is opened in fp32.
    """
    from transformers import PreTrainedModel

    kinds = _stored_kinds(folder)
    base: Any = PreTrainedModel
    plain = base._get_dtype_plan

    def planned(model: Any, dtype: torch.dtype) -> Any:  # called between the making of the model, without values, and their reading
        _keep(model, kinds)
        return plain(model, dtype)

    base._get_dtype_plan = planned
    try:
        yield
    finally:
        base._get_dtype_plan = plain


def _stored_kinds(folder: Path) -> dict[str, torch.dtype]:
    """The tensors of the folder, of an adapter those of its base, that are stored low."""
    from safetensors import safe_open

    kinds: dict[str, torch.dtype] = {}
    for path in sorted(base_folder(folder).glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            named = {name: str(file.get_slice(name).get_dtype()) for name in file.keys()}  # noqa: SIM118 (no mapping)
        kinds |= {name: _LOW[kind] for name, kind in named.items() if kind in _LOW}
    return kinds


def _keep(model: Any, kinds: Mapping[str, torch.dtype]) -> None:
    """Give the places of large weights, before these are read, the number format of the file.

    A token table that computes something of its own (Gemma's) stays in fp32: it does so in the format of its weight.
    """
    output = model.get_output_embeddings()
    ends = [module for module in (model.get_input_embeddings(), output) if module is not None]
    stacks = [stack for stack in model.modules() if isinstance(stack, nn.ModuleList)]
    large = {id(module) for module in (*ends, *(part for stack in stacks for part in stack.modules()))}
    for name, module in model.named_modules():
        if type(module) not in _STORED or id(module) not in large:
            continue
        kind = kinds.get(f"{name}.weight") or kinds.get(f"{model.base_model_prefix}.{name}.weight")
        if kind is not None:
            module.weight = nn.Parameter(module.weight.to(kind), requires_grad=False)
        if kind is not None or module is output:  # which may be the token table, and is in its format then
            module.__class__ = _STORED[type(module)]
