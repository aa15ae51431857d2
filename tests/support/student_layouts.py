"""Tiny students in the layouts of public embedding models: `make(name, folder)`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.checkpoints import change_json, change_weights, save, save_t5
from support.student_folders import DROPOUT, dense, lay_out, layer_norm

INSTRUCTION = {
    "prompts": {"query": "Instruct: find ba\nQuery:", "document": ""},
    "default_prompt_name": None,
    "similarity_fn_name": "cosine",
}
PREFIXES = {"prompts": {"query": "query: ", "document": "passage: "}}


def _qwen3_embedding(folder: Path) -> Path:
    """A causal decoder by its last token, an instruction, weights in bf16, the causal language model's name without its head."""
    inner = save(folder / "weights", "Qwen3", tie_word_embeddings=True)
    change_weights(inner, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    change_json(inner / "config.json", architectures=["Qwen3ForCausalLM"], dtype="bfloat16")
    change_json(inner / "tokenizer_config.json", padding_side="left", chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    tables = json.loads((inner / "tokenizer.json").read_text())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    tables["post_processor"] = {"type": "Sequence", "processors": [byte_level, tables["post_processor"]]}
    (inner / "tokenizer.json").write_text(json.dumps(tables))
    return lay_out(folder / "m", inner, pooling="lasttoken", normalize=True, prompts=INSTRUCTION, model_max_length=100)


def _e5_mistral(folder: Path) -> Path:
    inner = save(folder / "weights", "Mistral")
    change_json(inner / "tokenizer_config.json", pad_token="</s>", padding_side="left")
    prompts = {"prompts": {"web_search_query": "Instruct: ba\nQuery: "}}
    return lay_out(folder / "m", inner, pooling="lasttoken", normalize=True, prompts=prompts, sentence_bert={"max_seq_length": 100})


def _embedding_gemma(folder: Path) -> Path:
    inner = save(folder / "weights", "Gemma3Text", use_bidirectional_attention=True, layer_types=["sliding_attention", "full_attention"])
    return lay_out(
        folder / "m", inner, normalize=True, prompts={"prompts": {"query": "task: ba | query: ", "document": "title: none | text: "}},
        behind=[dense(32, 64, bias=False), dense(64, 32, bias=False)], sentence_bert={"max_seq_length": 100},
    )  # fmt: skip


def _gtr(folder: Path) -> Path:
    return lay_out(
        folder / "m", save_t5(folder / "weights"), normalize=True, behind=[dense(32, 24, bias=False)], sentence_bert={"max_seq_length": 100}
    )


def _instructor(folder: Path) -> Path:
    inner = save_t5(folder / "weights", feed_forward_proj="gated-gelu")
    prompts = {"prompts": {"query": "ba be zu: ", "document": "zo: "}, "similarity_fn_name": "cosine"}
    return lay_out(
        folder / "m", inner, normalize=True, prompts=prompts, include_prompt=False, behind=[dense(32, 24, bias=False)], model_max_length=100
    )


def _labse(folder: Path) -> Path:
    behind = [dense(32, 32, "activation.Tanh")]
    return lay_out(folder / "m", save(folder / "weights", "Bert"), pooling="cls", normalize=True, behind=behind, model_max_length=100)


def _gte_qwen2(folder: Path) -> Path:
    inner = save(folder / "weights", "Qwen2")
    change_json(inner / "config.json", architectures=["Qwen2ForCausalLM"], is_causal=False)
    return lay_out(folder / "m", inner, pooling="lasttoken", normalize=True, prompts=INSTRUCTION, model_max_length=100)


def _icl(folder: Path) -> Path:
    """A decoder by its last token that leaves its prompts out; its tokenizer ends texts with nothing."""
    inner = save(folder / "weights", "Llama")
    change_json(inner / "tokenizer_config.json", pad_token="</s>")
    tables = json.loads((inner / "tokenizer.json").read_text())
    tables["post_processor"]["single"].pop()
    (inner / "tokenizer.json").write_text(json.dumps(tables))
    return lay_out(
        folder / "m", inner, pooling="lasttoken", new=True, include_prompt=False, prompts={"prompts": {"query": "ba be "}},
        model_max_length=100,
    )  # fmt: skip


def _weighted(folder: Path) -> Path:
    inner = save(folder / "weights", "GPTNeoX")
    change_json(inner / "tokenizer_config.json", pad_token="<unk>")
    return lay_out(folder / "m", inner, pooling="weightedmean", sentence_bert={"max_seq_length": 100})


def _multilingual_e5(folder: Path) -> Path:
    return lay_out(folder / "m", save(folder / "weights", "XLMRoberta"), normalize=True, sentence_bert={"max_seq_length": 100})


def _bge_m3(folder: Path) -> Path:
    return lay_out(folder / "m", save(folder / "weights", "XLMRoberta"), pooling="cls", normalize=True, model_max_length=100)


def _modernbert(folder: Path) -> Path:
    inner = save(folder / "weights", "ModernBert")
    return lay_out(folder / "m", inner, prompts={**PREFIXES, "similarity_fn_name": "dot"}, model_max_length=100)


def _mt5(folder: Path) -> Path:
    return lay_out(folder / "m", save_t5(folder / "weights", family="MT5", whole=True), sentence_bert={"max_seq_length": 100})


def _everything(folder: Path) -> Path:
    """All kinds of modules at once, several poolings joined, the Transformer in a folder of its own."""
    behind = [dense(64, 32, "activation.GELU", residual=True), layer_norm(32), DROPOUT, dense(32, 32, residual=True)]
    inner, prompts = save(folder / "weights", "Bert"), {"prompts": {"query": "ba: ", "document": "zu zo: "}}
    return lay_out(
        folder / "m", inner, pooling="max+mean_sqrt_len_tokens", new=True, normalize=True, behind=behind, subfolder="0_Transformer",
        include_prompt=False, prompts=prompts, model_max_length=100,
    )  # fmt: skip


LAYOUTS: dict[str, Callable[[Path], Path]] = {
    "Qwen3-Embedding": _qwen3_embedding, "e5-mistral": _e5_mistral, "EmbeddingGemma": _embedding_gemma, "GTR": _gtr,
    "instructor": _instructor, "LaBSE": _labse, "gte-Qwen2": _gte_qwen2, "icl": _icl, "weighted mean": _weighted,
    "multilingual-e5": _multilingual_e5, "bge-m3": _bge_m3, "ModernBERT": _modernbert, "mT5": _mt5, "everything": _everything,
}  # fmt: skip
# What a prompt needs beside some words: byte-level tokens are many.
LENGTHS: dict[str, Any] = {"query_tokens": 60, "passage_tokens": 90}


def make(name: str, folder: Path) -> Path:
    """The folder of a layout, made below `folder`."""
    return LAYOUTS[name](folder)
