from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from trainer.dropout import CheapDropout, dropped


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5])
def test_share_and_scale(p: float) -> None:
    """A mask from bits of which one is always 0 drops another share, and shifts every activation."""
    torch.manual_seed(0)
    mask, scale = dropped(torch.Size((400, 4 * 250)), p=p)
    by_place = mask.view(-1, 4).double().mean(0)  # each of the four 16-bit parts of a draw
    assert by_place.sub(p).abs().max() < 0.005
    assert scale == pytest.approx(1 / (1 - p), rel=1e-4)


def test_dropout_of_a_model_is_replaced_and_repeats() -> None:
    """Masks that do not follow the seed break resume; dropout in eval mode breaks everything."""
    module, values = torch.nn.Dropout(0.3), torch.ones(200, 300, requires_grad=True)
    with CheapDropout():
        torch.manual_seed(5)
        first = module(values)
        torch.manual_seed(5)
        assert torch.equal(first, module(values))
        torch.manual_seed(6)
        assert not torch.equal(first, module(values))
        assert module.eval()(values) is values or torch.equal(module(values), values)
    torch.manual_seed(5)
    mask, scale = dropped(values.shape, p=0.3)
    assert torch.equal(first.detach(), torch.where(mask, 0.0, scale))
    first.sum().backward()
    assert values.grad is not None and torch.equal(values.grad, first.detach())


@pytest.mark.parametrize("kind", ["none", "bool", "float"])
def test_attention_is_the_documented_formula(kind: str) -> None:
    """An attention with a lost mask looks at padding."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, 5, 8, dtype=torch.float64) for _ in range(3))
    keep = torch.rand(2, 1, 1, 5) < 0.7
    keep[..., 0] = True
    bias = torch.zeros(keep.shape, dtype=torch.float64).masked_fill(~keep, -1e300)
    mask = {"none": None, "bool": keep, "float": bias}[kind]
    with CheapDropout():
        torch.manual_seed(1)
        found = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=0.2, scale=0.7)
        plain = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.manual_seed(1)
    gone, scale = dropped(torch.Size((2, 3, 5, 5)), p=0.2)
    weights = (query @ key.transpose(-2, -1) * 0.7 + (0 if mask is None else bias)).softmax(-1)
    torch.testing.assert_close(found, torch.where(gone, 0.0, weights * scale) @ value)
    torch.testing.assert_close(plain, functional.scaled_dot_product_attention(query, key, value, attn_mask=mask))
