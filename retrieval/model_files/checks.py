"""What the files of a transformers checkpoint tell about whether it can be used, before any work. No model is loaded, no torch
imported.

    student    whole weights | not quantised | a token table that has all of the tokenizer's ids
    teacher    as a student | texts read as they are (`retrieval.teachers.plain_pairs`); its outputs: `retrieval.teachers.heads`
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.errors import UserError
from retrieval.model_files.adapter_files import check_adapter
from retrieval.model_files.architectures import sees_backwards_only, student_class
from retrieval.model_files.files import (
    behind_transformer,
    is_adapter,
    module_list,
    read_json,
    text_settings,
    tokenizer_files,
    transformer_folder,
)
from retrieval.model_files.safetensors_headers import Shapes
from retrieval.model_files.weight_files import tensor_shapes, token_rows
from retrieval.teachers.pair_template import refuse_pair_text
from retrieval.teachers.plain_pairs import check_texts

# For teachers that are not opened here.
WAY_ROUND = "serve it and use teacher.backend=http, or import its logits (prep import) and use teacher.backend=imported"
_HEADS = ("classifier.", "score.", "classification_head.", "logits_proj.", "sequence_summary.", "head.")
_DECODER_HEAD = "score.weight"  # transformers' GenericForSequenceClassification and its forerunners
_LAYER_COUNTS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")  # the last three: DistilBERT, GPT-2 and Nomic, GPT-Neo


def check_student(folder: Path, *, pooling: str, layers: int | None, option: str) -> None:
    """Raises UserError where no student can be made of the folder, as far as its files tell; a model that is opened is tried out, too."""
    weights = transformer_folder(folder)
    config, _ = _check_files(weights, option=option)
    if student_class(weights) == "AutoModel":
        _refuse_encoder_decoder(weights, config, "give a model that is an encoder alone", option=option)
    if "cls" in pooling.split("+") and sees_backwards_only(config):
        raise UserError(f"{option}: {weights} {causal_decoder(option)}")
    text = text_settings(config)
    count = next((text[name] for name in _LAYER_COUNTS if isinstance(text.get(name), int)), None)
    if layers is not None and count is not None and layers > count:
        raise UserError(f"student.layers={layers}, but the model has {count} layers ({weights / 'config.json'})")


def causal_decoder(option: str) -> str:
    """Why cls pooling is refused, and the remedy, as the end of a sentence."""
    where = "student.pooling=lasttoken or student.pooling=mean" if option == "student.model" else "by the Pooling in its folder"
    return (
        "is a causal decoder, in which the first token sees no other: the vectors of all texts would be the same; "
        f"pool the last one or all ({where}), or give an encoder"
    )


def check_teacher(folder: Path, *, option: str) -> None:
    """Raises UserError where no teacher can be made of the folder, whatever its head (`retrieval.teachers.heads.find_head`)."""
    weights = transformer_folder(folder)
    config, _ = _check_files(weights, option=option, otherwise=f", or {WAY_ROUND}")
    _refuse_encoder_decoder(weights, config, WAY_ROUND, option=option)
    check_texts(folder, option=option)


def check_training_start(folder: Path, *, option: str) -> None:
    """Raises UserError where no cross-encoder can start from the folder: it holds one, or an encoder, which gets a new head.

    What an encoder's files say of templates and prompts is about another task.
    """
    if behind_transformer(folder) and read_json(folder / "config_sentence_transformers.json").get("model_type") == "CrossEncoder":
        kinds = ", ".join(module["type"].rsplit(".", 1)[-1] for module in module_list(folder))
        raise UserError(
            f"{option}: {folder} is a cross-encoder of several modules ({kinds}), which is a teacher only; start from one with a head of "
            "transformers, or from an encoder"
        )
    weights = transformer_folder(folder)
    config, _ = _check_files(weights, option=option)
    _refuse_encoder_decoder(weights, config, "start from an encoder, or from a cross-encoder with one output", option=option)
    if is_classifier(config):
        if (labels := label_count(config)) != 1:
            raise UserError(f"{option}: {weights} has {labels} outputs; start from one with a single output, or from an encoder")
        check_texts(folder, option=option)
        refuse_pair_text(folder, option=option)


def bare_decoder(folder: Path) -> bool:
    """Whether a teacher is a decoder with a scoring head, many of which were trained on a template that only their model card tells."""
    return _DECODER_HEAD in tensor_shapes(folder, option="teacher.model")


def check_token_rows(folder: Path, rows: Any, *, option: str) -> None:
    """Raises UserError where the tokenizer has ids beyond the `rows` of the model's token table."""
    count = tokenizer_files(folder).rows
    if isinstance(rows, int) and count > rows:
        raise UserError(
            f"{option}: the tokenizer in {folder} has ids up to {count - 1:,}, the model has embeddings for {rows:,} tokens; "
            "give the tokenizer that belongs to the model, or enlarge the model (resize_token_embeddings) and train the new rows"
        )


def _check_files(weights: Path, *, option: str, otherwise: str = "") -> tuple[dict[str, Any], Shapes]:
    """Weights, configuration and tokenizer of a transformers folder. Returns the configuration and the shapes of all tensors.

    `otherwise` is one more way out for a model that is quantised.
    """
    check_adapter(weights, option=option)
    config = read_json(weights / "config.json")
    if not is_adapter(weights) and not (weights / "config.json").is_file():
        raise UserError(f"{option}: {weights} holds no config.json, it is not a transformers checkpoint")
    if not isinstance(config.get("model_type"), str | None):
        raise UserError(f"{option}: {weights / 'config.json'} says model_type={json.dumps(config['model_type'])}, a name is expected there")
    if not (config.get("model_type") or config.get("auto_map")):
        raise UserError(f"{option}: {weights / 'config.json'} names no model_type, so it is not a transformers checkpoint")
    for key in ("quantization_config", "compression_config"):
        if settings := config.get(key):
            method = (settings.get("quant_method") if isinstance(settings, dict) else None) or "bitsandbytes"
            raise UserError(
                f"{option}: {weights} is quantised ({key} in its config.json: {method}), which is not supported; give the model as it was "
                f"before, in fp32, bf16 or fp16{otherwise}"
            )
    shapes = tensor_shapes(weights, option=option)
    check_token_rows(weights, token_rows(shapes) or config.get("vocab_size"), option=option)
    return config, shapes


def architectures(config: dict[str, Any]) -> list[str]:
    """The classes that a config.json names."""
    named = config.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def has_head(folder: Path) -> bool:
    """Whether a transformers folder says that it is a cross-encoder; an encoder gets a new head."""
    return is_classifier(read_json(folder / "config.json"))


def is_classifier(config: dict[str, Any]) -> bool:
    """Whether a config.json names the class of a sequence classifier."""
    return any("SequenceClassification" in name for name in architectures(config))


def label_count(config: dict[str, Any]) -> int:
    """Outputs as transformers counts them: `num_labels`, else entries of `id2label`, else 2 (`PreTrainedConfig.__post_init__`)."""
    given, names = config.get("num_labels"), config.get("id2label")
    return given if isinstance(given, int) else len(names) if isinstance(names, dict) else 2


def other_model(config: dict[str, Any], shapes: Shapes) -> str | None:
    """What a checkpoint is that is no sequence classifier. One whose class is an encoder's, or not said, is known by its head."""
    name = next(iter(architectures(config)), "")
    if "For" in name or name.endswith("LMHeadModel"):
        return f"a model of another task ({name})"
    if any(tensor.startswith(_HEADS) for tensor in shapes):
        return None
    return f"an encoder without a head ({name or 'its config.json names no architectures'})"


def _refuse_encoder_decoder(weights: Path, config: dict[str, Any], needed: str, *, option: str) -> None:
    """Their heads read the state at the end token, which a batch of ours need not have (T5, BART)."""
    if config.get("is_encoder_decoder"):
        name = next(iter(architectures(config)), config.get("model_type"))
        raise UserError(f"{option}: {weights} is an encoder with a decoder ({name}), which is not supported; {needed}")
