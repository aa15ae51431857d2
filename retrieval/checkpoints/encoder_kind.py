"""Which transformers models give a text one vector per token that can be pooled: told from config.json alone, and tried out once loaded.

The lists tell the well-known ones before any work. What they do not know is found out by `encoder_size`, when the model is opened.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import UserError, first_line
from retrieval.checkpoints.files import read_json, text_settings

if TYPE_CHECKING:
    from torch import nn

# Models of two stacks whose encoder sentence-transformers takes out (its `_ENCODER_ONLY_MODELS`); AutoModel opens both.
_TWO_STACKS = frozenset(
    [
        "t5", "mt5", "umt5", "longt5", "switch_transformers", "udop", "t5gemma", "t5gemma2", "prophetnet", "blenderbot", "blenderbot-small",
        "m2m_100", "pegasus", "pegasus_x", "marian", "whisper", "moonshine",
    ]
)  # fmt: skip
_NO_TOKEN_VECTORS = {
    "dpr": "give one vector of their own for a text",
    "model2vec": "are a table of token vectors without a transformer",
    "clip": "are made for images and captions",
}
# The first token of a decoder sees nothing of the text behind it.
_DECODERS = frozenset(
    [
        "llama", "mistral", "ministral", "ministral3", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "qwen3_5",
        "qwen3_5_text", "gemma", "gemma2", "gemma3", "gemma3_text", "gemma3n", "gemma3n_text", "gemma4", "gemma4_text", "phi", "phi3",
        "phimoe", "gpt2", "gpt_neo", "gpt_neox", "gptj", "gpt_oss", "gpt_bigcode", "opt", "bloom", "falcon", "mpt", "olmo", "olmo2",
        "olmo3", "olmoe", "smollm3", "granite", "granitemoe", "cohere", "cohere2", "stablelm", "starcoder2", "nemotron", "exaone4", "glm",
        "glm4", "deepseek_v2", "deepseek_v3", "lfm2", "ernie4_5", "biogpt", "xglm", "codegen", "persimmon", "modernbert-decoder",
        "openai-gpt", "ctrl", "mamba", "mamba2", "rwkv",
    ]
)  # fmt: skip
_LAYER_COUNTS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")  # the last three: DistilBERT, GPT-2 and Nomic, GPT-Neo
_POSITION = "is a causal decoder, in which the first token sees no other: the vectors of all texts would be the same"


def check_kind(folder: Path, *, pooling: str, layers: int | None, option: str) -> None:
    """Raises UserError for a model that cannot be a student, and for more layers than it has, as far as config.json tells."""
    path = folder / "config.json"
    if not path.is_file():
        raise UserError(f"{option}: {folder} holds no config.json, it is not a transformers checkpoint")
    config = read_json(path)
    kind = config.get("model_type")
    if not isinstance(kind, str | None):
        raise UserError(f"{option}: {path} says model_type={json.dumps(kind)}, but a name is expected there")
    if kind in _TWO_STACKS:
        raise UserError(f"{option}: {path} names a {kind} model, an encoder with a decoder; give a model that is an encoder alone")
    if kind in _NO_TOKEN_VECTORS:
        raise UserError(f"{option}: {path} names a {kind} model; those {_NO_TOKEN_VECTORS[kind]}, and there is nothing to pool")
    if pooling == "cls" and _is_causal(config):
        raise UserError(f"{option}: {path} names a {kind} model, which {_POSITION}; {_mean_pooling(option)}")
    count = next((config[name] for name in _LAYER_COUNTS if isinstance(config.get(name), int)), None)
    if layers is not None and count is not None and layers > count:
        raise UserError(f"student.layers={layers}, but the model has {count} layers ({path})")


def _is_causal(config: dict[str, Any]) -> bool:
    said = text_settings(config)
    if said.get("is_causal") is False or said.get("use_bidirectional_attention"):
        return False
    return config.get("model_type") in _DECODERS or bool(said.get("is_decoder"))


def _mean_pooling(option: str) -> str:
    where = "student.pooling=mean" if option == "student.model" else "a Pooling by mean in its folder"
    return f"pool all tokens ({where}), or give an encoder"


def encoder_size(backbone: nn.Module, *, pooling: str, option: str) -> int:
    """Dimensions of the vectors that a loaded model gives for tokens, found by running it on two short texts.

    Raises UserError where it does not run on tokens and a mask, gives no vectors of tokens, or, with `pooling` cls, where the first one's
    does not depend on the last token.
    """
    import torch

    from retrieval.compute.cpu_attention import own_attention
    from retrieval.compute.probe import text_config

    name, device = type(backbone).__name__, next(backbone.parameters()).device
    try:
        vocabulary = text_config(backbone).vocab_size
        ids = (vocabulary // 2 + torch.tensor([[0, 1, 2, 3], [0, 1, 2, 4]], device=device)) % vocabulary
        with torch.no_grad(), own_attention(backbone):
            hidden = getattr(backbone(input_ids=ids, attention_mask=torch.ones_like(ids)), "last_hidden_state", None)
    except Exception as error:  # code of any model
        raise UserError(f"{option}: {name} does not run on the tokens of a text alone ({first_line(error)})") from error
    if hidden is None or hidden.shape[:2] != ids.shape:
        raise UserError(f"{option}: {name} gives no vectors of tokens (last_hidden_state), so that there is nothing to pool")
    if pooling == "cls" and torch.equal(hidden[0, 0], hidden[1, 0]):
        raise UserError(f"{option}: {name} {_POSITION}; {_mean_pooling(option)}")
    return int(hidden.shape[-1])
