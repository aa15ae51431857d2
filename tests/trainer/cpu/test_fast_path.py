"""The fast passes against the plain model with autograd, for students of several architectures."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from retrieval.compute.precision import cpu_computes_bf16
from trainer.cpu.dropout import cpu_training
from trainer.cpu.fast_path import CpuBackend
from trainer.cpu.masks import seed_masks
from trainer.cpu.packing import packs

SIZES: dict[str, Any] = dict(
    vocab_size=80, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_position_embeddings=130,
    initializer_range=0.2, pad_token_id=0,
)  # fmt: skip
BACKBONES: dict[str, Any] = {
    "bert": lambda: transformers.BertModel(transformers.BertConfig(**SIZES), add_pooling_layer=False),
    "roberta": lambda: transformers.RobertaModel(transformers.RobertaConfig(**SIZES), add_pooling_layer=False),
    "mpnet": lambda: transformers.MPNetModel(transformers.MPNetConfig(**SIZES), add_pooling_layer=False),
    "distilbert": lambda: transformers.DistilBertModel(
        transformers.DistilBertConfig(
            vocab_size=80, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=130, initializer_range=0.2
        )
    ),
    "modernbert": lambda: transformers.ModernBertModel(
        transformers.ModernBertConfig(**SIZES, local_attention=8, attention_dropout=0.1, mlp_dropout=0.1)
    ),
}


class Student(nn.Module):
    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask.unsqueeze(-1).float()
        return (hidden.float() * weights).sum(1) / weights.sum(1)


def student(name: str) -> Student:
    torch.manual_seed(0)
    return Student(BACKBONES[name]())


def batch(sequences: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = (torch.arange(20) < torch.randint(2, 21, (sequences, 1), generator=generator)).long()
    return torch.randint(5, 80, mask.shape, generator=generator) * mask, mask


def gradient(model: nn.Module, *, precision: str = "fp32", cheap: bool = True) -> Tensor:
    """Of some loss with regard to all parameters, as one vector."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        if cheap:
            with cpu_training():
                vectors = model(*batch())
        else:
            vectors = model(*batch())
    (vectors[1:] @ vectors[0]).softmax(0)[0].log().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("name", BACKBONES)
def test_gradient_is_that_of_the_plain_model(name: str) -> None:
    """An architecture whose layers need more than they are given in a pack: the student learns from wrong vectors."""
    plain = student(name).eval()
    fast = copy.deepcopy(plain)
    names = list(fast.state_dict())
    CpuBackend(fast)
    assert not fast.training and list(fast.state_dict()) == names
    assert off(gradient(fast), gradient(plain, cheap=False)) < 1e-5
    assert packs(fast) == (name in ("bert", "roberta")), "others keep their padding"


@pytest.mark.parametrize("name", BACKBONES)
def test_dropout_repeats_and_is_none_of_pytorchs(name: str) -> None:
    """Micro-batches at the same time with a model that draws from PyTorch's one generator: a run that cannot be repeated."""
    model = student(name).train()
    backend = CpuBackend(model, workers=2)
    results = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        seed_masks(5)
        results.append(gradient(model))
    assert backend.at_once == 2 and torch.equal(*results)
    assert model.training


def test_a_model_with_randomness_of_its_own_has_one_worker() -> None:
    """The same, where it is so."""

    class Noisy(Student):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            vectors = super().forward(input_ids, attention_mask)
            return vectors + 1e-3 * torch.randn_like(vectors) if self.training else vectors

    torch.manual_seed(0)
    assert CpuBackend(Noisy(BACKBONES["bert"]()), workers=2).at_once == 1
    assert CpuBackend(student("bert"), workers=1).at_once == 1


def test_attention_that_is_not_scaled_dot_product_attention_is_not_packed() -> None:
    """A model set to another attention would look at all sequences of a pack at once."""
    torch.manual_seed(0)
    model = Student(transformers.BertModel(transformers.BertConfig(**SIZES, attn_implementation="eager"), add_pooling_layer=False)).eval()
    plain = copy.deepcopy(model)
    CpuBackend(model)
    assert not packs(model) and off(gradient(model), gradient(plain, cheap=False)) < 1e-5


@pytest.mark.skipif(not cpu_computes_bf16(), reason="this processor would emulate bf16")
@pytest.mark.parametrize("name", ["bert", "distilbert", "modernbert"])
def test_bf16_is_no_worse_than_autocast(name: str) -> None:
    """A sum in bf16 that autocast takes in fp32."""
    plain = student(name).eval()
    fast = copy.deepcopy(plain)
    CpuBackend(fast)
    exact = gradient(copy.deepcopy(plain).double(), cheap=False)
    assert off(gradient(fast, precision="bf16").double(), exact) < 1.2 * off(gradient(plain, precision="bf16", cheap=False).double(), exact)
