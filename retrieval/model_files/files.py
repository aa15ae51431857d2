"""Where a model's files lie, and the digests of their content. Reads no weights into memory and imports no torch.

A digest is of content, never of a name or path: a model moved elsewhere is the same model, new weights under the old path are not.
"""

from __future__ import annotations

import difflib
import functools
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from data.digests import DigestCache, bytes_digest, file_stamp, json_digest
from data.errors import UserError, first_line
from data.files.what_lies import stored_table, what_lies

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
_ROLES = ("mask_token", "sep_token", "cls_token", "pad_token", "unk_token", "bos_token", "eos_token")
_USED_ROLES = _ROLES[:5]  # those of beginning and end are no part of a text for most decoders
_OF_TRAINING = ("student", "dual_encoder", "cross_encoder", "best")  # models in `train.output`
_FROM_HUB = ("*.json", "*.txt", "*.model", "*.safetensors", "*.jinja", "model.onnx*")  # downloaded unless others are asked for
WHOLE_MODEL = ("model.safetensors", "model.safetensors.index.json")  # of transformers: one file, or shards
_ADAPTER_CONFIG = "adapter_config.json"  # of PEFT: see `retrieval.model_files.adapter_files`
_LFS_START = b"version https://git-lfs.github.com/spec/"


def resolve_folder(
    model: str, *, option: str, revision: str | None = None, with_code: bool = False, files: Sequence[str] = _FROM_HUB
) -> Path:
    """The local folder of a checkpoint: a folder as it is, else a hub id, from the hub's cache or the hub. `option` is for errors.

    A `revision` is a hub's branch, tag or commit; a commit where Python files come along, which may run (`with_code`).
    `files`: patterns of what is downloaded.
    Raises UserError where neither a folder nor a hub model can be had, and for a revision that pins nothing.
    """
    path = Path(model).expanduser()
    section = option.rpartition(".")[0]
    if path.is_dir():
        if stored_table(path) is not None:
            raise UserError(f"{option}={model} is {what_lies(path)}; expected a model's folder or a hub id")
        _refuse_output(path, f"{option}={model}")
        if revision is not None:
            raise UserError(f"{section}.revision={revision}: {path} is a folder, whose content is its own pin; leave the revision out")
        return path.resolve()
    if path.is_file():
        raise UserError(f"{option}={model} is a file; expected a model's folder: is it {path.parent}?")
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise UserError(f"{option}={model}: no such folder{_near(path)}; give a folder or a hub id like organisation/name")
    if with_code and not re.fullmatch(r"[0-9a-f]{40}", revision or ""):
        found = "no revision" if revision is None else f"revision={revision}"
        raise UserError(
            f"{option}={model}: {section}.trust_remote_code=true runs code that others can change on the hub, and {found} does not pin it: "
            f"set {section}.revision to a commit, 40 hexadecimal digits"
        )
    try:
        return _from_hub(model, revision, (*files, *(["*.py"] * with_code)))
    except Exception as error:  # the hub client raises many kinds, all of which mean: not to be had
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"{option}={model}: neither a folder nor a hub model that can be reached ({reason})") from error


def _refuse_output(folder: Path, given: str) -> None:
    """Raises UserError where the models of a training lie in a folder that is none itself."""
    is_model = any((folder / name).is_file() for name in ("config.json", "modules.json"))
    inside = [str(folder / name) for name in _OF_TRAINING if (folder / name / "config.json").is_file()]
    if inside and not is_model:
        raise UserError(f"{given} is the output of a training; give the model in it: {' or '.join(inside)}")


@functools.cache  # the hub is asked once a process, also where a command looks a model up twice
def _from_hub(model: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download

    left_out = [folder for folder in ("onnx/*", "openvino/*") if not any(pattern.startswith(folder[:-1]) for pattern in patterns)]
    return Path(snapshot_download(model, revision=revision, allow_patterns=list(patterns), ignore_patterns=left_out))


def _near(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = difflib.get_close_matches(path.name, [found.name for found in path.parent.iterdir() if found.is_dir()], n=3)
    return f" (in {path.parent} there is {', '.join(near)})" if near else ""


def refuse_placeholder(path: Path) -> None:
    """Raises UserError where something else lies in a file's place: a git-lfs pointer, nothing, a link whose target is gone."""
    try:
        with open(path, "rb") as file:
            _refuse_start(path, file.read(len(_LFS_START)))
    except FileNotFoundError as error:
        if path.is_symlink():
            raise UserError(f"{path} is a link to a file that is gone ({path.readlink()}): fetch the model again") from error
        raise
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _refuse_start(path: Path, content: bytes) -> None:
    if content.startswith(_LFS_START):
        raise UserError(f"{path} is a git-lfs pointer, not the file itself: run `git lfs pull` in its repository, or download the file")
    if not content:
        raise UserError(f"{path} is empty (0 bytes): fetch the file again")


def read_json(path: Path, kind: type = dict) -> Any:
    """A JSON object, or a list, from a model's folder; empty where there is no such file.

    An adapter has the configuration and, without a tokenizer of its own, the tokenizer's files of its base.
    A file that was not touched is not read again: nobody may change what is returned. Raises UserError.
    """
    if is_adapter(path.parent) and path.name in ("config.json", *_TOKENIZER_SETTINGS):
        from retrieval.model_files import adapter_files  # which reads its files through here

        if path.name == "config.json":
            return adapter_files.configuration(path.parent)
        path = tokenizer_folder(path.parent) / path.name
    return read_own_json(path, kind)


def read_own_json(path: Path, kind: type = dict) -> Any:
    """As `read_json`, of the file alone that lies there."""
    try:
        return _parsed_once(path, kind, file_stamp(path))
    except FileNotFoundError:
        if path.is_symlink():
            refuse_placeholder(path)
        return kind()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


@functools.lru_cache(maxsize=128)
def _parsed_once(path: Path, kind: type, stamp: str) -> Any:
    return _parsed(path, kind)


def _parsed(path: Path, kind: type = dict) -> Any:
    text = path.read_bytes()
    _refuse_start(path, text)
    try:
        content = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(content, kind):
        expected = "JSON object" if kind is dict else "list of modules"
        raise UserError(f"{path} holds a {type(content).__name__}, a {expected} was expected")
    return content


def module_list(folder: Path) -> list[dict[str, Any]]:
    """The modules of a sentence-transformers folder, in order, each with its `type` and `path`; none where there is no modules.json."""
    path = folder / "modules.json"
    modules: list[dict[str, Any]] = read_json(path, list)
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


def behind_transformer(folder: Path) -> bool:
    """Whether a sentence-transformers folder lists more than its Transformer."""
    return [module["type"].rsplit(".", 1)[-1] for module in module_list(folder)] not in ([], ["Transformer"])


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter, whose base lies elsewhere, and no whole model beside it."""
    return (folder / _ADAPTER_CONFIG).is_file() and not any((folder / name).exists() for name in WHOLE_MODEL)


def tokenizer_folder(folder: Path) -> Path:
    """Where the tokenizer's files lie: beside the weights, but for an adapter that has none of its own: then beside those of its base."""
    if not is_adapter(folder) or any((folder / name).is_file() for name in (*_TOKENIZER_FILES, *_UNREAD_TOKENIZER_FILES)):
        return folder
    from retrieval.model_files import adapter_files

    return adapter_files.base_folder(folder)


def weights_digest(
    folder: Path, digests: DigestCache, *, option: str, beside: Sequence[Path] = (), only: Sequence[Path] | None = None
) -> str:
    """Digest of the weight files and of the configuration without its volatile keys; of an adapter, those of its base too.

    `beside`: weights under any other name. `only`: the weight files, of whatever else lies in the folder.
    """
    own: dict[str, Any] = {}
    config = {key: value for key, value in read_json(folder / "config.json").items() if key not in _VOLATILE_CONFIG_KEYS}
    if is_adapter(folder):
        from retrieval.model_files import adapter_files

        own = {"adapter": adapter_files.adapter_key(folder, digests)}
        folder = adapter_files.base_folder(folder)
    patterns = ("*.safetensors", "*.onnx", "*.onnx_data", "*.onnx.data")
    files = sorted({*beside, *(file for pattern in patterns for file in folder.glob(pattern))} if only is None else only)
    if not files:
        raise UserError(no_weights(folder, option=option))
    return _digest({"config": config, "weights": [digests.file(file) for file in files], **own}, of=folder / "config.json")


def _digest(content: Any, *, of: Path) -> str:
    """Digest of what a file says. Raises UserError where that is none of JSON's, although Python reads it: NaN, half a character."""
    try:
        return json_digest(content)
    except ValueError as error:
        raise UserError(f"{of} holds what is no JSON ({first_line(error)})") from error


def no_weights(folder: Path, *, option: str) -> str:
    """The text of an error: a folder has no weights that are read. A hub's pickles are not downloaded, so the remedy is always named."""
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


def has_tokens_of_spaces(folder: Path) -> bool:
    """Whether a space is a token, or part of one: bytes (RoBERTa, Qwen, ModernBERT), or SentencePiece's mark (XLM-R, DeBERTa-v2)."""
    settings = tokenizer_settings(folder)
    if not settings:
        return any((folder / name).is_file() for name in ("merges.txt", "spiece.model", "sentencepiece.bpe.model"))
    around = json.dumps([settings.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")], ensure_ascii=False)
    return any(sign in around for sign in ('"ByteLevel"', '"Metaspace"', "\u2581"))


def gives_segments(folder: Path) -> bool:
    """Whether a pair's segment ids are for the model: not where the tokenizer's files list what the model is given, and leave them out."""
    named = read_json(folder / "tokenizer_config.json").get("model_input_names")
    return not isinstance(named, list) or "token_type_ids" in named


def withholds_segments(folder: Path) -> bool:
    """Whether the tokenizer numbers the segments of a pair, 0 and 1, and its model is given none of them."""
    if gives_segments(folder):
        return False
    around = json.dumps(tokenizer_settings(folder).get("post_processor"))
    return '"type_id": 1' in around or '"BertProcessing"' in around


def tokenizer_digest(folder: Path) -> str:
    """Digest of what decides the tokens of a text: the tokenizer's tables without its padding and truncation settings."""
    return tokenizer_files(folder).digest


def holds_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer's tables lie in a folder."""
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def tokenizer_settings(folder: Path) -> dict[str, Any]:
    """tokenizer.json without its vocabulary; empty where there is none."""
    folder = tokenizer_folder(folder)
    return tokenizer_files(folder).settings if (folder / "tokenizer.json").is_file() else {}


class TokenizerFiles(NamedTuple):
    """What a tokenizer's files say of it."""

    digest: str  # see `tokenizer_digest`
    rows: int  # that an embedding table must have: one more than the largest id of a text; 0 where it cannot be found out
    pad_id: int  # of the token named for padding; 0 where none is named, or one that the tables lack
    settings: dict[str, Any]  # tokenizer.json without its vocabulary


def tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read a folder's tokenizer, once while its files stay as they are. Raises UserError where there is none that can be read."""
    folder = tokenizer_folder(folder)
    files = [folder / name for name in (*_TOKENIZER_FILES, *_TOKENIZER_SETTINGS)]
    return _tokenizer_of(folder, tuple(file_stamp(path) for path in files if path.is_file()))


@functools.lru_cache(maxsize=16)  # the tables of a large vocabulary take 100 MB when parsed, and 0.1 s to write as canonical JSON
def _tokenizer_of(folder: Path, stamps: tuple[str, ...]) -> TokenizerFiles:
    path = next((folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()), None)
    if path is None:
        unread = [name for name in _UNREAD_TOKENIZER_FILES if (folder / name).is_file()]
        hint = (
            f": make a tokenizer.json of its {unread[0]}, AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER)" if unread else ""
        )
        raise UserError(f"{folder} holds no tokenizer (tokenizer.json, or a vocabulary file){hint}")
    parts: dict[str, str] = {}
    count, pad_id = 0, 0
    settings: dict[str, Any] = {}
    if path.name == "tokenizer.json":  # vocabulary files beside it are not read
        tables = _parsed(path)
        parts[path.name] = _digest({key: value for key, value in tables.items() if key not in ("padding", "truncation")}, of=path)
        count, pad_id = _ids(tables, path, roles=role_tokens(folder))
        settings = {key: value for key, value in tables.items() if key not in ("model", "added_tokens")}
    else:
        for path in (folder / name for name in _TOKENIZER_FILES if (folder / name).is_file()):
            content = path.read_bytes()
            _refuse_start(path, content)
            parts[path.name] = bytes_digest(content)
            if path.name == "vocab.txt":
                count = len(content.splitlines())
    config, special = (read_json(folder / name) for name in _TOKENIZER_SETTINGS)
    own = {"files": parts, "config": {key: config.get(key) for key in _TOKENIZER_CONFIG_KEYS}, "special": special}
    digest = _digest(own, of=folder / _TOKENIZER_SETTINGS[0])
    return TokenizerFiles(digest, count, pad_id, settings)


def _ids(tables: dict[str, Any], path: Path, *, roles: dict[str, str]) -> tuple[int, int]:
    """(one more than the largest id of a text, the id of padding).

    Counted are the vocabulary, added tokens that a plain text can hold, and those that the tokenizer itself puts in. A special token beyond
    the table that has no role is left out: Gemma's tokenizer has one of images, its text models have no row for it.
    """
    try:
        vocabulary = tables["model"]["vocab"]
        added = {token["content"]: token for token in tables.get("added_tokens") or []}
        ids = dict(vocabulary) if isinstance(vocabulary, dict) else {entry[0]: place for place, entry in enumerate(vocabulary)}
        plain = [token["id"] for token in added.values() if not token.get("special")]
        of_added = {content: token["id"] for content, token in added.items()}
        known = ids | of_added
        unknown = max(known.values(), default=-1) + 1  # where transformers puts a token that the tables lack
        named = [known.get(token, unknown) for role, token in roles.items() if role in _USED_ROLES]
        pad_id = (known if isinstance(vocabulary, dict) else of_added).get(roles.get("pad_token", ""), 0)
        return max([*ids.values(), *plain, *named], default=-1) + 1, pad_id
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UserError(
            f"no tokenizer can be loaded from {path}: it is none of the tokenizers library ({type(error).__name__}: {error})"
        ) from error


def text_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What config.json says of the part that reads text, which some models keep within `text_config`."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, dict) else config


def copy_tokenizer(source: Path, target: Path) -> None:
    """All files of a tokenizer, byte by byte: saved again it could get another digest than training shards carry."""
    source = tokenizer_folder(source)
    for name in _COPIED_TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)
