from __future__ import annotations

import pytest
import torch

from trainer.cpu.embedding_gradient import add_gradient_by_row


class Scaled(torch.nn.Embedding):
    """As Gemma's."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return super().forward(ids) * 6.0


def test_what_does_more_than_look_up_keeps_its_gradient() -> None:
    """Prevents: word embeddings of Gemma trained by a gradient without the factor that its vectors have."""
    embedding = Scaled(5, 3)
    add_gradient_by_row(embedding)
    embedding(torch.tensor([1, 1, 2])).sum().backward()
    assert embedding.weight.grad is not None and embedding.weight.grad[:, 0].tolist() == [0, 12, 6, 0, 0]


@pytest.mark.parametrize("padding", [None, 0])
def test_gradient_is_that_of_autograd(padding: int | None) -> None:
    """Word embeddings that get no gradient, or padding that gets one: the rest of the model still learns."""
    torch.manual_seed(0)
    plain = torch.nn.Embedding(50, 4, padding_idx=padding, dtype=torch.float64)
    by_row = torch.nn.Embedding(50, 4, padding_idx=padding, dtype=torch.float64)
    by_row.load_state_dict(plain.state_dict())
    add_gradient_by_row(by_row)
    target = torch.randn(3, 7, 4, dtype=torch.float64)
    for ids in (torch.randint(0, 50, (3, 7)), torch.zeros(3, 7, dtype=torch.long)):  # repeated words, and a second micro-batch
        for embedding in (plain, by_row):
            ((embedding(ids) - target) ** 2).sum().backward()
    assert plain.weight.grad is not None and by_row.weight.grad is not None
    torch.testing.assert_close(by_row.weight.grad, plain.weight.grad, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        assert torch.equal(by_row(ids), plain(ids))
