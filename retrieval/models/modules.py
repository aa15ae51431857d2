"""Modules behind a Transformer and its pooling, opened and saved: Dense, LayerNorm, Normalize and Dropout of sentence-transformers.

Weights are in fp32 and have the names that they have in the files. What a module is, its files say (`retrieval.model_files.module_files`).

Shapes: n vectors of I dimensions in, of O out.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from data.errors import UserError, first_line
from retrieval.model_files.module_files import DenseSpec, DropoutSpec, LayerNormSpec, ModuleSpec, NormalizeSpec

_WEIGHTS = "model.safetensors"


class Dense(nn.Module):
    """[n, I] to [n, O]."""

    def __init__(self, spec: DenseSpec) -> None:
        super().__init__()
        self.spec = spec
        self.linear = nn.Linear(spec.inputs, spec.outputs, bias=spec.bias)
        self.activation = cast(nn.Module, getattr(nn, spec.activation)())
        self.residual = nn.Linear(spec.inputs, spec.outputs, bias=False) if "residual.weight" in spec.shapes else nn.Identity()

    def forward(self, vectors: Tensor) -> Tensor:
        """activation(W x + b), plus the residual."""
        result = cast(Tensor, self.activation(self.linear(vectors)))
        return result + self.residual(vectors) if self.spec.residual else result


class LayerNorm(nn.Module):
    """[n, I] to [n, I]."""

    def __init__(self, spec: LayerNormSpec) -> None:
        super().__init__()
        self.spec = spec
        self.norm = nn.LayerNorm(spec.dimension)

    def forward(self, vectors: Tensor) -> Tensor:
        """Each vector normalised over its dimensions."""
        return cast(Tensor, self.norm(vectors))


class Normalize(nn.Module):
    """[n, I] to [n, I]."""

    def __init__(self, spec: NormalizeSpec) -> None:
        super().__init__()
        self.spec = spec

    def forward(self, vectors: Tensor) -> Tensor:
        """Each vector at length 1."""
        return nn.functional.normalize(vectors, dim=-1)


class Dropout(nn.Module):
    """[n, I] to [n, I]."""

    def __init__(self, spec: DropoutSpec) -> None:
        super().__init__()
        self.spec = spec
        self.dropout = nn.Dropout(spec.probability)

    def forward(self, vectors: Tensor) -> Tensor:
        """The vectors, in training with some numbers taken away."""
        return cast(Tensor, self.dropout(vectors))


_CLASSES: dict[type[ModuleSpec], Any] = {DenseSpec: Dense, LayerNormSpec: LayerNorm, NormalizeSpec: Normalize, DropoutSpec: Dropout}


def open_modules(specs: Sequence[ModuleSpec], *, option: str) -> nn.Sequential:
    """The modules one behind the other, in eval mode, on the CPU, with their weights from the files.

    Raises UserError where a file of weights cannot be read.
    """
    return nn.Sequential(*(_opened(spec, option=option) for spec in specs)).eval()


def _opened(spec: ModuleSpec, *, option: str) -> nn.Module:
    with torch.device("meta"):  # weights are not drawn first
        module: nn.Module = _CLASSES[type(spec)](spec)
    if spec.shapes:
        try:
            tensors = load_file(spec.folder / _WEIGHTS)
            module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()}, assign=True)
        except Exception as error:  # safetensors and torch raise many kinds
            raise UserError(f"{option}: the weights in {spec.folder} cannot be read: {first_line(error)}") from error
    return module


def save_module(module: nn.Module, folder: Path) -> None:
    """Write a module of `open_modules` as sentence-transformers reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = cast(ModuleSpec, module.spec)
    (folder / "config.json").write_text(json.dumps(spec.config(), indent=2))
    if spec.shapes:
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in module.state_dict().items()}
        save_file(tensors, folder / _WEIGHTS, metadata={"format": "pt"})
