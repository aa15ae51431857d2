"""Cross-encoders of sentence-transformers that are chains of modules, laid out file by file as version 6 saves them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from support.checkpoints import change_json, save, write_json

CLASSES = {
    "Transformer": "sentence_transformers.base.modules.transformer.Transformer",
    "Pooling": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
    "Dense": "sentence_transformers.base.modules.dense.Dense",
    "LayerNorm": "sentence_transformers.sentence_transformer.modules.layer_norm.LayerNorm",
    "Normalize": "sentence_transformers.base.modules.normalize.Normalize",
    "Dropout": "sentence_transformers.sentence_transformer.modules.dropout.Dropout",
    "WordWeights": "sentence_transformers.sentence_transformer.modules.word_weights.WordWeights",
}
TRANSFORMER = {
    "transformer_task": "feature-extraction",
    "modality_config": {"text": {"method": "forward", "method_output_name": "last_hidden_state"}},
    "module_output_name": "token_embeddings",
}

Module = tuple[str, dict[str, Any]]  # kind, and what its config.json has besides the usual


def pooling(mode: str | list[str], size: int = 32, **changed: Any) -> Module:
    return "Pooling", {"embedding_dimension": size, "pooling_mode": mode, "include_prompt": True, **changed}


def dense(inward: int, outward: int, activation: str = "activation.GELU", *, bias: bool = True, **names: Any) -> Module:
    """`activation` is below torch.nn.modules."""
    given = {"in_features": inward, "out_features": outward, "bias": bias, "activation_function": f"torch.nn.modules.{activation}"}
    return "Dense", {**given, "module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding", **names}


def scores(size: int = 32, outputs: int = 1, **names: Any) -> Module:
    """The Dense that ends a cross-encoder."""
    return dense(size, outputs, "linear.Identity", module_output_name="scores", **names)


# That of the Ettin rerankers.
ETTIN = [pooling("cls"), dense(32, 32, bias=False), ("LayerNorm", {"dimension": 32}), scores()]


def save_chain(
    folder: Path, *modules: Module, architecture: str = "ModernBert", path: str = "", seed: int = 0, segments: bool = False, **config: Any
) -> Path:
    """A chain behind a Transformer, which lies in `path`; `config` is of its config.json. `segments`: the model is given them."""
    inner = folder / path
    save(inner, architecture, seed=seed, **config)
    write_json(inner / "sentence_bert_config.json", TRANSFORMER)
    if segments:
        change_json(inner / "tokenizer_config.json", model_input_names=["input_ids", "token_type_ids", "attention_mask"])
    listed = [{"idx": 0, "name": "0", "path": path, "type": CLASSES["Transformer"]}]
    generator = torch.Generator().manual_seed(seed + 1)
    for number, (kind, settings) in enumerate(modules, 1):
        name = f"{number}_{kind}"
        listed.append({"idx": number, "name": str(number), "path": name, "type": CLASSES[kind]})
        write_json(folder / name / "config.json", settings)
        if weights := _weights(kind, settings, generator):
            save_file(weights, folder / name / "model.safetensors")
    write_json(folder / "modules.json", listed)
    own = {
        "__version__": {"sentence_transformers": "6.2.0", "transformers": "5.23.0", "pytorch": "2.13.0"}, "model_type": "CrossEncoder",
        "prompts": {}, "default_prompt_name": None, "activation_fn": "torch.nn.modules.activation.Sigmoid",
    }  # fmt: skip
    write_json(folder / "config_sentence_transformers.json", own)
    return folder


def _weights(kind: str, settings: dict[str, Any], generator: torch.Generator) -> dict[str, torch.Tensor]:
    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    if kind == "LayerNorm":
        return {"norm.weight": 1 + drawn(settings["dimension"]) / 5, "norm.bias": drawn(settings["dimension"]) / 5}
    if kind != "Dense":
        return {}
    inward, outward = settings["in_features"], settings["out_features"]
    weights = {"linear.weight": drawn(outward, inward) / inward**0.5}
    if settings["bias"]:
        weights["linear.bias"] = drawn(outward) / 5
    if settings.get("use_residual") and inward != outward:
        weights["residual.weight"] = drawn(outward, inward) / inward**0.5
    return weights
