"""Which models can be students: found out from config.json, or when they are opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import GEMMA2, SIZES, change_json, randomised, save, save_tokenizer
from support.student_folders import TEXTS, assert_equal, encoder_of, lay_out, peer

from data.config.settings import Student
from data.errors import UserError
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.student import resolve_student


def resolve(folder: Path, **words: Any) -> Any:
    return resolve_student(Student(model=str(folder), **words))


@pytest.mark.medium
@pytest.mark.parametrize("architecture", ["Qwen3", "Llama", "Gemma3Text", "GPT2"])
@pytest.mark.parametrize("words", [{}, {"pooling": "cls"}])
def test_a_causal_decoder_has_no_first_token_to_pool(tmp_path: Path, architecture: str, words: dict[str, Any]) -> None:
    """Prevents: 32 distinct vectors of 42 passages, since the first token of a decoder sees none behind it."""
    folder = save(tmp_path / "m", architecture)
    with pytest.raises(UserError, match=r"student\.model: \w+ is a causal decoder.*student.pooling=mean"):
        DualEncoder(resolve(folder, **words))
    DualEncoder(resolve(folder, pooling="mean"))
    vectors = encoder_of(folder, pooling="mean", query_tokens=8, passage_tokens=8).passages(
        [*(f"ba be {word}" for word in ("bi", "bo", "bu")), "zu"]
    )
    assert len(np.unique(vectors.round(4), axis=0)) == 4


def test_an_encoder_made_causal_is_one(tmp_path: Path) -> None:
    """Prevents: BERT with is_decoder taken for an encoder by its name."""
    folder = save(tmp_path / "m", "Bert", is_decoder=True)
    with pytest.raises(UserError, match="causal decoder"):
        resolve(folder)


@pytest.mark.medium
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_decoder_made_bidirectional_is_an_encoder(tmp_path: Path, pooling: str) -> None:
    """Prevents: LLM encoders (`is_causal: false`) refused for their model_type."""
    inner = save(tmp_path / "weights", "Llama")
    change_json(inner / "config.json", is_causal=False)
    folder = lay_out(tmp_path / "m", inner, pooling=pooling, normalize=True)
    change_json(folder / "tokenizer_config.json", pad_token="</s>")  # theirs pads by the tokenizer
    assert_equal(encoder_of(folder), peer(folder))


def test_an_encoder_with_a_decoder_is_refused_by_its_files(tmp_path: Path) -> None:
    """Prevents: a traceback out of transformers after the corpus was read."""
    folder = save(tmp_path / "m", "Bert")
    change_json(folder / "config.json", model_type="bart", is_encoder_decoder=True)
    with pytest.raises(UserError, match="is an encoder with a decoder"):
        resolve(folder)


def test_a_model_without_vectors_of_tokens_is_found_out(tmp_path: Path) -> None:
    """Prevents: an AttributeError for `last_hidden_state` in the first batch."""
    import torch
    import transformers

    folder = save(tmp_path / "m", "Bert")
    torch.manual_seed(0)
    config = transformers.DPRConfig(
        vocab_size=480, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48, max_position_embeddings=128
    )
    transformers.DPRQuestionEncoder(config).save_pretrained(folder)
    with pytest.raises(UserError, match="DPRQuestionEncoder gives no vectors of tokens"):
        DualEncoder(resolve(folder))


@pytest.mark.medium
@pytest.mark.parametrize("composite", [False, True])
def test_vectors_of_another_size_than_the_hidden_one(tmp_path: Path, composite: bool) -> None:
    """Prevents: room for 32 dimensions where the model gives 24, and a configuration within another one that nobody finds."""
    import transformers

    text = transformers.EmbeddingGemma2TextConfig(**{**SIZES, **GEMMA2})
    alone = randomised(transformers.EmbeddingGemma2TextModel(text), 0)
    folder = save_tokenizer(tmp_path / "weights", "t5")
    alone.save_pretrained(folder)
    wanted = lay_out(tmp_path / "text", folder, normalize=True, model_max_length=100)
    ours = encoder_of(wanted)
    assert ours.size == 24
    if not composite:
        assert_equal(ours, peer(wanted))
        return
    config = transformers.EmbeddingGemma2Config(text_config=text.to_dict(), vision_config=None, audio_config=None)
    whole = transformers.EmbeddingGemma2Model(config)
    whole.language_model.load_state_dict(alone.state_dict())
    whole.save_pretrained(save_tokenizer(tmp_path / "whole", "t5"))
    both = encoder_of(lay_out(tmp_path / "composite", tmp_path / "whole", normalize=True, model_max_length=100))
    np.testing.assert_allclose(both.passages(TEXTS), ours.passages(TEXTS), atol=1e-6)


@pytest.mark.medium
def test_the_text_part_of_a_model_that_sees_is_a_student(tmp_path: Path) -> None:
    """Prevents: sizes, layers and padding looked for beside the part that reads text (Qwen2-VL and its like)."""
    import torch
    import transformers

    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    text = {**SIZES, "num_key_value_heads": 2, "rope_parameters": rope, "pad_token_id": 2, "bos_token_id": 0, "eos_token_id": 1}
    vision = {"depth": 1, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
    config = transformers.Qwen2VLConfig(text_config=text, vision_config=vision, image_token_id=470, video_token_id=471)
    model = randomised(transformers.Qwen2VLModel(config), 0)
    model.save_pretrained(save_tokenizer(tmp_path / "weights", "qwen"))
    folder = lay_out(tmp_path / "m", tmp_path / "weights", pooling="lasttoken", normalize=True, model_max_length=100)
    ours = encoder_of(folder)
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1] for ids in ours.passage_tokens(TEXTS)]
    np.testing.assert_allclose(ours.passages(TEXTS), torch.nn.functional.normalize(torch.stack(alone), dim=-1), atol=1e-5)
    cut = encoder_of(folder, layers=1)
    DualEncoder(cut.spec).save(tmp_path / "saved")
    np.testing.assert_array_equal(encoder_of(tmp_path / "saved").passages(TEXTS), cut.passages(TEXTS))
    with pytest.raises(UserError, match=r"student.layers=3, but the model has 2 layers"):
        resolve(folder, layers=3, passage_tokens=90)


def test_more_layers_than_there_are_is_told_by_the_files(tmp_path: Path) -> None:
    """Prevents: a plan that works until the student is opened."""
    for number, architecture in enumerate(["Bert", "DistilBert", "ModernBert"]):
        folder = save(tmp_path / str(number), architecture)
        with pytest.raises(UserError, match=r"student.layers=9, but the model has \d layers"):
            resolve(folder, layers=9)
