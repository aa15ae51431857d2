"""Checkpoint folders that hold little more than their files say: made in milliseconds, for checks that open no model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np

LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:aaaa\nsize 90868376\n"
SEQUENCE_CLASSIFIER: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "id2label": {"0": "LABEL_0"},
    "max_position_embeddings": 128,
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def copy_tokenizer(source: Path, target: Path) -> None:
    for name in TOKENIZER:
        if (source / name).is_file():
            shutil.copy(source / name, target / name)


def vocabulary_size(source: Path) -> int:
    return len(json.loads((source / "tokenizer.json").read_text())["model"]["vocab"])


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def change_json(path: Path, **values: Any) -> None:
    write_json(path, {**(json.loads(path.read_text()) if path.is_file() else {}), **values})


def checkpoint(folder: Path, tokenizer: Path, *, config: dict[str, Any] | None = None, tensors: tuple[str, ...] = ()) -> Path:
    """A folder with config.json, a token table that fits the tokenizer of the folder `tokenizer`, and further tensors of no meaning."""
    from safetensors.numpy import save_file

    folder.mkdir(parents=True)
    copy_tokenizer(tokenizer, folder)
    write_json(folder / "config.json", SEQUENCE_CLASSIFIER if config is None else config)
    table = np.zeros((vocabulary_size(tokenizer), 4), np.float32)
    others = {name: np.zeros((1, 4), np.float32) for name in tensors}
    save_file({"bert.embeddings.word_embeddings.weight": table, **others}, folder / "model.safetensors")
    return folder


def without_marks(source: Path, target: Path) -> Path:
    """A copy of a model whose tokenizer knows no [MASK] and no [SEP]."""
    shutil.copytree(source, target)
    change_json(target / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast", mask_token=None, sep_token=None)
    (target / "special_tokens_map.json").unlink(missing_ok=True)
    return target
