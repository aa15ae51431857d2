from __future__ import annotations

import threading

import pytest
import torch

from trainer.cpu.masks import drop, keep_mask, keep_scale, mask_stream, seed_masks


@pytest.mark.parametrize("p", [0.1, 0.25, 0.5])
def test_share_and_scale(p: float) -> None:
    """A mask from bits of which one is always 0 drops another share, and shifts every activation."""
    seed_masks(0)
    mask = keep_mask(torch.Size((400, 4 * 250)), p=p)
    assert set(mask.unique().tolist()) == {0, -1}
    by_place = (mask == 0).view(-1, 4).double().mean(0)  # each of the four parts of a 64-bit word
    assert by_place.sub(p).abs().max() < 0.005
    assert keep_scale(p) == pytest.approx(1 / (1 - p), rel=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_drop_is_zero_or_the_value(dtype: torch.dtype) -> None:
    """A mask widened without its sign keeps half a number's bits; a NaN that is dropped must not come back."""
    values = torch.randn(7, 9).to(dtype)
    values[0, :2] = torch.nan
    mask = torch.where(torch.rand(7, 9) < 0.5, 0, -1).to(torch.int16)
    mask[0, 0] = 0
    assert torch.equal(drop(values, mask).nan_to_num(5.0), torch.where(mask == 0, 0, values).nan_to_num(5.0))
    assert drop(values, None) is values
    turned = values.t()
    assert torch.equal(drop(turned, mask.t()).nan_to_num(5.0), drop(values, mask).t().nan_to_num(5.0))


def test_stream_is_the_threads_own() -> None:
    """Two micro-batches at the same time that draw from one stream: masks depend on which thread was first."""
    shape = torch.Size((50, 50))
    seed_masks(3)
    first = [keep_mask(shape, p=0.3) for _ in range(3)]
    assert not torch.equal(first[0], first[1]), "each mask of a stream is another"
    seed_masks(4)
    assert not torch.equal(keep_mask(shape, p=0.3), first[0])

    seed_masks(3)
    assert torch.equal(keep_mask(shape, p=0.3), first[0])
    other = threading.Thread(target=lambda: (seed_masks(9), keep_mask(shape, p=0.3)))
    other.start()
    other.join()
    state = mask_stream.state
    assert torch.equal(keep_mask(shape, p=0.3), first[1])
    keep_mask(shape, p=0.3)
    mask_stream.state = state
    assert torch.equal(keep_mask(shape, p=0.3), first[1])
