"""Models of many kinds, made ready for inference on a CPU: right as the plain ones."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from retrieval.compute import cpu_attention, low_precision
from retrieval.compute.precision import cpu_computes_bf16
from retrieval.compute.probe import Check, probe_batch

SIZES = {
    "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 128, "pad_token_id": 0,
}  # fmt: skip
BART = {"d_model": 64, "encoder_ffn_dim": 96, "decoder_ffn_dim": 96} | {
    f"{side}_{what}": 4 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")
}
KINDS: dict[str, dict[str, Any]] = {
    "Bert": {},
    "DistilBert": {"dim": 64, "n_layers": 4, "n_heads": 4, "hidden_dim": 96},
    "MPNet": {},  # adds the mask to its scores itself, and multiplies results in fp32 with those of a layer
    "RoFormer": {"embedding_size": 64},  # the same, behind angles in fp32
    "ModernBert": {"global_attn_every_n_layers": 2, "local_attention": 16},  # windows of attention
    "NomicBert": {},  # queries and keys turned by angles in fp32
    "MobileBert": {"hidden_act": "gelu", "embedding_size": 32, "intra_bottleneck_size": 32},  # a layer stack within each layer
    "XLM": {"emb_dim": 64, "n_layers": 4, "n_heads": 4, "n_words": 300},  # an attention of its own
    "Bart": BART,  # keys of another text
}


def model_of(kind: str) -> Any:
    """Random weights, large enough that padding which is not masked shows."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**SIZES, **KINDS[kind]})
    attention = cpu_attention.register_cpu_attention()
    try:
        model = transformers.AutoModel.from_config(config, attn_implementation=attention)
    except ValueError:
        model = transformers.AutoModel.from_config(config)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(4)
    return model.eval()


def vectors_of(model: Any) -> Check:
    @torch.inference_mode()
    def vectors(ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        states = model(input_ids=ids, attention_mask=mask).last_hidden_state.float() * mask.unsqueeze(-1)
        return torch.nn.functional.normalize(states.sum(1) / mask.sum(1, keepdim=True), dim=-1)

    return vectors


@pytest.mark.medium
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_model_gives_what_each_text_gives_alone(kind: str, precision: str) -> None:
    """Prevents: padding that is seen, an activation that is lost, another attention than the model's own, a traceback out of torch."""
    if precision == "bf16" and not cpu_computes_bf16():
        pytest.skip("this processor has no bf16")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_of(kind)
    ids, mask, segments = probe_batch(model)
    vectors = vectors_of(model)
    lengths = mask.sum(1).tolist()
    model.set_attn_implementation("eager")
    alone = torch.cat([vectors(ids[row : row + 1, :length], mask[row : row + 1, :length], segments) for row, length in enumerate(lengths)])
    model.set_attn_implementation(cpu_attention.CPU_ATTENTION if model._can_set_attn_implementation() else "eager")
    low_precision.apply(model, precision=precision, check=vectors, option="embed.precision")
    tolerance = 1e-5 if precision == "fp32" else 0.01
    torch.testing.assert_close(vectors(ids, mask, segments), alone, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kind", ["MPNet", "RoFormer"])
def test_layers_that_are_not_packed_hand_on_fp32_too(kind: str) -> None:
    """Prevents: a model refused on a GPU, or under torch.compile, that runs in low precision on a CPU."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = model_of(kind)
    model.set_attn_implementation("eager")
    vectors, probe = vectors_of(model), probe_batch(model)
    expected = vectors(*probe)
    low_precision.lower_precision(model, torch.bfloat16, pack=False)
    with pytest.raises(RuntimeError):  # as they are, they do not run: the way around it is needed
        vectors(*probe)
    low_precision.make_it_run(model, check=vectors, option="embed.precision")
    torch.testing.assert_close(vectors(*probe), expected, rtol=0, atol=0.01)
