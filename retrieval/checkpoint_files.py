"""Where a model's files lie, and the digests of their content. Reads no weights into memory and imports no torch.

A digest is of content, never of a name or path: a model moved elsewhere is the same model, new weights under the old path are not.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from data.digests import DigestCache, bytes_digest, canonical_json, file_stamp, json_digest
from data.errors import UserError

_VOLATILE_CONFIG_KEYS = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model")
_TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
# transformers applies these on top of tokenizer.json.
_TOKENIZER_CONFIG_KEYS = (
    "do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space", "tokenizer_class", "mask_token", "sep_token",
    "cls_token", "pad_token", "unk_token", "bos_token", "eos_token",
)  # fmt: skip
_SLOW_FILES = ("spm.model", "tokenizer.model", "sentencepiece.model", "tekken.json")
_ROLES = ("mask_token", "sep_token", "cls_token", "pad_token", "unk_token", "bos_token", "eos_token")
_USED_ROLES = _ROLES[:5]  # those of beginning and end are no part of a text for most decoders
_LFS_START = b"version https://git-lfs.github.com/spec/"


def resolve_folder(model: str, *, option: str) -> Path:
    """The local folder of a checkpoint: a folder as it is, else a hub id, from the hub's cache or the hub.

    Raises UserError naming the configuration `option` where neither can be had.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return path.resolve()
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise UserError(f"{option}={model}: no such folder{_near(path)}; give a folder or a hub id like organisation/name")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.txt", "*.model", "*.jinja", "*.safetensors", "model.onnx*", "1_Pooling/*", "2_Normalize/*"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns, ignore_patterns=["onnx/*", "openvino/*"]))
    except Exception as error:  # the hub client raises many kinds, all of which mean: not to be had
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{option}={model}: neither a folder nor a hub model that can be reached ({reason})") from error


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [found.name for found in path.parent.iterdir() if found.is_dir()], n=3)
    return f" (in {path.parent} there is {', '.join(near)})" if near else ""


def refuse_placeholder(path: Path) -> None:
    """Raises UserError where something else lies in a file's place: a git-lfs pointer, nothing, a link whose target is gone."""
    try:
        with open(path, "rb") as file:
            start = file.read(len(_LFS_START))
    except FileNotFoundError as error:
        if path.is_symlink():
            raise UserError(f"{path} is a link to a file that is gone ({path.readlink()}): fetch the model again") from error
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if start == _LFS_START:
        raise UserError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in its repository, or download the file")
    if not start:
        raise UserError(f"{path} is empty (0 bytes): fetch the file again")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a model folder, empty where the file does not exist."""
    content = _json_of(path)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _json_of(path: Path) -> Any:
    """What a JSON file holds; None where it does not exist."""
    try:
        refuse_placeholder(path)
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error


def read_modules(folder: Path) -> list[dict[str, str]]:
    """The modules of a sentence-transformers folder, each with its `type` and the `path` of its own folder; empty for other folders."""
    modules = _json_of(folder / "modules.json")
    if modules is None:
        return []
    fields = ("type", "path")
    listed = isinstance(modules, list) and all(isinstance(module, dict) for module in modules)
    if not listed or not all(isinstance(module.get(name), str) for module in modules for name in fields):
        raise UserError(f"{folder / 'modules.json'}: expected a list of modules, each with type and path")
    return modules


def transformer_folder(folder: Path) -> Path:
    """Where config.json and the weights lie: the folder itself, or its first module (sentence-transformers)."""
    for module in read_modules(folder):
        if module["type"].rsplit(".", 1)[-1] == "Transformer" and module["path"]:
            return folder / module["path"]
    return folder


def weights_digest(folder: Path, digests: DigestCache, *, option: str, beside: Sequence[Path] = ()) -> str:
    """Digest of the weight files and of the configuration without its volatile keys. `beside`: weights under any other name."""
    patterns = ("*.safetensors", "*.onnx", "*.onnx_data", "*.onnx.data")
    files = sorted({*beside, *(file for pattern in patterns for file in folder.glob(pattern))})
    if not files:
        raise UserError(no_weights(folder, option=option))
    config = {key: value for key, value in read_json(folder / "config.json").items() if key not in _VOLATILE_CONFIG_KEYS}
    return json_digest({"config": config, "weights": [digests.file(file) for file in files]})


def no_weights(folder: Path, *, option: str) -> str:
    """In words: a folder has none that are read. A hub model's pickles are not even downloaded, so the remedy is always named."""
    pickles = sorted(path.name for pattern in ("*.bin", "*.bin.index.json", "*.pt", "*.pth") for path in folder.glob(pattern))
    found = f"; {pickles[0]} is a pickle" if pickles else ""
    return (
        f"{option}: {folder} holds no weights (*.safetensors, model.onnx){found}. Pickles (pytorch_model.bin) are not opened: "
        "load the model once with transformers and save it again with safe_serialization=True"
    )


def role_tokens(folder: Path) -> dict[str, str]:
    """What the tokenizer's files name as pad_token, mask_token, ..."""
    config, special = (read_json(folder / name) for name in _TOKENIZER_SETTINGS)
    named = {role: config.get(role) or special.get(role) for role in _ROLES}
    texts = {role: token.get("content") if isinstance(token, dict) else token for role, token in named.items()}
    return {role: text for role, text in texts.items() if isinstance(text, str) and text}


def tokenizer_digest(folder: Path) -> str:
    """Digest of what decides the tokens of a text: the tokenizer's tables without its padding and truncation settings."""
    return _tokenizer(folder)[0]


def token_count(folder: Path) -> int:
    """One more than the largest id that a text can be given: rows that an embedding table must have; 0 where it cannot be told."""
    return _tokenizer(folder)[1]


def _tokenizer(folder: Path) -> tuple[str, int]:
    files = [folder / name for name in (*_TOKENIZER_FILES, *_TOKENIZER_SETTINGS)]
    return _tokenizer_of(folder, tuple(file_stamp(path) for path in files if path.is_file()))


@functools.lru_cache(maxsize=16)  # every table that a model makes asks for it, and writing large tables as canonical JSON takes 0.1 s
def _tokenizer_of(folder: Path, stamps: tuple[str, ...]) -> tuple[str, int]:
    parts: dict[str, str] = {}
    count = 0
    for name in _TOKENIZER_FILES:
        path = folder / name
        if not path.is_file():
            continue
        refuse_placeholder(path)
        if name == "tokenizer.json":
            tables = {key: value for key, value in read_json(path).items() if key not in ("padding", "truncation")}
            parts[name] = bytes_digest(canonical_json(tables).encode())
            count = _count(tables, path, roles=role_tokens(folder))
            break  # vocabulary files beside it are not read
        content = path.read_bytes()
        parts[name] = bytes_digest(content)
        if name == "vocab.txt":
            count = len(content.splitlines())
    if not parts:
        others = [name for name in _SLOW_FILES if (folder / name).is_file()]
        found = f"; {others[0]} alone is not read: save it once with transformers' AutoTokenizer, which writes one" if others else ""
        raise UserError(f"{folder} holds no tokenizer (tokenizer.json, or a vocabulary file){found}")
    config, special = (read_json(folder / name) for name in _TOKENIZER_SETTINGS)
    digest = json_digest({"files": parts, "config": {key: config.get(key) for key in _TOKENIZER_CONFIG_KEYS}, "special": special})
    return digest, count


def _count(tables: dict[str, Any], path: Path, *, roles: dict[str, str]) -> int:
    """Ids of the vocabulary, of added tokens that a plain text can hold, and of those that the tokenizer itself puts in.

    A special token beyond the table that has no role is left out: Gemma's tokenizer has one of images, its text models have no row for it.
    """
    try:
        vocabulary, added = tables["model"]["vocab"], {token["content"]: token for token in tables.get("added_tokens") or []}
        ids = dict(vocabulary) if isinstance(vocabulary, dict) else {entry[0]: place for place, entry in enumerate(vocabulary)}
        plain = [token["id"] for token in added.values() if not token.get("special")]
        known = ids | {content: token["id"] for content, token in added.items()}
        unknown = max(known.values(), default=-1) + 1  # where transformers puts a token that the tables lack
        named = [known.get(token, unknown) for role, token in roles.items() if role in _USED_ROLES]
        return max([*ids.values(), *plain, *named], default=-1) + 1
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is no tokenizer.json of the tokenizers library ({type(error).__name__}: {error})") from error
