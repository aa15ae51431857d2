"""Where a model's files lie, and the digests of their content. Reads no weights into memory and imports no torch.

A digest is of content, never of a name or path: a model moved elsewhere is the same model, new weights under the old path are not.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import shutil
from pathlib import Path
from typing import Any

from data.digests import DigestCache, bytes_digest, canonical_json, file_stamp, json_digest
from data.errors import UserError

_VOLATILE_CONFIG_KEYS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model")
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
_UNREAD_TOKENIZER_FILES = ("spm.model", "tokenizer.model", "sentencepiece.model")  # of which a tokenizer.json has to be made first
_COPIED_TOKENIZER_FILES = (
    *_TOKENIZER_FILES, *_TOKENIZER_SETTINGS, *_UNREAD_TOKENIZER_FILES, "added_tokens.json", "bpe.codes", "chat_template.jinja",
    "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json",  # of models that read more than text
)  # fmt: skip
# transformers applies these on top of tokenizer.json.
_TOKENIZER_CONFIG_KEYS = (
    "do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "tokenizer_class", "mask_token", "sep_token",
    "cls_token", "pad_token", "unk_token", "bos_token", "eos_token",
)  # fmt: skip


def resolve_folder(model: str, *, option: str, revision: str | None = None, with_code: bool = False) -> Path:
    """The local folder of a checkpoint: a folder as it is, else a hub id, from the hub's cache or the hub.

    Args:
        model: a folder, or a hub id.
        option: the setting that names it, for errors.
        revision: of a hub id: a branch, a tag or a commit.
        with_code: take its Python files too, which may run; the revision must then be a commit.

    Raises UserError where neither a folder nor a hub model can be had, and for a revision that pins nothing.
    """
    path = Path(model).expanduser()
    section = option.rpartition(".")[0]
    if path.is_dir():
        if revision is not None:
            raise UserError(f"{section}.revision={revision}: {path} is a folder, whose content is its own pin; leave the revision out")
        return path.resolve()
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise UserError(f"{option}={model}: no such folder{_near(path)}; give a folder or a hub id like organisation/name")
    if with_code and not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        found = "no revision" if revision is None else f"revision={revision}"
        raise UserError(
            f"{option}={model}: {section}.trust_remote_code=true runs code that others can change on the hub, and {found} does not pin it: "
            f"set {section}.revision to a commit, 40 hexadecimal digits"
        )
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.safetensors", "*.jinja", "model.onnx*", *(["*.py"] * with_code)]
    try:
        found_at = snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=["onnx/*", "openvino/*"])
    except Exception as error:  # the hub client raises many kinds, all of which mean: not to be had
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{option}={model}: neither a folder nor a hub model that can be reached ({reason})") from error
    return Path(found_at)


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [found.name for found in path.parent.iterdir() if found.is_dir()], n=3)
    return f" (in {path.parent} there is {', '.join(near)})" if near else ""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder, empty where the file does not exist."""
    content = _read_json(path, nothing={})
    if not isinstance(content, dict):
        raise UserError(f"{path} holds a {type(content).__name__}, a JSON object was expected")
    return content


def _read_json(path: Path, *, nothing: Any) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return nothing
    except (ValueError, OSError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error


def module_list(folder: Path) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers folder, in order, each with its `type` and `path`; none where there is no modules.json."""
    path = folder / "modules.json"
    modules = _read_json(path, nothing=[])
    if not isinstance(modules, list):
        raise UserError(f"{path} holds a {type(modules).__name__}, a list of modules was expected")
    for module in modules:
        if not isinstance(module, dict) or not all(isinstance(module.get(key), str) for key in ("type", "path")):
            raise UserError(f"{path}: a module is an object with a type and a path, but one is {json.dumps(module)}")
        if Path(module["path"]).is_absolute() or ".." in Path(module["path"]).parts:
            raise UserError(f"{path}: the path of a module lies in the folder, but one is {module['path']!r}")
    return modules


def transformer_folder(folder: Path) -> Path:
    """Where config.json and the weights lie: the folder itself, or its first module (sentence-transformers)."""
    for module in module_list(folder):
        if module["type"].rsplit(".", 1)[-1] == "Transformer" and module["path"]:
            return folder / module["path"]
    return folder


def weights_digest(folder: Path, digests: DigestCache, *, option: str) -> str:
    """Digest of the weight files and of the configuration without its volatile keys."""
    files = sorted(file for pattern in ("*.safetensors", "*.onnx", "*.onnx_data", "*.onnx.data") for file in folder.glob(pattern))
    if not files:
        pickled = any(folder.glob("pytorch_model*.bin"))
        hint = "; its pytorch_model.bin is a pickle, which is not opened: save it again with safe_serialization=True" if pickled else ""
        raise UserError(f"{option}: {folder} holds no weights (*.safetensors, model.onnx){hint}")
    config = {key: value for key, value in read_json(folder / "config.json").items() if key not in _VOLATILE_CONFIG_KEYS}
    try:
        return json_digest({"config": config, "weights": [digests.file(file) for file in files]})
    except ValueError as error:
        raise UserError(f"{option}: {folder / 'config.json'} holds NaN or Infinity, which are no JSON numbers") from error


def tokenizer_digest(folder: Path) -> str:
    """Digest of what decides the tokens of a text: the tokenizer's tables without its padding and truncation settings."""
    files = [folder / name for name in (*_TOKENIZER_FILES, *_TOKENIZER_SETTINGS)]
    return _tokenizer_digest(folder, tuple(file_stamp(path) for path in files if path.is_file()))


@functools.lru_cache(maxsize=16)  # every table that a model makes asks for it, and writing large tables as canonical JSON takes 0.1 s
def _tokenizer_digest(folder: Path, stamps: tuple[str, ...]) -> str:
    parts: dict[str, str] = {}
    for name in _TOKENIZER_FILES:
        path = folder / name
        if name == "tokenizer.json" and path.is_file():
            tables = {key: value for key, value in read_json(path).items() if key not in ("padding", "truncation")}
            parts[name] = bytes_digest(canonical_json(tables).encode())
            break  # vocabulary files beside it are not read
        if path.is_file():
            parts[name] = bytes_digest(path.read_bytes())
    if not parts:
        unread = [name for name in _UNREAD_TOKENIZER_FILES if (folder / name).is_file()]
        hint = (
            f": make a tokenizer.json of its {unread[0]}, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)" if unread else ""
        )
        raise UserError(f"{folder} holds no tokenizer (tokenizer.json, or a vocabulary file){hint}")
    config, special = (read_json(folder / name) for name in _TOKENIZER_SETTINGS)
    return json_digest({"files": parts, "config": {key: config.get(key) for key in _TOKENIZER_CONFIG_KEYS}, "special": special})


def copy_tokenizer(source: Path, target: Path) -> None:
    """All files of a tokenizer, byte by byte: saved again it could get another digest than training shards carry."""
    for name in _COPIED_TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
