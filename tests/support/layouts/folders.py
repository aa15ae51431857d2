"""What sentence-transformers writes beside a transformers folder: modules, their settings and weights; old layout and that of 6.x."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.checkpoints import write_json
from support.layouts.tokenizers import ids_of

Change = Callable[[Path], None]
OLD = "sentence_transformers.models.{}"
NEW = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
    "LogitScore": "sentence_transformers.cross_encoder.modules.logit_score.LogitScore",
}
FLAGS = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
IDENTITY = "torch.nn.modules.linear.Identity"


def module_list(folder: Path, *modules: tuple[str, str], new: bool = False) -> None:
    """modules.json of (kind, path)."""
    listed = [
        {"idx": number, "name": str(number), "path": path, "type": kind if "." in kind else NEW[kind] if new else OLD.format(kind)}
        for number, (kind, path) in enumerate(modules)
    ]
    write_json(folder / "modules.json", listed)


def dense(
    folder: Path, given: int, out: int, *, bias: bool = True, activation: str = "torch.nn.modules.activation.Tanh", **names: str
) -> None:
    generator = torch.Generator().manual_seed(out)
    weights = {"linear.weight": torch.randn(out, given, generator=generator) / math.sqrt(given)}
    if bias:
        weights["linear.bias"] = 0.1 * torch.randn(out, generator=generator)
    write_json(
        folder / "config.json", {"in_features": given, "out_features": out, "bias": bias, "activation_function": activation, **names}
    )
    save_file(weights, folder / "model.safetensors")


def embedder(
    pooling: str = "mean",
    *,
    size: int = 64,
    denses: Sequence[tuple[int, dict[str, Any]]] = (),
    normalize: bool = False,
    longest: int | None = 512,
    prompts: Mapping[str, str] | None = None,
    new: bool = False,
    include_prompt: bool = True,
    lower: bool = False,
    inside: Mapping[str, Any] | None = None,
    outside: Mapping[str, Any] | None = None,
) -> Change:
    """A student's files. `inside` is of sentence_bert_config.json, `outside` of config_sentence_transformers.json."""

    def change(folder: Path) -> None:
        modules = [("Transformer", ""), ("Pooling", "1_Pooling")]
        now = size
        for out, words in denses:
            modules.append(("Dense", f"{len(modules)}_Dense"))
            dense(folder / modules[-1][1], now, out, **words)
            now = out
        if normalize:
            modules.append(("Normalize", f"{len(modules)}_Normalize"))
            write_json(folder / modules[-1][1] / "config.json", {})
        module_list(folder, *modules, new=new)
        flags = {
            f"pooling_mode_{flag}": flag.removesuffix("_token").removesuffix("_tokens") == pooling or flag == pooling for flag in FLAGS
        }
        modern = {"embedding_dimension": size, "pooling_mode": pooling}
        shape = modern if new else {"word_embedding_dimension": size, **flags}
        write_json(folder / "1_Pooling" / "config.json", {**shape, "include_prompt": include_prompt})
        write_json(
            folder / "sentence_bert_config.json",
            {**(reader() if new else {"max_seq_length": longest, "do_lower_case": lower}), **(inside or {})},
        )
        versions = {"sentence_transformers": "5.1.0", "transformers": "4.56.0", "pytorch": "2.8.0"}
        written = {
            "prompts": dict(prompts or {}),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine" if normalize else None,
            **(outside or {}),
        }
        write_json(folder / "config_sentence_transformers.json", {"__version__": versions, **written})

    return change


def reader(task: str = "feature-extraction", output: str = "token_embeddings", *, chat: bool = False, **more: Any) -> dict[str, Any]:
    """sentence_bert_config.json of sentence-transformers 6."""
    state = {"method": "forward", "method_output_name": "last_hidden_state" if task == "feature-extraction" else "logits"}
    modality = {"text": state, **({"message": {**state, "format": "flat"}} if chat else {})}
    return {"transformer_task": task, "modality_config": modality, "module_output_name": output, **more}


def cross_encoder_settings(folder: Path, **more: Any) -> None:
    """config_sentence_transformers.json of a CrossEncoder."""
    versions = {"sentence_transformers": "5.4.0", "transformers": "5.2.0", "pytorch": "2.10.0"}
    common = {"__version__": versions, "model_type": "CrossEncoder", "prompts": {}, "default_prompt_name": None, "activation_fn": IDENTITY}
    write_json(folder / "config_sentence_transformers.json", {**common, **more})


def classifier_chain(*, chat: bool = False, path: str = "", **settings: Any) -> Change:
    """A CrossEncoder of one Transformer, with or without a chat template of query and document."""

    def change(folder: Path) -> None:
        module_list(folder, ("Transformer", path), new=True)
        write_json(folder / path / "sentence_bert_config.json", reader("sequence-classification", "scores", chat=chat))
        cross_encoder_settings(folder, **settings)

    return change


def answer_chain(tokenizer: str, true: str, false: str | None, **settings: Any) -> Change:
    """A CrossEncoder of a causal language model and LogitScore."""

    def change(folder: Path) -> None:
        module_list(folder, ("Transformer", ""), ("LogitScore", "1_LogitScore"), new=True)
        ids = {"true_token_id": ids_of(tokenizer)[true], "false_token_id": ids_of(tokenizer)[false] if false else None}
        score = {**ids, "module_input_name": "causal_logits"}
        write_json(folder / "1_LogitScore" / "config.json", score)
        words = {"chat_template": {"add_generation_prompt": True}}
        write_json(folder / "sentence_bert_config.json", reader("text-generation", "causal_logits", chat=True, processing_kwargs=words))
        cross_encoder_settings(folder, **settings)

    return change


def ettin_chain(folder: Path) -> None:
    """A CrossEncoder of an encoder, cls pooling, Dense with GELU, LayerNorm, and Dense to one score."""
    chain = ("Transformer", ""), ("Pooling", "1_Pooling"), ("Dense", "2_Dense"), ("LayerNorm", "3_LayerNorm"), ("Dense", "4_Dense")
    module_list(folder, *chain, new=True)
    write_json(folder / "1_Pooling" / "config.json", {"embedding_dimension": 64, "pooling_mode": "cls", "include_prompt": True})
    own = "sentence_embedding"
    gelu = "torch.nn.modules.activation.GELU"
    dense(folder / "2_Dense", 64, 64, bias=False, activation=gelu, module_input_name=own, module_output_name=own)
    write_json(folder / "3_LayerNorm" / "config.json", {"dimension": 64})
    generator = torch.Generator().manual_seed(3)
    norm = {"norm.weight": 1 + 0.2 * torch.randn(64, generator=generator), "norm.bias": 0.2 * torch.randn(64, generator=generator)}
    save_file(norm, folder / "3_LayerNorm" / "model.safetensors")
    dense(folder / "4_Dense", 64, 1, activation=IDENTITY, module_input_name=own, module_output_name="scores")
    write_json(folder / "sentence_bert_config.json", reader())
    cross_encoder_settings(folder)
