"""Weights that are cast once a step, against autocast that casts them in each pass."""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import nullcontext
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from data.config.settings import Objective
from trainer.input.stream import TrainingRow
from trainer.objective.plan import plan_batch
from trainer.processes.distributed import Distributed
from trainer.steps.backend import PlainBackend
from trainer.steps.gradients import StepSettings, accumulate_gradients
from trainer.steps.micro_batches import cut

SIZES: dict[str, Any] = dict(
    vocab_size=70, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=40,
    initializer_range=0.3,
)  # fmt: skip


class Casting(PlainBackend):
    """Autocast alone."""

    def step(self, encoders: Any, *, precision: str) -> Any:
        return nullcontext()


class Encoder(nn.Module):
    """A BERT with dropout, and a layer behind it that is used twice and computed in fp32 the second time."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False)
        self.head = nn.Linear(16, 16)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.head(self.backbone(input_ids, attention_mask).last_hidden_state)
        weights = attention_mask.unsqueeze(-1).float()
        vectors = (hidden.float() * weights).sum(1) / weights.sum(1)
        with torch.autocast(vectors.device.type, enabled=False):
            return self.head(vectors)


class Casts(TorchDispatchMode):
    """How often each parameter is cast to bf16."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._names = {parameter.data_ptr(): name for name, parameter in model.named_parameters()}
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function is torch.ops.aten._to_copy.default and kwargs.get("dtype") is torch.bfloat16 and args[0].data_ptr() in self._names:
            self.counts[self._names[args[0].data_ptr()]] += 1
        return function(*args, **kwargs)


def rows() -> list[TrainingRow]:
    chance = np.random.default_rng(0)

    def tokens() -> Any:
        return np.array([2, *chance.integers(5, 65, size=chance.integers(2, 12)), 3], dtype=np.int32)

    kinds, hub = (0, 1, 1, 2), tokens()
    return [
        TrainingRow(
            f"q{number}", tokens(), (tokens(), hub, tokens(), tokens()), kinds, tuple(f"{number}-{place}" for place in kinds),
            chance.normal(size=len(kinds)).astype(np.float32), 0.0,
        )
        for number in range(6)
    ]  # fmt: skip


def stepped(backend: PlainBackend, *, in_batch: Any, kept_tokens: int = 0) -> tuple[dict[str, Tensor | None], Counter[str], int]:
    """Gradients of two steps' sum with an update of the weights between them, casts of the second step, and its micro-batches."""
    work = plan_batch(rows(), objective=Objective(in_batch=in_batch, supervised_weight=0.3), share=Fraction(1))
    parts = cut(work, budget=60)
    settings = StepSettings(
        seed=1, score_scale=2.0, temperature=1.0, micro_batch_tokens=60, pad_id=0, device="cpu", precision="bf16", kept_tokens=kept_tokens
    )
    casts = Casts(backend.model)
    for step in range(2):
        casts.counts.clear()
        with casts:
            accumulate_gradients(backend, work, parts, step=step, settings=settings, processes=Distributed(), references={})
        with torch.no_grad():
            for parameter in backend.model.parameters():
                if parameter.requires_grad:
                    parameter.sub_(0.05 * parameter.grad)
    return {name: p.grad for name, p in backend.model.named_parameters()}, casts.counts, len(parts.groups) + len(parts.chunks)


@pytest.mark.medium
@pytest.mark.parametrize("what", ["none", "both", "checkpointed", "lora"])
def test_gradients_are_autocast_s_to_the_bit_with_one_cast_a_step(what: str) -> None:
    """Prevents: weights of the step before, gradients that are summed in bf16 or cut by a pass without a graph, and casts in each pass."""
    model = Encoder().train()
    if what == "checkpointed":
        model.backbone.activation_checkpointing_enable({"use_reentrant": False})
    if what == "lora":
        peft = pytest.importorskip("peft")
        model.requires_grad_(False)
        peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["query", "value"], lora_dropout=0.1), model.backbone)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=torch.Generator().manual_seed(1))
    in_batch = "none" if what == "none" else "both"
    plain, once = copy.deepcopy(model), copy.deepcopy(model)
    wanted, before, pieces = stepped(Casting(plain), in_batch=in_batch)
    found, counts, _ = stepped(PlainBackend(once), in_batch=in_batch)
    assert pieces > 4 and min(before.values()) > 4, "a cast in each pass"
    assert counts.keys() == before.keys() and set(counts.values()) == {1}
    for name, gradient in wanted.items():
        other = found[name]
        assert (gradient is None) == (other is None), name
        assert gradient is None or (other is not None and torch.equal(gradient, other)), name
    assert not any("forward" in vars(module) for module in once.modules()), "nothing is left of it after a step"
