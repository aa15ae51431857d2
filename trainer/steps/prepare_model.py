"""A model as the trainer uses it: on its device, in train mode, without parameters that only rounding would move."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from data.config.settings import Train
from retrieval.compute.allocator import tune_allocator
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.padding import check_padding, results_of
from retrieval.teachers.pair_scorer import PairScorer
from trainer.steps.attention_mask import whole_masks

Model = DualEncoder | PairScorer

_ABSOLUTE_POSITIONS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "electra")
_KEY_BIASES = ("attention.self.key.bias", "attention.k_lin.bias", "attention.attn.k.bias")


def prepared(make: Callable[[], Model], settings: Train) -> Model:
    """The starting point of a run, which `make` opens, on its device and in train mode."""
    if settings.device == "cpu":
        tune_allocator()
    model = make().to(settings.device)
    check_padding(model.backbone, check=results_of(model), option=model.option)
    if settings.device == "cuda" and not settings.compile:
        whole_masks(model)
    model.train()
    freeze_biases_without_gradient(model)
    if settings.activation_checkpointing:
        model.backbone.activation_checkpointing_enable({"use_reentrant": False})
    if settings.compile:
        model.backbone.compile(dynamic=True)
    return model


def freeze_biases_without_gradient(model: Model) -> None:
    """Leave biases as they are that add the same number to all that one softmax compares, which takes it away.

    Those are the biases of attention's keys (not with rotated positions, where a bias counts) and of a cross-encoder's output. Their exact
    gradient is 0. Autograd's is rounding noise, of which AdamW, dividing by its size, makes steps like any others: parameters that drift
    at random, and runs by one and by two processes that differ.
    """
    backbone: Any = model.backbone
    if backbone.config.model_type in _ABSOLUTE_POSITIONS:
        for name, parameter in backbone.named_parameters():
            if name.endswith(_KEY_BIASES):
                parameter.requires_grad_(False)
    if isinstance(model, PairScorer):
        for module in backbone.modules():
            if isinstance(module, nn.Linear) and module.out_features == 1 and module.bias is not None:
                module.bias.requires_grad_(False)
