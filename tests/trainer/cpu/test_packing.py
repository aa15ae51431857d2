"""Packed layers against the padded model, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import AutoModel

from trainer.cpu import attention, dropout, packing
from trainer.cpu.dropout import cpu_training
from trainer.cpu.masks import keep_scale, seed_masks
from trainer.cpu.packing import Pack, make_pack, pack_layers, packs


@pytest.fixture(scope="module")
def padded(student: Path) -> Any:
    return AutoModel.from_pretrained(student, add_pooling_layer=False).double()


@pytest.fixture
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_BUCKET_TOKENS", 20)


def batch(lengths: list[int]) -> tuple[Tensor, Tensor]:
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 60, mask.shape, generator=torch.Generator().manual_seed(len(lengths)))
    return ids * mask, mask


def gradients(model: Any, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    states = model(input_ids=ids, attention_mask=mask).last_hidden_state * mask[..., None]
    (states * torch.linspace(-1, 2, states.numel()).view(states.shape)).sum().backward()
    return {"states": states.detach(), **{name: p.grad for name, p in model.named_parameters() if p.grad is not None}}


def assert_equal(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-10, msg=name)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 14), min_size=1, max_size=9))
def test_packed_is_padded(padded: Any, small_buckets: None, lengths: list[int]) -> None:
    """A sequence that looks at its neighbour in the pack, or padding that sends a gradient back."""
    packed = copy.deepcopy(padded).eval()
    pack_layers(packed)
    ids, mask = batch(lengths)
    with cpu_training():
        found = gradients(packed, ids, mask)
    assert_equal(found, gradients(padded.eval(), ids, mask))


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12))
def test_a_pack_holds_each_token_once(small_buckets: None, lengths: list[int]) -> None:
    """A token lost, or one of padding taken along."""
    _, mask = batch(lengths)
    pack = make_pack(mask)
    assert sorted(pack.tokens.tolist()) == mask.flatten().nonzero().flatten().tolist()
    values = torch.arange(len(pack.tokens)).view(-1, 1, 1)
    assert torch.equal(torch.cat([bucket.unpad(bucket.pad(values)) for bucket in pack.buckets]), values)
    for bucket in pack.buckets:
        cells = bucket.pad(pack.tokens.view(-1, 1, 1))[:, 0, :, 0]
        seen = torch.ones(cells.shape, dtype=torch.bool) if bucket.bias is None else bucket.bias[:, 0, 0] == 0
        for cell, real in zip(cells, seen, strict=True):  # the tokens of one sequence, in order, from its first
            own = cell[real]
            assert own[0] % mask.shape[1] == 0 and torch.equal(own, torch.arange(int(own[0]), int(own[-1]) + 1))
            assert len(own) == lengths[int(own[0]) // mask.shape[1]]


class GivenMasks(TorchFunctionMode):
    """Plain PyTorch, with dropout masks that are given: of hidden states, and [n, h, L, L] of attention weights."""

    def __init__(self, masks: Iterator[Tensor], p: float) -> None:
        super().__init__()
        self._masks, self._scale = masks, keep_scale(p)

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is functional.dropout:
            return torch.where(next(self._masks), args[0] * self._scale, 0.0)
        if func is functional.scaled_dot_product_attention:
            query, key, value = args
            scores = query @ key.transpose(2, 3) * kwargs["scale"]
            weights = scores.masked_fill(~kwargs["attn_mask"], -torch.inf).softmax(-1)
            return torch.where(next(self._masks), weights * self._scale, 0.0) @ value
        return func(*args, **(kwargs or {}))


def test_with_dropout_it_is_the_padded_model_with_the_same_masks(padded: Any, small_buckets: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask or scale that the way back applies otherwise than the way there: training still runs, towards something else."""
    lengths = [13, 4, 7, 7, 1, 10]
    ids, mask = batch(lengths)
    drawn: list[Tensor] = []
    original = dropout.keep_mask

    def recorded(shape: torch.Size, *, p: float) -> Tensor:
        drawn.append(original(shape, p=p))
        return drawn[-1]

    for module in (dropout, attention):
        monkeypatch.setattr(module, "keep_mask", recorded)
    packed = copy.deepcopy(padded).train()
    pack_layers(packed)
    seed_masks(11)
    with cpu_training():
        found = gradients(packed, ids, mask)
    masks = padded_masks(drawn, make_pack(mask), mask, layers=2, heads=4)
    with GivenMasks(iter(masks), p=0.1):
        assert_equal(found, gradients(padded.train(), ids, mask))


def padded_masks(drawn: list[Tensor], pack: Pack, mask: Tensor, *, layers: int, heads: int) -> list[Tensor]:
    """The masks of a packed pass as those of a padded one; padding is kept."""
    n, length = mask.shape
    assert len(pack.buckets) > 2 and len(drawn) == 1 + layers * (len(pack.buckets) + 2)
    rest = iter(drawn)
    masks = [next(rest) != 0]
    for _ in range(layers):
        weights = torch.ones(n, heads, length, length, dtype=torch.bool)
        for bucket in pack.buckets:
            own = next(rest).view(bucket.sequences, heads, bucket.longest, bucket.longest) != 0
            rows = bucket.pad(pack.tokens.view(-1, 1, 1))[:, 0, 0, 0] // length
            weights[rows, :, : bucket.longest, : bucket.longest] = own
        masks.append(weights)
        for _ in range(2):
            (hidden,) = next(rest)
            states = torch.ones(n * length, hidden.shape[-1], dtype=torch.bool)
            states[pack.tokens] = hidden != 0
            masks.append(states.view(n, length, -1))
    assert next(rest, None) is None
    return masks


def test_only_inside_its_context_and_until_undone(padded: Any) -> None:
    """Evaluation, saving and GPUs that meet a packed model unasked; a name of a parameter that changed."""
    model = copy.deepcopy(padded).eval()
    names = list(model.state_dict())
    undo = pack_layers(model)
    assert packs(model) and packs(torch.nn.Sequential(model)) and list(model.state_dict()) == names
    ids, mask = batch([3, 9])
    sizes = []
    model.encoder.layer[0].register_forward_pre_hook(lambda module, args: sizes.append(tuple(args[0].shape[:2])))
    model(input_ids=ids, attention_mask=mask)
    with cpu_training():
        model(input_ids=ids, attention_mask=mask)
    undo()
    with cpu_training():
        model(input_ids=ids, attention_mask=mask)
    assert sizes == [(2, 9), (1, 12), (2, 9)] and not packs(model)
