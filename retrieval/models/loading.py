"""The one way in which a transformers checkpoint is opened: all weights that the class computes with must come from the file.

transformers draws what a file lacks at random, and leaves out what a class has no place for, with a warning at most. Each load of such a
folder is another model. Here the loading report is read, and the checkpoint refused by the names of its tensors. Code that comes with a
checkpoint runs only where it is trusted (`retrieval.model_files.custom_code`).
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from data.errors import UserError, first_line
from retrieval.model_files.adapter_files import base_folder, whole_tensors
from retrieval.model_files.custom_code import has_model_code, way_to_trust
from retrieval.model_files.files import is_adapter, tokenizer_folder
from retrieval.models.adapters import configured, merged

_SHOWN = 3  # names of tensors in a message

# Heads of pre-training and of other tasks, which a model of this task leaves alone.
_OTHER_HEADS = frozenset(
    [
        "cls", "lm_head", "lm_predictions", "mask_predictions", "predictions", "generator_predictions", "generator_lm_head",
        "discriminator_predictions", "vocab_transform", "vocab_layer_norm", "vocab_projector", "sop_classifier", "qa_outputs", "decoder",
        "entity_predictions", "nsp",
    ]
)  # fmt: skip
_COMPUTED_BUFFERS = ("position_ids", "token_type_ids", "inv_freq", "num_batches_tracked")  # a class makes them itself, always the same


def open_model(
    auto_class: str,
    folder: Path,
    *,
    option: str,
    trusted: bool = False,
    new_head: bool = False,
    ways: Sequence[dict[str, Any]] = ({},),
    **given: Any,
) -> Any:
    """The model of a folder in fp32, in eval mode, with every weight that it computes with taken from the folder.

    Args:
        auto_class: transformers' `AutoModel` or `AutoModelForSequenceClassification`.
        folder: where config.json and the weights lie, or an adapter, which is merged into its base.
        option: the setting that names the model, for errors.
        trusted: whether code that comes with the checkpoint may run.
        new_head: the head may be missing, as a whole; it is then drawn from torch's generator.
        ways: further arguments, the preferred ones first; the last one is taken where this class does not know the others.
        given: arguments of every way.

    Raises UserError: a folder that cannot be opened; weights that are missing, have another shape, or that the class has no place for.
    """
    import torch
    import transformers

    _quieten()
    load = getattr(transformers, auto_class).from_pretrained
    always = {"dtype": torch.float32, "use_safetensors": True, "trust_remote_code": trusted}
    if is_adapter(folder):
        given = configured(folder, given)
    asked = {**always, "output_loading_info": True, "ignore_mismatched_sizes": True, **given}  # mismatched ones are reported, all at once
    for number, way in enumerate(ways, 1):
        try:
            model, report = load(base_folder(folder), **asked, **way)
            break
        except MemoryError:
            raise
        except Exception as error:  # transformers and a checkpoint's own code raise many kinds
            if number == len(ways):
                raise UserError(f"{option}: {folder} cannot be opened by transformers' {auto_class}: {first_line(error)}") from error
    faults = _faults_of(
        model, report, new_head=new_head, strict=has_model_code(folder) and not trusted, supplied=whole_tensors(folder).keys()
    )
    if any(faults):
        remedy = _remedy(model, faults, report["unexpected_keys"], folder, option=option)
        raise UserError(f"{option}: {folder} {faults.message(type(model).__name__)}; {remedy}")
    return merged(model, folder, option=option) if is_adapter(folder) else model


def open_tokenizer(folder: Path, *, trusted: bool = False) -> Any:
    """The tokenizer of a folder, a fast one. Raises UserError where it has none that can be opened."""
    from transformers import AutoTokenizer

    _quieten()
    folder = tokenizer_folder(folder)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, use_fast=True, trust_remote_code=trusted)
    except Exception as error:  # as above; the tokenizers library raises a plain Exception
        raise UserError(f"no tokenizer can be loaded from {folder}: {first_line(error)}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{folder} has only a slow tokenizer; save a tokenizer.json beside it")
    return tokenizer


def _quieten() -> None:
    """Leave only transformers' errors: it prints bars and reports for each model, for which a batch log has no use."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers.utils import logging

    disable_progress_bars()
    logging.disable_progress_bar()
    logging.set_verbosity_error()


class _Faults(NamedTuple):
    """Why a model is not the one in the file."""

    missing: list[str]  # names in the model
    reshaped: list[str]  # with both shapes
    homeless: list[str]  # names in the file, inside the part that is used

    def message(self, kind: str) -> str:
        phrases = ("lacks {} of its weights", "has {} in another shape", "has {} that this class has no place for")
        found = []
        for phrase, names in zip(phrases, self, strict=True):
            if names:
                shown = [*names[:_SHOWN], *["..."] * (len(names) > _SHOWN)]
                found.append(f"{phrase.format(len(names))} ({', '.join(shown)})")
        return f"opens as a {kind} but {' and '.join(found)}"


def _faults_of(
    model: Any, report: dict[str, Any], *, new_head: bool = False, strict: bool = False, supplied: Set[str] = frozenset()
) -> _Faults:
    """What of transformers' loading report makes the model another one than the checkpoint's.

    Passed over: poolers that nothing reads, heads of other tasks, buffers that a class computes, and what the class itself declares
    ignorable, which the report leaves out. `strict` is for a class that stands in for the checkpoint's own code: it must have a place for
    every weight but known heads. `supplied` are tensors that an adapter brings.
    """
    missing = {name for name in report["missing_keys"] if not name.endswith(_COMPUTED_BUFFERS)} - supplied
    if base_of(model) is model:
        missing = {name for name in missing if not name.startswith("pooler.")}
    if new_head:
        missing -= _whole_heads(model, missing)
    mismatched = [found for found in report["mismatched_keys"] if found[0] not in supplied]
    reshaped = [f"{name}: {list(there)} in the file, {list(here)} in the model" for name, there, here in mismatched]
    only_known = strict or (base_of(model) is not model and not new_head)
    homeless = [name for name in report["unexpected_keys"] if _is_used(name, model, only_known_heads=only_known)]
    return _Faults(sorted(missing), sorted(reshaped), sorted(homeless))


def base_of(model: Any) -> Any:
    """The model below its head; a model without a head is its own base."""
    return getattr(model, getattr(model, "base_model_prefix", "") or "base_model", model)


def _whole_heads(model: Any, missing: set[str]) -> set[str]:
    """Missing weights of modules above the backbone, poolers among them, of which the file has none at all."""
    prefix = str(model.base_model_prefix)
    tops = {name: _head_of(name, prefix) for name in model.state_dict()}
    absent = {top for top in tops.values() if top and all(name in missing for name, of in tops.items() if of == top)}
    return {name for name in missing if tops.get(name) in absent}


def _head_of(name: str, prefix: str) -> str:
    """The module above the backbone that a weight belongs to, "" for one of the backbone."""
    parts = name.split(".")
    if parts[0] != prefix:
        return parts[0]
    return "pooler" if parts[1] == "pooler" else ""


def _is_used(name: str, model: Any, *, only_known_heads: bool) -> bool:
    """Whether a weight of the file that the class has no place for belongs to what the class computes."""
    base, prefix = base_of(model), f"{model.base_model_prefix}."
    in_base = name.removeprefix(prefix)
    buffers = {buffer for buffer, _ in base.named_buffers()}
    if in_base in buffers or name.endswith(_COMPUTED_BUFFERS) or in_base.startswith("pooler."):
        return False
    own = {child for part in (base, model) for child, _ in (*part.named_children(), *part.named_parameters(recurse=False))}
    top = in_base.split(".")[0]
    return name.startswith(prefix) or top in own or (only_known_heads and top not in _OTHER_HEADS)


def _remedy(model: Any, faults: _Faults, unexpected: set[str], folder: Path, *, option: str) -> str:
    """The likely cause, and what to do about it."""
    wrapped = (there.removesuffix(name) for name in faults.missing for there in unexpected if there.endswith(f".{name}"))
    if prefix := next(wrapped, ""):
        return f"the names in the file begin with {prefix!r}, as a wrapped model saves them: save the model inside the wrapper"
    if has_model_code(folder):
        return f"it was made with Python code of its own (auto_map), which computes something else: {way_to_trust(option)}"
    if faults.missing and not faults.reshaped and all(_head_of(name, model.base_model_prefix) for name in faults.missing):
        return "an encoder without a trained head scores at random: give a trained cross-encoder, or save this one with its head"
    if faults.missing:
        return "the file is not whole, or of another architecture than config.json says: save or download the model again"
    if faults.reshaped:
        return "config.json is of another model than the weights: give the one that was saved with them"
    return "config.json has fewer layers than the file, or is of another architecture: give the one that was saved with the weights"
