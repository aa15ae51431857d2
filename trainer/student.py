"""A model as the trainer uses it: on its device, with what makes its steps cheap."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any, TypeVar

from data.settings import Train
from retrieval.dual_encoder import DualEncoder
from retrieval.pair_scorer import PairScorer
from trainer.dropout import CheapDropout
from trainer.embedding_gradient import add_gradient_by_row

Model = TypeVar("Model", DualEncoder, PairScorer)


def prepared(model: Model, settings: Train) -> Model:
    """The starting point of a run, on its device and in train mode."""
    model = model.to(settings.device).train()
    freeze_key_biases(model.backbone)
    if settings.activation_checkpointing:
        # What is computed again must draw the masks of the first time, hence the same way of drawing.
        ways: dict[str, Any] = {"use_reentrant": False}
        if cheap_dropout(settings):
            ways["context_fn"] = lambda: (nullcontext(), CheapDropout())
        model.backbone.activation_checkpointing_enable(activation_checkpointing_kwargs=ways)
    if settings.compile:
        model.backbone.compile(dynamic=True)
    elif settings.device == "cpu":
        add_gradient_by_row(model.backbone.get_input_embeddings())
    return model


def cheap_dropout(settings: Train) -> bool:
    """Whether dropout is drawn as in `trainer.dropout`; a compiled model draws its own."""
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
