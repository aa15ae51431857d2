"""A model as the trainer uses it: on its device, with what makes its steps cheap."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from data.config.settings import Train
from retrieval.compute.allocator import tune_allocator
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.padding import check_padding, results_of
from retrieval.teachers.pair_scorer import PairScorer
from trainer.cpu.dropout import checkpoint_contexts
from trainer.cpu.embedding_gradient import add_gradient_by_row
from trainer.cpu.fast_path import speed_up
from trainer.cpu.workers import Workers

Model = TypeVar("Model", DualEncoder, PairScorer)


def prepared(make: Callable[[], Model], settings: Train) -> Model:
    """The starting point of a run, which `make` opens, on its device and in train mode."""
    if settings.device == "cpu":
        tune_allocator()
    model = make().to(settings.device)
    check_padding(model.backbone, check=results_of(model), option=model.option)
    model.train()
    freeze_key_biases(model.backbone)
    if isinstance(model, PairScorer):
        freeze_output_bias(model.backbone)
    if settings.activation_checkpointing:
        ways: dict[str, Any] = {"use_reentrant": False}
        if computes_on_cpu(settings):
            ways["context_fn"] = checkpoint_contexts
        model.backbone.activation_checkpointing_enable(activation_checkpointing_kwargs=ways)
    if settings.compile:
        model.backbone.compile(dynamic=True)
    elif settings.device == "cpu":
        add_gradient_by_row(model.backbone.get_input_embeddings())
    return model


def open_workers(model: DualEncoder | PairScorer, settings: Train) -> Workers:
    """What computes this process's micro-batches of the model."""
    return speed_up(model, workers=settings.workers) if computes_on_cpu(settings) else Workers(model)


def computes_on_cpu(settings: Train) -> bool:
    """Whether passes are those of `trainer.cpu.fast_path`; a compiled model has its own."""
    return settings.device == "cpu" and not settings.compile


_ABSOLUTE_POSITIONS = ("bert", "roberta", "xlm-roberta", "camembert", "distilbert", "mpnet", "electra")
_KEY_BIASES = ("attention.self.key.bias", "attention.k_lin.bias", "attention.attn.k.bias")


def freeze_key_biases(backbone: Any) -> None:
    """Leave the biases of attention's keys as they are: they add the same number to all of a query's scores, which softmax takes away.

    Their exact gradient is 0 (not with rotated positions, where a bias counts). Autograd's is rounding noise, of which AdamW, dividing
    by its size, makes steps like any others: parameters that drift at random, and runs by one and by two processes that differ.
    """
    if backbone.config.model_type in _ABSOLUTE_POSITIONS:
        for name, parameter in backbone.named_parameters():
            if name.endswith(_KEY_BIASES):
                parameter.requires_grad_(False)


def freeze_output_bias(backbone: Any) -> None:
    """Leave the bias of a cross-encoder's output as it is: it adds the same number to all logits of a list, which softmax takes away.

    Like the biases of attention's keys it has no gradient but rounding noise.
    """
    for module in backbone.modules():
        if isinstance(module, nn.Linear) and module.out_features == 1 and module.bias is not None:
            module.bias.requires_grad_(False)
