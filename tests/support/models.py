"""A tiny student and a tiny teacher with random weights, and the words that they know."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

SYLLABLES = [f"{consonant}{vowel}" for consonant in "bcdfghjklmnprstvwxyz" for vowel in "aeiou"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *SYLLABLES, *(f"##{syllable}" for syllable in SYLLABLES)]


@dataclass(frozen=True)
class Models:
    """Folders of a student and a teacher."""

    student: Path
    teacher: Path


def _save_tokenizer(folder: Path) -> None:
    from transformers import BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A student (sentence-transformers folder, mean pooling) and a teacher (one output)."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    folder = tmp_path_factory.mktemp("models")
    sizes = {
        "vocab_size": len(VOCABULARY), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 128, "initializer_range": 0.2,
    }  # fmt: skip
    torch.manual_seed(0)
    BertModel(BertConfig(**sizes), add_pooling_layer=False).save_pretrained(folder / "student")
    torch.manual_seed(1)
    BertForSequenceClassification(BertConfig(**sizes, num_labels=1)).save_pretrained(folder / "teacher")
    for name in ("student", "teacher"):
        _save_tokenizer(folder / name)
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    listed = [{"idx": n, "name": str(n), "path": p, "type": f"sentence_transformers.models.{k}"} for n, (p, k) in enumerate(modules)]
    (folder / "student" / "modules.json").write_text(json.dumps(listed))
    (folder / "student" / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "student" / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return Models(folder / "student", folder / "teacher")
