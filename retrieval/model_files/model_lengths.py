"""How many tokens a checkpoint can read, from its configuration files alone."""

from __future__ import annotations

from pathlib import Path

from data.errors import UserError
from retrieval.model_files.files import read_json

# Their position ids begin after the padding id, so `max_position_embeddings` counts padding_idx + 1 places that no token can take
# (transformers, `create_position_ids_from_input_ids`).
_POSITIONS_AFTER_PADDING = (
    "roberta", "xlm-roberta", "xlm-roberta-xl", "camembert", "mpnet", "longformer", "data2vec-text", "roberta-prelayernorm", "xmod",
    "ibert",
)  # fmt: skip
_PADDING_ID = 1  # of all of them, where config.json does not say
_N_POSITIONS = ("gpt2", "openai-gpt", "gptj", "gpt_bigcode", "codegen", "ctrl")  # their name for it; T5's are relative


def most_positions(folder: Path) -> int | None:
    """The longest input in tokens, special ones included; None where config.json sets no limit.

    A model with relative positions alone (DeBERTa's `position_biased_input: false`) has none.
    """
    config = read_json(folder / "config.json")
    positions = config.get("n_positions" if config.get("model_type") in _N_POSITIONS else "max_position_embeddings")
    if not isinstance(positions, int) or positions <= 0 or config.get("position_biased_input") is False:
        return None
    if config.get("model_type") in _POSITIONS_AFTER_PADDING:
        padding = config.get("pad_token_id")
        return positions - 1 - (padding if isinstance(padding, int) else _PADDING_ID)
    return positions


def usual_length(folder: Path) -> int | None:
    """The length that sentence-transformers reads to where no file of its own says one; None where nothing does.

    The smaller of the tokenizer's `model_max_length` and the model's `max_position_embeddings` (its `Transformer.__init__`).
    """
    files = (("tokenizer_config.json", "model_max_length"), ("config.json", "max_position_embeddings"))
    named = [read_json(folder / name).get(key) for name, key in files]
    return min((int(length) for length in named if isinstance(length, int | float) and 0 < length < 1e9), default=None)  # 1e30: none


def check_length(tokens: int, folder: Path, *, option: str) -> None:
    """Refuse a length that the model of `folder` has no positions for: it would fail deep in a forward pass, at the first long text."""
    most = most_positions(folder)
    if most is not None and tokens > most:
        raise UserError(f"{option}={tokens}: the model in {folder} can read {most} tokens at most (its config.json); set {option}={most}")
