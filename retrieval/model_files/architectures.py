"""What config.json tells of a student's architecture: the class that opens it, and whether its tokens see those behind them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from retrieval.model_files.files import read_json, text_settings

# Encoders with a decoder of which the encoder is a model of its own, as in sentence-transformers' `_load_encoder_only_model`.
_ENCODERS_ALONE = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
# Encoders, unless config.json says `is_decoder`, whatever task the checkpoint was last saved for.
_ENCODERS = (
    "bert", "roberta", "xlm-roberta", "xlm-roberta-xl", "roberta-prelayernorm", "camembert", "electra", "ernie", "data2vec-text",
    "big_bird", "rembert", "roformer", "megatron-bert", "xmod", "bert-generation",
)  # fmt: skip


def student_class(folder: Path) -> str:
    """The class of transformers that opens a folder as an encoder of texts."""
    return _ENCODERS_ALONE.get(str(read_json(folder / "config.json").get("model_type")), "AutoModel")


def sees_backwards_only(config: dict[str, Any]) -> bool:
    """Whether a configuration says that it is a decoder's, and not that it sees in both directions."""
    text = text_settings(config)
    return bool(text.get("is_decoder")) and not _sees_both_ways(text)


def is_causal_language_model(folder: Path) -> bool:
    """Whether a folder holds a model that predicts the next token, whose last token has seen the whole text.

    By the name of its class, as sentence-transformers tells it: config.json of a model without its head does not say so.
    """
    config = read_json(folder / "config.json")
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else ""
    if not str(first).endswith("ForCausalLM") or _sees_both_ways(text_settings(config)):
        return False
    return config.get("model_type") not in _ENCODERS or bool(config.get("is_decoder"))


def _sees_both_ways(text: dict[str, Any]) -> bool:
    return text.get("is_causal") is False or bool(text.get("use_bidirectional_attention"))
