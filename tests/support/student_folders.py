"""Sentence-transformers folders laid out as some version saves them, and what to compare them with."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from support.model_files import write_json
from torch.nn.utils.rnn import pad_sequence

from data.config.settings import Student
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.models.student import resolve_student

TEXTS = ["ba", "Ba BE bi", "", "zu [SEP] zo", "ÉBA be", *(" ".join(["ba", "cedi", "FO gu", "zaxe"][: 1 + n % 4] * n) for n in (3, 9, 30))]
OLD_NAMES = "sentence_transformers.models.{0}"
NEW_NAMES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
    "Dropout": "sentence_transformers.sentence_transformer.modules.dropout.Dropout",
}
OLD_FLAGS = {
    "cls": "cls_token", "mean": "mean_tokens", "max": "max_tokens", "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean_tokens", "lasttoken": "lasttoken",
}  # fmt: skip


class Behind(NamedTuple):
    """A module behind the Pooling: its kind, config.json and weights."""

    kind: str
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]


def dense(inputs: int, outputs: int, activation: str = "linear.Identity", *, bias: bool = True, residual: bool = False) -> Behind:
    """A Dense whose weights are small enough for Tanh."""
    generator = torch.Generator().manual_seed(inputs + outputs)
    config = {"in_features": inputs, "out_features": outputs, "bias": bias, "activation_function": f"torch.nn.modules.{activation}"}
    tensors = {"linear.weight": torch.randn(outputs, inputs, generator=generator) / inputs}
    if bias:
        tensors["linear.bias"] = torch.randn(outputs, generator=generator)
    if residual and inputs != outputs:
        tensors["residual.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs
    return Behind("Dense", {**config, **({"use_residual": True} if residual else {})}, tensors)


def layer_norm(size: int) -> Behind:
    """A LayerNorm that does more than normalise."""
    generator = torch.Generator().manual_seed(size)
    return Behind("LayerNorm", {"dimension": size}, {f"norm.{name}": torch.randn(size, generator=generator) for name in ("weight", "bias")})


DROPOUT = Behind("Dropout", {"dropout": 0.3}, {})


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
    behind: Sequence[Behind] = (),
    include_prompt: bool = True,
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
    places = [(f"{place}_{module.kind}", module) for place, module in enumerate(behind, 2)]
    last = f"{2 + len(places)}_Normalize"
    kinds = [(subfolder, "Transformer"), ("1_Pooling", "Pooling"), *((path, module.kind) for path, module in places)]
    kinds += [(last, "Normalize")] * normalize
    for path, module in places:
        write_json(folder / path / "config.json", module.config)
        if module.tensors:
            save_file(module.tensors, folder / path / "model.safetensors")
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": NEW_NAMES[kind] if new else OLD_NAMES.format(kind)}
        for n, (path, kind) in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    modes = pooling.split("+")
    flags = {f"pooling_mode_{flag}": mode in modes for mode, flag in OLD_FLAGS.items()}
    flags = {**flags, **({} if include_prompt else {"include_prompt": False})}
    new_pooling = {"embedding_dimension": 32, "pooling_mode": pooling if len(modes) == 1 else modes, "include_prompt": include_prompt}
    write_json(folder / "1_Pooling" / "config.json", new_pooling if new else {"word_embedding_dimension": 32, **flags})
    if new and normalize:
        names = {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"}
        write_json(folder / last / "config.json", names)
    (folder / last).mkdir(exist_ok=True)
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


def padded(texts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """[n, L] token ids, 0 on the right, and the [n, L] mask."""
    rows = [torch.tensor(text) for text in texts]
    return pad_sequence(rows, batch_first=True), pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
