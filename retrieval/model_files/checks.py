"""What the files of a transformers checkpoint tell about whether it can be used, before any work. No model is loaded, no torch
imported.

    student    whole weights | not quantised | a token table that has all of the tokenizer's ids
    teacher    as a student | one output | a plain pair as input (`retrieval.teachers.plain_pairs`)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from data.errors import UserError
from retrieval.model_files.adapter_files import check_adapter
from retrieval.model_files.files import is_adapter, read_json, role_tokens, text_settings, tokenizer_files, transformer_folder
from retrieval.model_files.safetensors_headers import Shapes
from retrieval.model_files.weight_files import tensor_shapes, token_rows
from retrieval.teachers.plain_pairs import ONE_OUTPUT, refuse_modules, refuse_templates

_HEADS = ("classifier.", "score.", "classification_head.", "logits_proj.", "sequence_summary.", "head.")
_DECODER_HEAD = "score.weight"  # transformers' GenericForSequenceClassification and its forerunners
_LAYER_COUNTS = ("num_hidden_layers", "n_layers", "n_layer", "num_layers")  # the last three: DistilBERT, GPT-2 and Nomic, GPT-Neo
_WITHOUT = {"mask_token": "dark_examples.mask_ratios=[]", "sep_token": "dark_examples.reinforced=false"}


def check_student(folder: Path, *, pooling: str, layers: int | None, option: str) -> None:
    """Raises UserError where no student can be made of the folder, as far as its files tell; a model that is opened is tried out, too."""
    weights = transformer_folder(folder)
    config, _ = _check_files(weights, option=option)
    _refuse_encoder_decoder(weights, config, "give a model that is an encoder alone", option=option)
    text = text_settings(config)
    if pooling == "cls" and text.get("is_decoder") and text.get("is_causal") is not False and not text.get("use_bidirectional_attention"):
        raise UserError(f"{option}: {weights} {causal_decoder(option)}")
    count = next((config[name] for name in _LAYER_COUNTS if isinstance(config.get(name), int)), None)
    if layers is not None and count is not None and layers > count:
        raise UserError(f"student.layers={layers}, but the model has {count} layers ({weights / 'config.json'})")


def causal_decoder(option: str) -> str:
    """Why cls pooling is refused, and the remedy, as the end of a sentence."""
    where = "student.pooling=mean" if option == "student.model" else "a Pooling by mean in its folder"
    return (
        "is a causal decoder, in which the first token sees no other: the vectors of all texts would be the same; "
        f"pool all tokens ({where}), or give an encoder"
    )


def check_teacher(folder: Path, *, option: str) -> None:
    """Raises UserError where the folder holds no cross-encoder with one output that reads plain pairs."""
    refuse_modules(folder, option=option)
    weights = transformer_folder(folder)
    config, shapes = _check_files(weights, option=option)
    _refuse_encoder_decoder(weights, config, option=option)
    own_code = "AutoModelForSequenceClassification" in (config.get("auto_map") or {})
    if not (own_code or _is_classifier(config)) and (other := _other_model(config, shapes)):
        raise UserError(
            f"{option}: {weights} is {other}, not a sequence classifier; {ONE_OUTPUT}. train.task=cross_encoder makes one of an encoder"
        )
    _refuse_labels(weights, config, ONE_OUTPUT, option=option)
    refuse_templates(folder, option=option)


def check_training_start(folder: Path, *, option: str) -> None:
    """Raises UserError where no cross-encoder can start from the folder: it holds one, or an encoder, which gets a new head.

    What an encoder's files say of templates and prompts is about another task.
    """
    weights = transformer_folder(folder)
    config, _ = _check_files(weights, option=option)
    _refuse_encoder_decoder(weights, config, option=option)
    if _is_classifier(config):
        _refuse_labels(weights, config, "start from one with a single output, or from an encoder", option=option)
        refuse_templates(folder, option=option)


def check_marks(folder: Path, *, option: str, masked: bool, mixed: bool, trusted: bool = False) -> None:
    """Raises UserError where a tokenizer has no token for the marks of the dark examples asked for.

    The tokenizer is loaded, in about three seconds, only where its files do not name the token: its class may have one.
    """
    needed = [role for role, asked in (("mask_token", masked), ("sep_token", mixed)) if asked]
    if role_tokens(folder).keys() >= set(needed):
        return
    from retrieval.models.tokenizer import Tokenizer

    tokenizer = Tokenizer(folder, trusted=trusted)
    lacking = [role for role in needed if tokenizer.role_token(role) is None]
    if lacking:
        raise UserError(
            f"{option}: the tokenizer in {folder} has no {' and no '.join(lacking)}, which the dark examples asked for need; take another "
            f"model, or leave these examples out: {' '.join(_WITHOUT[role] for role in lacking)}"
        )


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


def _check_files(weights: Path, *, option: str) -> tuple[dict[str, Any], Shapes]:
    """Weights, configuration and tokenizer of a transformers folder. Returns the configuration and the shapes of all tensors."""
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
                "before, in fp32, bf16 or fp16"
            )
    shapes = tensor_shapes(weights, option=option)
    check_token_rows(weights, token_rows(shapes) or config.get("vocab_size"), option=option)
    return config, shapes


def _architectures(config: dict[str, Any]) -> list[str]:
    named = config.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def has_head(folder: Path) -> bool:
    """Whether a transformers folder says that it is a cross-encoder; an encoder gets a new head."""
    return _is_classifier(read_json(folder / "config.json"))


def _is_classifier(config: dict[str, Any]) -> bool:
    return any("SequenceClassification" in name for name in _architectures(config))


def _refuse_labels(weights: Path, config: dict[str, Any], needed: str, *, option: str) -> None:
    """Outputs are counted as transformers does: `num_labels`, else entries of `id2label`, else 2 (`PreTrainedConfig.__post_init__`)."""
    given, names = config.get("num_labels"), config.get("id2label")
    labels = given if isinstance(given, int) else len(names) if isinstance(names, dict) else 2
    if labels != 1:
        raise UserError(f"{option}: {weights} has {labels} outputs; {needed}")


def _other_model(config: dict[str, Any], shapes: Shapes) -> str | None:
    """What a checkpoint is that is no sequence classifier. One whose class is an encoder's, or not said, is known by its head."""
    name = next(iter(_architectures(config)), "")
    if "For" in name or name.endswith("LMHeadModel"):
        return f"a model of another task ({name})"
    if any(tensor.startswith(_HEADS) for tensor in shapes):
        return None
    return f"an encoder without a head ({name or 'its config.json names no architectures'})"


def _refuse_encoder_decoder(weights: Path, config: dict[str, Any], needed: str = ONE_OUTPUT, *, option: str) -> None:
    """Their heads read the state at the end token, which a batch of ours need not have (T5, BART)."""
    if config.get("is_encoder_decoder"):
        name = next(iter(_architectures(config)), config.get("model_type"))
        raise UserError(f"{option}: {weights} is an encoder with a decoder ({name}), which is not supported; {needed}")
