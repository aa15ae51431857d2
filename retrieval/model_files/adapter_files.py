"""The folder of a PEFT adapter: changes to the weights of a model that lies elsewhere. It stands for what comes out when both are merged.

    adapter_config.json         the kind of adapter, and its base: a folder (absolute, or from here) or a hub id, with `revision`
    adapter_model.safetensors   the changes; and whole tensors, of modules that were trained without an adapter (a head)
    config.json                 only where the model has other settings than its base (pad_token_id)
    tokenizer.json, ...         only where the tokenizer is not its base's

`read_json` and the tokenizer's readers in `files`, `tensor_shapes` and `weights_digest` see the merged model; `retrieval.models.adapters`
merges it. Imports no torch.
"""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

from data.digests import DigestCache
from data.errors import UserError
from retrieval.model_files.files import (
    WHOLE_MODEL,
    behind_transformer,
    is_adapter,
    read_own_json,
    resolve_folder,
    transformer_folder,
)
from retrieval.model_files.safetensors_headers import Shapes, header

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
EXTRA = "needs peft: pip install 'adam-distillation[lora]'"

_ADAPTER_PICKLE = "adapter_model.bin"
# Kinds that merge into a base without loss, and how the names of their tensors begin.
_KINDS = {"LORA": "lora_", "LOHA": "hada_", "LOKR": "lokr_", "IA3": "ia3_", "OFT": "oft_"}
_CHANGES = re.compile(rf"\.({'|'.join(_KINDS.values())}|token_adapter\.)")
# Starts that are drawn at random, or from data: what they took from the base cannot be known from the files.
_LOST_STARTS = ("pissa_niter", "corda", "loftq", "lora_ga")
_UNMERGEABLE = ("alora_invocation_tokens", "arrow_config", "kasa_config", "layer_replication", "megatron_config")
_NO_MEANING = (
    "auto_mapping", "base_model_name_or_path", "inference_mode", "lora_dropout", "module_dropout", "peft_version", "revision",
    "runtime_config",
)  # fmt: skip
_MERGE = "merge it into its base (merge_and_unload) and give the model that comes out"


def base_folder(folder: Path) -> Path:
    """Where config.json and the weights of an adapter's base lie; of any other model, the folder itself.

    Raises UserError, naming file and base, where it is not to be had, or is an adapter itself.
    """
    return transformer_folder(_base(folder)) if is_adapter(folder) else folder


def settings_folder(folder: Path) -> Path:
    """Whose sentence-transformers files say how a model is used: an adapter's own, or those of its base where it has none.

    What the files of an embedding model say (pooling, prompts) is not of the classifier that an adapter with a head makes of it.
    """
    if not is_adapter(folder) or (folder / "modules.json").is_file():
        return folder
    base = _base(folder)
    of_base = read_own_json(base / "config_sentence_transformers.json").get("model_type")
    embeds = behind_transformer(base) and of_base != "CrossEncoder"
    return folder if embeds and trained_labels(folder) is not None else base


def _base(folder: Path) -> Path:
    config, path = read_own_json(folder / ADAPTER_CONFIG), folder / ADAPTER_CONFIG
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not isinstance(name, str) or not name:
        raise UserError(f"{path} names no base_model_name_or_path: write there the folder or hub id of the model that the adapter changes")
    local = (folder / name).is_dir()  # an absolute path stays one
    base = resolve_folder(
        str(folder / name) if local else name, option=f"{path}: base_model_name_or_path", revision=None if local else revision
    )
    if is_adapter(transformer_folder(base)):
        raise UserError(f"{path}: its base {name} is an adapter itself; {_MERGE}")
    return base


def configuration(folder: Path) -> dict[str, Any]:
    """config.json of the merged model: the adapter's own or its base's, with the head that the adapter brings."""
    own = folder / "config.json"
    config: dict[str, Any] = read_own_json(own if own.is_file() else base_folder(folder) / "config.json")
    labels = trained_labels(folder)
    if labels is None:
        return config
    named = config.get("architectures")
    first = str(named[0]) if isinstance(named, list) and named else ""
    kind = re.sub(r"(For[A-Z]\w*|(LMHead)?Model)$", "", first) + "ForSequenceClassification"
    rest = {key: value for key, value in config.items() if key not in ("id2label", "label2id")}
    return {**rest, "architectures": [kind], "num_labels": labels}


def trained_labels(folder: Path) -> int | None:
    """Outputs of the classification head that an adapter brings; None where it brings none, or is no adapter."""
    if not is_adapter(folder):
        return None
    tensors = whole_tensors(folder).items()
    return next((shape[0] for name, shape in tensors if re.fullmatch(r"(score|classifier)(\.out_proj)?\.weight", name)), None)


def whole_tensors(folder: Path) -> Shapes:
    """Tensors that an adapter holds in full, by their names in the model; none where its weights are not there."""
    path = folder / ADAPTER_WEIGHTS
    if not is_adapter(folder) or not path.is_file():
        return {}
    return {own_name(name): shape for name, shape in header(path).items() if not _CHANGES.search(name)}


def own_name(tensor: str) -> str:
    """The name that a whole tensor of an adapter's file has in the model."""
    return re.sub(r"\.(modules_to_save(\.default)?|base_layer)(?=\.)", "", tensor.removeprefix("base_model.model."))


def adapter_key(folder: Path, digests: DigestCache) -> dict[str, Any]:
    """What a key holds of an adapter besides its base: weights, and settings that count once it is trained. Names have no order."""
    config = {
        key: sorted(value) if isinstance(value, list) and all(isinstance(part, str) for part in value) else value
        for key, value in read_own_json(folder / ADAPTER_CONFIG).items()
        if value and key not in _NO_MEANING
    }
    return {"config": config, "weights": digests.file(folder / ADAPTER_WEIGHTS)}


def check_adapter(folder: Path, *, option: str) -> None:
    """Raises UserError for an adapter that cannot be merged into its base. Anything else is let through, a merged model too that has the
    weights of an adapter beside it: without its configuration nothing applies it."""
    if not is_adapter(folder):
        _refuse_halves(folder, option=option)
        return
    if fault := _fault(folder):
        raise UserError(f"{option}: {folder} holds a PEFT adapter that {fault}; {_MERGE}")
    if importlib.util.find_spec("peft") is None:
        raise UserError(f"{option}: {folder} holds a PEFT adapter, which {EXTRA}")
    if not (folder / ADAPTER_WEIGHTS).is_file():
        pickle = f"; {_ADAPTER_PICKLE} is a pickle, which is not opened" if (folder / _ADAPTER_PICKLE).is_file() else ""
        raise UserError(
            f"{option}: {folder} has no {ADAPTER_WEIGHTS}{pickle}: load the adapter once with peft and save it again, "
            "PeftModel.from_pretrained(BASE, FOLDER).save_pretrained(FOLDER)"
        )
    _refuse_halves(base_folder(folder), option=f"{option}: {folder / ADAPTER_CONFIG}")  # transformers would apply both
    own, base = (read_own_json(place / "config.json").get("model_type") for place in (folder, base_folder(folder)))
    if own is not None and own != base:
        raise UserError(f"{option}: {folder / 'config.json'} says model_type={own}, the adapter's base is a {base}: take that file away")


def _refuse_halves(folder: Path, *, option: str) -> None:
    whole = next((name for name in WHOLE_MODEL if (folder / name).exists()), None)
    if whole and (folder / ADAPTER_CONFIG).is_file():
        raise UserError(
            f"{option}: {folder} holds a PEFT adapter ({ADAPTER_CONFIG}) beside a whole model ({whole}), of which only one can be meant: "
            f"take {ADAPTER_CONFIG} away if the adapter is merged already, or else {whole}"
        )
    alone = next((name for name in (ADAPTER_WEIGHTS, _ADAPTER_PICKLE) if (folder / name).is_file()), None)
    if alone and not whole:
        raise UserError(f"{option}: {folder} holds a PEFT adapter ({alone}) without its {ADAPTER_CONFIG}: fetch the whole folder again")


def _fault(folder: Path) -> str | None:
    """What hinders an adapter from being merged, as its settings tell."""
    config = read_own_json(folder / ADAPTER_CONFIG)
    kind, start = config.get("peft_type"), config.get("init_lora_weights")
    if kind not in _KINDS:
        return f"is of the kind {kind}; {', '.join(_KINDS)} are supported"
    if isinstance(start, str) and start.startswith(_LOST_STARTS):
        return f"says init_lora_weights={start}, which changed its base in a way that cannot be repeated"
    return next((f"says {key}={json.dumps(config[key])}, which is not supported" for key in _UNMERGEABLE if config.get(key)), None)
