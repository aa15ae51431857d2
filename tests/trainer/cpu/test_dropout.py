from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from trainer.cpu.dropout import cpu_training
from trainer.cpu.masks import keep_mask, keep_scale, seed_masks


def test_dropout_of_a_model_is_replaced_and_repeats() -> None:
    """Masks that do not follow the seed break resume; dropout in eval mode breaks everything."""
    module, values = torch.nn.Dropout(0.3), torch.ones(200, 300, requires_grad=True)
    with cpu_training():
        seed_masks(5)
        first = module(values)
        seed_masks(5)
        assert torch.equal(first, module(values))
        assert not torch.equal(first, module(values))
        assert module.eval()(values) is values or torch.equal(module(values), values)
    seed_masks(5)
    mask = keep_mask(values.shape, p=0.3)
    assert torch.equal(first.detach(), torch.where(mask == 0, 0.0, keep_scale(0.3)))
    first.sum().backward()
    assert values.grad is not None and torch.equal(values.grad, first.detach())


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_attention_is_the_documented_formula(kind: str) -> None:
    """An attention with a lost mask looks at padding; a backward pass that is wrong by a factor still trains."""
    torch.manual_seed(0)
    parts = [torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    keep = torch.rand(2, 1, 1, 5) < 0.7
    keep[..., 0] = True
    bias = torch.zeros(keep.shape, dtype=torch.float64).masked_fill(~keep, -1e300)
    mask = {"none": None, "bool": keep, "float": bias}[kind]
    towards = torch.randn(2, 3, 5, 8, dtype=torch.float64)

    def gradients(result: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad((result * towards).sum(), parts)

    with cpu_training():
        seed_masks(1)
        found = functional.scaled_dot_product_attention(*parts, attn_mask=mask, dropout_p=0.2, scale=0.7)
        plain = functional.scaled_dot_product_attention(*parts, attn_mask=mask)
    seed_masks(1)
    kept = keep_mask(torch.Size((2 * 3, 5, 5)), p=0.2).view(2, 3, 5, 5) != 0
    query, key, value = parts
    weights = (query @ key.transpose(-2, -1) * 0.7 + (0 if mask is None else bias)).softmax(-1)
    wanted = torch.where(kept, weights * keep_scale(0.2), 0.0) @ value
    torch.testing.assert_close(found, wanted)
    for one, other in zip(gradients(found), gradients(wanted), strict=True):
        torch.testing.assert_close(one, other)
    torch.testing.assert_close(plain, functional.scaled_dot_product_attention(*parts, attn_mask=mask))


def test_attention_to_nothing_is_a_number() -> None:
    """NaN in padding, which reaches all parameters through a mean with weight 0."""
    parts = [torch.randn(1, 1, 3, 4, requires_grad=True) for _ in range(3)]
    mask = torch.tensor([[True, False, False], [True, True, False], [False, False, False]])[None, None]
    with cpu_training():
        result = functional.scaled_dot_product_attention(*parts, attn_mask=mask, dropout_p=0.2)
    result.sum().backward()
    assert result.isfinite().all() and all(part.grad is not None and part.grad.isfinite().all() for part in parts)


def test_checkpointed_layers_have_the_same_masks_again(student: Path) -> None:
    """A layer that is computed again with other masks, or outside of its pack: the gradient of a loss that nobody computed."""
    from transformers import AutoModel

    from trainer.cpu.fast_path import CpuBackend

    ids, mask = torch.randint(5, 60, (4, 9)), torch.ones(4, 9, dtype=torch.long)
    mask[1, 4:], mask[3, 2:] = 0, 0
    results = []
    for checkpointed in (False, True):
        model = _Encoder(AutoModel.from_pretrained(student, add_pooling_layer=False).double())
        if checkpointed:
            model.backbone.activation_checkpointing_enable({"use_reentrant": False})
        CpuBackend(model, workers=1)
        model.train()
        seed_masks(7)
        with cpu_training():
            vectors = model(ids, mask)
        vectors.square().sum().backward()
        results.append([vectors.detach(), *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


class _Encoder(torch.nn.Module):
    def __init__(self, backbone: torch.nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.backbone(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
