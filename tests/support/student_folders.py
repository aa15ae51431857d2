"""Sentence-transformers folders laid out as some version saves them, and what to compare them with."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sentence_transformers import SentenceTransformer

from data.config.settings import Student
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.models.student import resolve_student

TEXTS = ["ba", "Ba BE bi", "", "zu [SEP] zo", "ÉBA be", *(" ".join(["ba", "cedi", "FO gu", "zaxe"][: 1 + n % 4] * n) for n in (3, 9, 30))]
OLD_NAMES = "sentence_transformers.models.{0}"
NEW_NAMES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
}


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(content))


def lay_out(
    folder: Path,
    weights: Path,
    *,
    pooling: str = "mean",
    normalize: bool = False,
    new: bool = False,
    prompts: dict[str, Any] | None = None,
    sentence_bert: dict[str, Any] | None = None,
    model_max_length: int | None = None,
    subfolder: str = "",
) -> Path:
    """A sentence-transformers folder around the weights and the tokenizer of `weights`, in the old layout or that of 6.x."""
    if folder.exists():
        shutil.rmtree(folder)
    inner = folder / subfolder
    inner.mkdir(parents=True)
    for path in weights.iterdir():
        if path.is_file() and path.name not in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
            shutil.copyfile(path, inner / path.name)
    tokenizer = json.loads((inner / "tokenizer_config.json").read_text())
    tokenizer.pop("model_max_length", None)
    write_json(inner / "tokenizer_config.json", {**tokenizer, **({"model_max_length": model_max_length} if model_max_length else {})})
    kinds = [(subfolder, "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * normalize
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": NEW_NAMES[kind] if new else OLD_NAMES.format(kind)}
        for n, (path, kind) in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    flags = {"pooling_mode_cls_token": pooling == "cls", "pooling_mode_mean_tokens": pooling == "mean", "pooling_mode_max_tokens": False}
    new_pooling = {"embedding_dimension": 32, "pooling_mode": pooling, "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", new_pooling if new else {"word_embedding_dimension": 32, **flags})
    if new and normalize:
        names = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
        write_json(folder / "2_Normalize" / "config.json", names)
    (folder / "2_Normalize").mkdir(exist_ok=True)
    if sentence_bert is not None:
        write_json(inner / "sentence_bert_config.json", sentence_bert)
    if prompts is not None:
        write_json(folder / "config_sentence_transformers.json", prompts)
    return folder


def encoder_of(folder: Path, **words: Any) -> TextEncoder:
    """Lengths as the folder says, unless they are given."""
    own = {"query_tokens": None, "passage_tokens": None}
    return TextEncoder(resolve_student(Student(model=str(folder), **{**own, **words})), precision="fp32", device="cpu", batch_tokens=256)


def peer(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.float32})


def assert_equal(ours: TextEncoder, theirs: SentenceTransformer) -> None:
    np.testing.assert_allclose(ours.queries(TEXTS), theirs.encode_query(TEXTS), atol=1e-5)
    np.testing.assert_allclose(ours.passages(TEXTS), theirs.encode_document(TEXTS), atol=1e-5)


def spoil(folder: Path, name: str, **changes: Any) -> None:
    write_json(folder / name, {**(json.loads((folder / name).read_text()) if (folder / name).is_file() else {}), **changes})


def module(folder: Path, kind: str, path: str = "3_More") -> None:
    listed = json.loads((folder / "modules.json").read_text())
    write_json(folder / "modules.json", [*listed, {"idx": 9, "name": "9", "path": path, "type": kind}])
