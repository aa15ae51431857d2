"""Checkpoints that bring Python code of their own (`auto_map`): refused, unless the settings trust it; then keyed by its content.

Read from the files alone: no torch and no transformers here, so that a plan stays cheap.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import runpy
from pathlib import Path
from typing import Any

from data.digests import bytes_digest, json_digest
from data.errors import UserError
from retrieval.model_files.files import is_adapter, read_json, tokenizer_folder

_CAN_BE_TRUSTED = ("student.model", "teacher.model")


def check_custom_code(folder: Path, *, option: str, trusted: bool, graph: bool = False) -> None:
    """Raises UserError for a checkpoint that only its own code can open, and for trusted code that is not all in the folder.

    A `model_type` that transformers has a class for is let through untrusted: that class opens it, and must find all of its weights
    (`retrieval.models.loading`). An ONNX `graph` needs none of that code; its tokenizer may.
    """
    code = {**_auto_map(folder, "config.json"), **_auto_map(folder, "tokenizer_config.json")}
    if trusted:
        if code and is_adapter(folder):
            raise UserError(
                f"{option}: {folder} holds a PEFT adapter of a model with Python code of its own, which is not supported; merge it "
                "into its base (merge_and_unload) and give the model that comes out"
            )
        elsewhere = sorted(name for name in code.values() if "--" in name)
        if elsewhere:
            raise UserError(
                f"{option}: the code of {folder} lies in another repository ({elsewhere[0]}), whose content no key could hold: "
                "put those files into the folder, and take the part up to -- out of auto_map"
            )
        return
    model_type = read_json(folder / "config.json").get("model_type")
    if not graph and has_model_code(folder) and model_type not in _native_types():
        raise UserError(
            f"{option}: {folder} computes by Python code of its own (auto_map in config.json), and transformers has no class for its "
            f"model_type {model_type!r}; {way_to_trust(option)}"
        )
    if _auto_map(folder, "tokenizer_config.json") and not (tokenizer_folder(folder) / "tokenizer.json").is_file():
        raise UserError(
            f"{option}: the tokenizer of {folder} is Python code of its own (auto_map in tokenizer_config.json), without a "
            f"tokenizer.json beside it; {way_to_trust(option)}"
        )


def way_to_trust(option: str) -> str:
    """What a user can do to have a checkpoint's own code run, as the end of a sentence."""
    if option in _CAN_BE_TRUSTED:
        return f"read that code, and set {option.split('.')[0]}.trust_remote_code=true if it may run"
    return f"such code runs only for {' and '.join(_CAN_BE_TRUSTED)}, never for {option}"


def code_key(folder: Path, *, trusted: bool) -> dict[str, str]:
    """What a key holds of a checkpoint's code: nothing, unless it is trusted and there is some."""
    if not trusted or not (has_model_code(folder) or _auto_map(folder, "tokenizer_config.json")):
        return {}
    files = sorted(folder.rglob("*.py"))
    return {"code": json_digest({path.relative_to(folder).as_posix(): bytes_digest(path.read_bytes()) for path in files})}


def has_model_code(folder: Path) -> bool:
    """Whether the model names classes that are not transformers'."""
    return bool(_auto_map(folder, "config.json"))


def _auto_map(folder: Path, name: str) -> dict[str, str]:
    """Auto class -> the class of the checkpoint's; the last one where a tokenizer has a slow and a fast one."""
    found: Any = read_json(folder / name).get("auto_map") or {}
    if not isinstance(found, dict):  # of tokenizers long ago: [slow, fast]
        found = {"AutoTokenizer": found}
    lists = {key: value if isinstance(value, list) else [value] for key, value in found.items()}
    if not all(isinstance(part, str | None) for value in lists.values() for part in value):
        raise UserError(f"{folder / name} says auto_map={json.dumps(found)}, but names of classes are expected there")
    return {key: named[-1] for key, value in lists.items() if (named := [part for part in value if part])}


@functools.cache
def _native_types() -> frozenset[str]:
    """The model types that transformers has classes for, from its own list, which imports nothing."""
    spec = importlib.util.find_spec("transformers")
    assert spec is not None and spec.submodule_search_locations
    return frozenset(runpy.run_path(f"{spec.submodule_search_locations[0]}/models/auto/auto_mappings.py")["CONFIG_MAPPING_NAMES"])
