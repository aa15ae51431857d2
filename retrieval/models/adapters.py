"""A PEFT adapter, merged into the base that it changes: what comes out is a model as any other."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.errors import UserError, first_line
from retrieval.model_files.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, EXTRA, base_folder, own_name, trained_labels, whole_tensors
from retrieval.model_files.files import read_own_json

if TYPE_CHECKING:
    from torch import Tensor

_SHOWN = 3  # names of tensors in a message
_PREFIX = "base_model.model."  # of all names in an adapter's file
_HEADS = ("score", "classifier", "lm_head")


def configured(folder: Path, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of from_pretrained with which an adapter's base has the configuration and the outputs of the merged model."""
    from transformers import AutoConfig

    given, own = dict(given), folder / "config.json"
    outputs = given.pop("num_labels", trained_labels(folder))
    labels = {} if outputs is None else {"num_labels": outputs}
    config = AutoConfig.from_pretrained(own.parent if own.is_file() else base_folder(folder), trust_remote_code=False, **labels)
    return {**given, "config": config}


def merged(model: Any, folder: Path, *, option: str) -> Any:
    """The base `model` with the adapter of a folder merged into its weights, in eval mode. The model is changed.

    Raises UserError: no peft, or one that does not know all of the adapter's settings; an adapter that does not fit the model; weights that
    it lacks, or has no place for.
    """
    try:
        import peft
    except ImportError as error:
        raise UserError(f"{option}: {folder} holds a PEFT adapter, which {EXTRA}") from error
    from safetensors.torch import load_file

    tensors = {name: tensor for name, tensor in load_file(folder / ADAPTER_WEIGHTS).items() if _has_place(name, model)}
    settings = _known_settings(folder, option=option)
    saved = {name.split(".")[0] for name in whole_tensors(folder)} & {*_HEADS}
    children = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    settings["modules_to_save"] = sorted({*(settings.get("modules_to_save") or []), *saved} & children) or None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _fit_token_table(model, tensors)
            _lift_tables(model, tensors)
            wrapped = peft.PeftModel(_as_trained(model, tensors), peft.PeftConfig.from_peft_type(**settings))
            _refuse_shared_table(model, folder, option=option)
            report = peft.set_peft_model_state_dict(wrapped, tensors)
            lacking = [name for name in report.missing_keys if ".default" in name]
            if not lacking and not report.unexpected_keys:
                _merge_low(wrapped)
                wrapped.merge_and_unload(safe_merge=True)
                return model.requires_grad_(True).eval()  # frozen by peft, which would train the adapter alone
    except (MemoryError, UserError):
        raise
    except Exception as error:  # peft raises many kinds
        kind = type(model).__name__
        raise UserError(f"{option}: {folder} holds a PEFT adapter that does not fit a {kind}: {first_line(error)}") from error
    faults = [("lacks", lacking), ("has no place in its base for", report.unexpected_keys)]
    found = " and ".join(f"{what} {_names(names)}" for what, names in faults if names)
    raise UserError(f"{option}: {folder} holds a PEFT adapter that {found}: give the base that it was trained on, or fetch it again")


def _known_settings(folder: Path, *, option: str) -> dict[str, Any]:
    """adapter_config.json, for inference. Raises UserError for a setting that the installed peft would leave out."""
    import peft

    content = read_own_json(folder / ADAPTER_CONFIG)
    known = inspect.signature(peft.PEFT_TYPE_TO_CONFIG_MAPPING[content["peft_type"]].__init__).parameters
    unknown = sorted(key for key, value in content.items() if key not in known and key != "runtime_config" and value)
    if unknown:
        raise UserError(
            f"{option}: {folder / ADAPTER_CONFIG} has settings that peft {peft.__version__} does not know ({', '.join(unknown)}): install "
            "a newer one"
        )
    kept = {key: value for key, value in content.items() if key in known}
    return {**kept, "inference_mode": True, "task_type": None}


def _as_trained(model: Any, tensors: Iterable[str]) -> Any:
    """The model as the class had it that the adapter was trained on, by whose names all its settings go: one with a head has it inside."""
    inside = model.base_model_prefix
    if hasattr(model, inside) or not any(name.startswith(f"{_PREFIX}{inside}.") for name in tensors):
        return model
    from torch import nn

    outer: Any = nn.Module()
    outer.add_module(inside, model)
    outer.is_gradient_checkpointing = False  # as peft asks transformers' models
    return outer


def _has_place(name: str, model: Any) -> bool:
    """Whether a tensor is of the model, and not of a head or pooler that this class does without."""
    inside = model.base_model_prefix
    top = name.removeprefix(_PREFIX).removeprefix(f"{inside}.").split(".")[0]
    return top not in (*_HEADS, "pooler") or any(getattr(part, top, None) is not None for part in (model, getattr(model, inside, model)))


def _refuse_shared_table(model: Any, folder: Path, *, option: str) -> None:
    """Raises UserError where the token table is the output matrix, too, and one of them is adapted: merged, both would change."""
    tables = model.get_input_embeddings(), model.get_output_embeddings()
    if None not in tables and tables[0].weight is tables[1].weight and any(hasattr(table, "base_layer") for table in tables):
        raise UserError(
            f"{option}: {folder} holds a PEFT adapter of the token table or the output matrix, which are one in its base "
            "(tie_word_embeddings), so it cannot be merged: untie them in a copy of the base, and merge it into that"
        )


def _fit_token_table(model: Any, tensors: dict[str, Tensor]) -> None:
    """Enlarge the model's token table where the adapter brings a larger one."""
    table = model.get_input_embeddings()
    name = next(name for name, module in model.named_modules() if module is table)
    brought = next((tensor for key, tensor in tensors.items() if own_name(key) == f"{name}.weight"), None)
    if brought is not None and len(brought) != table.num_embeddings:
        model.resize_token_embeddings(len(brought), mean_resizing=False)


def _lift_tables(model: Any, tensors: Iterable[str]) -> None:
    """Take a token table or output matrix to fp32 that is stored low and adapted: neither is lowered later."""
    changed = [own_name(name) for name in tensors]
    for table in filter(None, (model.get_input_embeddings(), model.get_output_embeddings())):
        name = next(name for name, module in model.named_modules() if module is table)
        if any(f"{name}." in tensor for tensor in changed):
            table.weight.data = table.weight.data.float()


def _merge_low(wrapped: Any) -> None:
    """Merge the layers that are stored low (`retrieval.compute.stored_precision`): peft rounds the change, and then the sum again."""
    import torch
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in [module for module in wrapped.modules() if isinstance(module, BaseTunerLayer)]:
        base: Any = layer.get_base_layer()
        kind = getattr(getattr(base, "weight", None), "dtype", None)
        if kind in (torch.bfloat16, torch.float16):
            base.weight.data = base.weight.data.float()
            layer.merge(safe_merge=True)
            base.weight.data = base.weight.data.to(kind)


def _names(names: Iterable[str]) -> str:
    found = sorted(names)
    return f"{len(found)} of its weights ({', '.join([*found[:_SHOWN], *['...'] * (len(found) > _SHOWN)])})"
