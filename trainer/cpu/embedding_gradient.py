"""The gradient of the word embeddings, added row by row. It changes no number, only what a micro-batch costs on a CPU: autograd makes a
dense [vocabulary, D] gradient for each graph, zeros nearly all of it, and adds it to the sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def add_gradient_by_row(embedding: nn.Embedding) -> None:
    """Make every backward pass through `embedding` add to the rows of `embedding.weight.grad` that it used, and to no others.

    For CPUs: on a GPU the dense gradient costs nothing to speak of, and index_add_ has no fixed order there. A subclass, which may do
    more than look up (Gemma's scales its vectors), is left to autograd.
    """
    if type(embedding) is nn.Embedding:
        embedding.register_forward_hook(_cut_graph)


def _cut_graph(embedding: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor | None:
    """Replace the looked-up vectors by a leaf whose gradient goes to the rows they came from."""
    assert isinstance(embedding, nn.Embedding)
    if not (output.requires_grad and embedding.weight.requires_grad):  # activation checkpointing asks for that of frozen ones, too
        return None
    ids: Tensor = inputs[0].flatten()
    weight = embedding.weight
    kept = torch.ones_like(ids, dtype=torch.bool) if embedding.padding_idx is None else ids != embedding.padding_idx

    def add_rows(gradient: Tensor) -> None:
        if weight.grad is None:
            weight.grad = torch.zeros_like(weight)
        weight.grad.index_add_(0, ids[kept], gradient.reshape(len(ids), -1)[kept])

    leaf = output.detach().requires_grad_()
    leaf.register_hook(add_rows)
    return leaf
