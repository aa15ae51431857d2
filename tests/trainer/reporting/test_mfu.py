"""What a training step computes, of which models that read more than text keep the sizes within another configuration."""

from __future__ import annotations

import transformers
from support.checkpoints import GEMMA2, SIZES

from trainer.reporting.mfu import training_flop


def test_sizes_within_another_configuration() -> None:
    """Prevents: an AttributeError at the first step that a person sees, after the model was embedded with and its shards made."""
    text = transformers.EmbeddingGemma2TextConfig(**{**SIZES, **GEMMA2})
    whole = transformers.EmbeddingGemma2Config(text_config=text.to_dict(), vision_config=None, audio_config=None)
    alone, inside = transformers.EmbeddingGemma2TextModel(text), transformers.EmbeddingGemma2Model(whole)
    assert training_flop(inside, [7, 20]) == training_flop(alone, [7, 20]) > 0
