"""The first layers of a model: saved, and opened again as the model that it was in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from support.checkpoints import GEMMA2, SIZES, change_json, save
from support.student_folders import TEXTS, assert_equal, encoder_of, lay_out, peer

from data.config.settings import Student
from data.errors import UserError
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.first_layers import keep_first_layers
from retrieval.models.student import resolve_student

LONG = [" ".join(["ba be bi bo bu"] * 18), *TEXTS]  # past the windows of attention


@pytest.mark.medium
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("architecture", ["Bert", "DistilBert", "MPNet", "ModernBert", "Gemma3Text", "Qwen3", "Mistral"])
def test_cut_saved_and_opened_again(tmp_path: Path, architecture: str, layers: int) -> None:
    """Prevents: a whole training that cannot be saved, since `layer_types` still names all layers; or that is saved as another model."""
    size: dict[str, Any] = {"num_hidden_layers": 4, **({"n_layers": 4} if architecture == "DistilBert" else {})}
    if architecture == "Gemma3Text":
        size["layer_types"] = ["sliding_attention", "full_attention"] * 2
    inner = save(tmp_path / "weights", architecture, **size)
    if architecture == "Mistral":  # sentence-transformers pads by the tokenizer
        change_json(inner / "tokenizer_config.json", pad_token="</s>")
    folder = lay_out(tmp_path / "m", inner, normalize=True)
    ours = encoder_of(folder, layers=layers, query_tokens=40, passage_tokens=100)
    DualEncoder(ours.spec).save(tmp_path / "saved")
    again = encoder_of(tmp_path / "saved")
    np.testing.assert_array_equal(again.passages(LONG), ours.passages(LONG))
    assert again.model.backbone.config.num_hidden_layers == layers
    assert again.spec.tokenizer_digest == ours.spec.tokenizer_digest
    assert_equal(again, peer(tmp_path / "saved"))
    whole = encoder_of(folder, query_tokens=40, passage_tokens=100)
    assert np.abs(whole.passages(LONG) - ours.passages(LONG)).max() > 0.01


def test_every_list_with_an_entry_for_each_layer_is_cut() -> None:
    """Prevents: layers that turn their queries by the entry of another one, in SmolLM3's `no_rope_layers`."""
    config = transformers.SmolLM3Config(
        **SIZES | {"num_hidden_layers": 4}, num_key_value_heads=2, no_rope_layers=[1, 0, 0, 1], pad_token_id=0
    )
    model = transformers.SmolLM3Model(config)
    keep_first_layers(model, 3)
    assert (config.no_rope_layers, len(config.layer_types), config.num_hidden_layers) == ([1, 0, 0], 3, 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: transformers.BartModel(transformers.BartConfig(
            vocab_size=9, d_model=8, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2, decoder_attention_heads=2,
            encoder_ffn_dim=8, decoder_ffn_dim=8, max_position_embeddings=16)), "BartModel has 2 stacks"),
        (lambda: transformers.AlbertModel(transformers.AlbertConfig(
            vocab_size=9, embedding_size=8, hidden_size=8, num_attention_heads=2, intermediate_size=8)), "AlbertModel has 0 stacks"),
    ],
)  # fmt: skip
def test_what_has_no_layers_of_its_own_is_refused(make: Any, message: str) -> None:
    """Prevents: the encoder cut and the decoder not."""
    with pytest.raises(UserError, match=message):
        keep_first_layers(make(), 1)


def test_layers_of_different_sizes_are_refused() -> None:
    """Prevents: a folder that is saved and cannot be opened, for a table of layers that are no longer there."""
    config = transformers.EmbeddingGemma2TextConfig(**{**SIZES, **GEMMA2})
    with pytest.raises(UserError, match="layers of different sizes"):
        keep_first_layers(transformers.EmbeddingGemma2TextModel(config), 3)


def test_a_stack_that_is_not_the_layers_is_refused(tmp_path: Path) -> None:
    """Prevents: a list that only has the name of the layers cut in their place."""
    student = DualEncoder(resolve_student(Student(model=str(save(tmp_path / "m", "Bert")))))
    student.backbone.config.num_hidden_layers = 7
    with pytest.raises(UserError, match="2 modules and 7 layers"):
        keep_first_layers(student.backbone, 1)
