"""Large models in the number format of their files: the same bits as opened in fp32, in less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.adapters import save_adapter
from support.checkpoints import WORDS, change_weights, save
from torch import nn

from retrieval.compute import low_precision, stored_precision
from retrieval.compute.precision import cpu_computes_bf16
from retrieval.teachers.causal_lm import AnswerHead
from retrieval.teachers.cross_encoder import TorchCrossEncoder
from retrieval.teachers.heads import ClassifierHead, Head
from retrieval.teachers.pair_tokens import PairTokenizer
from retrieval.teachers.scoring import score_pairs

PAIRS = [(" ".join(WORDS[n : n + 3]), " ".join(WORDS[n : 3 * n])) for n in range(2, 30)]
HEADS: dict[str, Head] = {"causal": AnswerHead(20, 30), "classifier": ClassifierHead()}
needs_bf16 = pytest.mark.skipif(not cpu_computes_bf16(), reason="this processor would emulate bf16")


def save_stored(folder: Path, name: str, kind: torch.dtype, *, causal: bool, norms: torch.dtype | None = None, **changed: Any) -> Path:
    """A checkpoint in a low number format; `norms` is that of its vectors."""
    save(folder, name, causal=causal, head=not causal, **changed)
    return change_weights(
        folder, lambda tensors: {name: part.to(kind if part.ndim > 1 or norms is None else norms) for name, part in tensors.items()}
    )


def logits(folder: Path, head: Head, precision: str) -> NDArray[np.float32]:
    tokenizer = PairTokenizer(folder, max_tokens=100)
    model = TorchCrossEncoder(folder, precision=precision, device="cpu", batch_tokens=500, head=head)
    return score_pairs(model, tokenizer.encode(PAIRS), pad_id=tokenizer.pad_id)


@needs_bf16
@pytest.mark.medium
@pytest.mark.parametrize("kind", ["causal", "classifier"])
@pytest.mark.parametrize("name", ["Qwen2", "Qwen3", "Llama", "Gemma2", "Gemma3Text"])
def test_the_logits_are_those_of_a_model_opened_in_fp32(tmp_path: Path, name: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: weights, scales or biases rounded twice, and logits of today's teachers that change by a bit."""
    folder = save_stored(tmp_path / "model", name, torch.bfloat16, causal=kind == "causal")
    found = logits(folder, HEADS[kind], "bf16")
    monkeypatch.setattr(type(HEADS[kind]), "keeps_stored", lambda self, folder: False)
    assert np.array_equal(found, logits(folder, HEADS[kind], "bf16"))


@needs_bf16
@pytest.mark.medium
@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "embed_tokens", "lm_head"]])
def test_an_adapter_is_rounded_once(tmp_path: Path, targets: str | list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: the change of an adapter rounded to the format of its base before the sum is, which doubles the error of bf16."""
    base = save_stored(tmp_path / "base", "Qwen3", torch.bfloat16, causal=True, tie_word_embeddings=False)
    adapter = save_adapter(tmp_path / "adapter", base, auto="AutoModelForCausalLM", target_modules=targets, task_type="CAUSAL_LM")
    found = logits(adapter, HEADS["causal"], "bf16")
    monkeypatch.setattr(AnswerHead, "keeps_stored", lambda self, folder: False)
    assert np.array_equal(found, logits(adapter, HEADS["causal"], "bf16"))


@pytest.mark.parametrize(("kind", "norms"), [(torch.bfloat16, torch.float32), (torch.float16, None), (torch.float32, None)])
def test_large_weights_keep_the_format_of_their_file(tmp_path: Path, kind: torch.dtype, norms: torch.dtype | None) -> None:
    """Prevents: 16 GB of weights that take 32; weights stored in fp32 that are rounded."""
    folder = save_stored(tmp_path / "model", "Qwen2", kind, causal=True, norms=norms, tie_word_embeddings=False)
    with stored_precision.kept(folder):
        model = AnswerHead(20, 30).open(folder, trusted=False, ways=[{}]).backbone
    kinds = {name: weight.dtype for name, weight in model.named_parameters()}
    large = {"model.embed_tokens.weight", *(name for name in kinds if name.endswith("proj.weight"))}
    assert len(large) == 1 + 2 * 7
    assert all(found == (kind if name in large else torch.float32) for name, found in kinds.items())


def test_stored_layers_compute_as_plain_ones_and_refuse_what_these_refuse() -> None:
    """Prevents: a product in bf16 where one in fp32 was meant; the rows of an output matrix in another order."""
    plain = nn.Linear(8, 40_000)
    plain.weight = nn.Parameter(plain.weight.bfloat16().float(), requires_grad=False)
    layer = nn.Linear(8, 40_000)
    layer.weight, layer.bias = nn.Parameter(plain.weight.bfloat16(), requires_grad=False), plain.bias
    layer.__class__ = stored_precision.StoredLinear
    values = torch.randn(3, 5, 8)
    torch.testing.assert_close(layer(values), plain(values))
    with pytest.raises(RuntimeError):
        layer(values.bfloat16())
    stack = nn.ModuleList([nn.Sequential(layer)])
    low_precision.lower_precision(stack, torch.bfloat16, pack=False)
    lowered = stack[0][0]  # type: ignore[index]
    assert isinstance(lowered, low_precision.LowPrecisionLinear) and lowered.weight.data_ptr() == layer.weight.data_ptr()


@needs_bf16
def test_a_class_that_cannot_compute_so_is_opened_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a teacher of today refused since its class reads a weight's number format."""
    folder = save_stored(tmp_path / "model", "Qwen3", torch.bfloat16, causal=True)
    found = logits(folder, HEADS["causal"], "bf16")

    def fails(self: Any, values: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("expected m1 and m2 to have the same dtype")

    monkeypatch.setattr(stored_precision.StoredLinear, "forward", fails)
    assert np.array_equal(found, logits(folder, HEADS["causal"], "bf16"))
