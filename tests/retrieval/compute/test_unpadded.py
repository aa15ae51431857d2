"""Attention without padding is used only where it is what the model computes, whatever the size of the model's numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from support.checkpoints import save
from torch import Tensor

from retrieval.compute import cpu_attention, low_precision, unpadded
from retrieval.compute.probe import agree, probe_batch

TAKEN = ["Bert", "Roberta", "XLMRoberta", "Camembert", "Electra"]
REFUSED = ["MPNet", "DebertaV2", "DistilBert", "RoFormer", "ModernBert", "Albert", "Llama"]


def opened(folder: Path, attention: str = "eager") -> Any:
    return transformers.AutoModel.from_pretrained(folder, attn_implementation=attention).eval()


@torch.inference_mode()
def states(model: Any) -> Tensor:
    ids, mask, _ = probe_batch(model)
    return model(input_ids=ids, attention_mask=mask).last_hidden_state[mask.bool()].float()


@pytest.mark.parametrize("scale", [1.0, 1e-4])
@pytest.mark.parametrize("name", TAKEN)
def test_models_of_berts_kind_are_packed(tmp_path: Path, name: str, scale: float) -> None:
    """Prevents: a fast path that is lost, or whose states are others, for models of large and of small numbers."""
    model = opened(save(tmp_path, name))
    with torch.no_grad():
        model.encoder.layer[-1].output.LayerNorm.weight.mul_(scale)
        model.encoder.layer[-1].output.LayerNorm.bias.mul_(scale)
    expected = states(model)
    assert unpadded.install(model)
    torch.testing.assert_close(states(model), expected, rtol=1e-3, atol=1e-5 * scale)


@pytest.mark.parametrize("name", REFUSED)
def test_an_attention_of_its_own_is_never_packed(tmp_path: Path, name: str) -> None:
    """Prevents: texts that see each other, since the model never asks for the attention that keeps them apart."""
    model = opened(save(tmp_path, name))
    expected = states(model)
    assert not unpadded.install(model)
    assert torch.equal(states(model), expected)


@pytest.mark.parametrize("scale", [1e-2, 1e-5])
def test_mpnet_of_small_numbers_is_refused_too(tmp_path: Path, scale: float) -> None:
    """Prevents: a tolerance in absolute numbers, within which the vectors of such a model are right whatever it computes."""
    model = opened(save(tmp_path, "MPNet"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(scale)
    assert not unpadded.install(model)


def test_every_layer_must_ask_for_it(tmp_path: Path) -> None:
    """Prevents: one layer with an attention of its own among many that are packed, too small a difference to be seen."""
    model = opened(save(tmp_path, "Bert", num_hidden_layers=6))

    class Own(torch.nn.Module):
        def forward(self, hidden_states: Tensor, *unused: Any, **more: Any) -> tuple[Tensor, None]:
            return hidden_states + 1e-3 * hidden_states.mean(1, keepdim=True), None

    model.encoder.layer[3].attention = Own()
    assert not unpadded.install(model)


@pytest.mark.parametrize("option", [{"sliding_window": 8}, {"softcap": 30.0}, {"s_aux": torch.ones(2)}, {"is_causal": True}])
def test_what_the_kernel_does_not_compute_is_refused(option: dict[str, Any]) -> None:
    """Prevents: a window, a cap, a sink or a direction of attention that is passed over."""
    part = torch.randn(1, 2, 5, 4)
    unpadded._current = unpadded.Pack(torch.tensor([0, 2, 5], dtype=torch.int32), 3, torch.arange(5))
    try:
        unpadded._attention(torch.nn.Identity(), part, part, part, None, 0.5)
        with pytest.raises(NotImplementedError):
            unpadded._attention(torch.nn.Identity(), part, part, part, None, 0.5, **option)
        with pytest.raises(NotImplementedError):
            unpadded._attention(torch.nn.Identity(), part, part, part, torch.zeros(1, 1, 5, 5), 0.5)
    finally:
        unpadded._current = None


def test_bf16_is_within_the_tolerance(tmp_path: Path) -> None:
    """Prevents: a tolerance that real rounding exceeds, so that no model is packed on a GPU."""
    model = opened(save(tmp_path, "Bert", num_hidden_layers=12), attention="sdpa")
    low_precision.lower_precision(model, torch.bfloat16, pack=False)
    assert unpadded.install(model)


def test_agreement_is_a_share_of_the_results_own_size() -> None:
    """Prevents: any result accepted for a model whose numbers are small, and a right one refused where they are large."""
    vectors = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    for scale in (1e-6, 1.0, 1e6):
        assert agree(vectors * scale * 1.0005, vectors * scale, within=1e-3)
        assert not agree(vectors.flip(0) * scale, vectors * scale, within=1e-3)
        assert not agree(vectors[:, 0] * scale * 1.01, vectors[:, 0] * scale, within=1e-3)
    assert not agree(vectors * torch.nan, vectors, within=1e-3)


@pytest.mark.parametrize("scale", [1.0, 1e-5])
def test_a_wrong_cpu_attention_is_seen_at_any_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: float) -> None:
    """Prevents: the same tolerance in the twin of this check, on CPUs: vectors of 1e-5 are within 1e-3 of any others."""
    folder, attention = save(tmp_path, "Bert"), cpu_attention.register_cpu_attention()
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation=attention).eval()

    @torch.inference_mode()
    def vectors(ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        return model(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0] * scale

    cpu_attention.check_attention(model, check=vectors)
    assert model.config._attn_implementation == attention
    monkeypatch.setattr(cpu_attention, "_attention", lambda query, key, value, mask, scaling: value.transpose(1, 2).contiguous())
    cpu_attention.check_attention(model, check=vectors)
    assert model.config._attn_implementation != attention
