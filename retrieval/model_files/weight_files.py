"""Whether a checkpoint's weights are whole, by the headers of its files. No weight is read, and torch is not imported.

transformers opens `model.safetensors`, else the shards that `model.safetensors.index.json` names.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

from data.digests import file_stamp
from data.errors import UserError
from retrieval.model_files.files import no_weights, read_json, refuse_placeholder

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER_CONFIG = "adapter_config.json"
_ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its header
# How the token table's weight is named, from the most to the least usual.
_TOKEN_TABLES = (
    "word_embeddings.weight", "embed_tokens.weight", "tok_embeddings.weight", "shared.weight", "wte.weight", "word_embedding.weight",
    "token_embedding.weight",
)  # fmt: skip

Shapes = dict[str, tuple[int, ...]]


def refuse_adapter(folder: Path, *, option: str) -> None:
    """Raises UserError for a PEFT adapter: what it changes lies elsewhere, so neither its numbers nor its digest are the folder's own."""
    found = next((name for name in (_ADAPTER_CONFIG, *_ADAPTER_WEIGHTS) if (folder / name).is_file()), None)
    if found is None or (found != _ADAPTER_CONFIG and ((folder / _WHOLE).exists() or (folder / _INDEX).exists())):
        return  # without its configuration nothing applies it
    base = read_json(folder / _ADAPTER_CONFIG).get("base_model_name_or_path")
    of = f" of {base}" if base else ""
    raise UserError(
        f"{option}: {folder} holds a PEFT adapter{of} ({found}), not a whole model: merge the adapter into its base "
        "(merge_and_unload) and save the model that comes out"
    )


def tensor_shapes(folder: Path, *, option: str) -> Shapes:
    """Name and shape of every tensor that transformers would find.

    Raises UserError: no weights that it opens, a file that is cut short or none of safetensors, a missing shard, a tensor of the index
    that its shard does not hold.
    """
    named = read_json(folder / "config.json").get("transformers_weights")
    whole = folder / (named if isinstance(named, str) else _WHOLE)
    if whole.is_file() or whole.is_symlink():
        return _header(whole)
    if (folder / _INDEX).is_file():
        return _of_shards(folder)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        raise UserError(f"{option}: {folder} holds {others[0]}, but no {whole.name} and no {_INDEX}, which transformers opens")
    raise UserError(no_weights(folder, option=option))


def _of_shards(folder: Path) -> Shapes:
    index = folder / _INDEX
    shard_of: dict[str, Any] = read_json(index).get("weight_map") or {}
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(name, str) for name in shard_of.values()):
        raise UserError(f"{index}: expected a weight_map, from the names of tensors to those of files")
    shards = sorted(set(shard_of.values()))
    missing = [name for name in shards if not (folder / name).exists()]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of the {len(shards)} shards that {_INDEX} names: {missing[0]}; fetch it again")
    shapes = {name: _header(folder / name) for name in shards}
    lost = [tensor for tensor, shard in shard_of.items() if tensor not in shapes[shard]]
    if lost:
        raise UserError(f"{index} names {lost[0]} ({len(lost)} such), which {shard_of[lost[0]]} does not hold: fetch the model again")
    return {tensor: shapes[shard][tensor] for tensor, shard in shard_of.items()}


def _header(path: Path) -> Shapes:
    from safetensors import SafetensorError

    try:
        return _header_of(path, file_stamp(path))
    except (SafetensorError, OSError) as error:
        refuse_placeholder(path)
        raise UserError(_fault(path, error)) from error


@functools.lru_cache(maxsize=64)
def _header_of(path: Path, stamp: str) -> Shapes:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _fault(path: Path, error: Exception) -> str:
    """What is wrong with a file that safetensors refuses."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(_LENGTH_BYTES)
        length = int.from_bytes(start, "little")
        header = file.read(length) if length < size else b""
    try:
        tensors = {name: tensor for name, tensor in json.loads(header).items() if name != "__metadata__"}
        whole = _LENGTH_BYTES + length + max(tensor["data_offsets"][1] for tensor in tensors.values())
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        whole = _LENGTH_BYTES + length if start[-2:] == b"\0\0" else 0  # a length that a file can have
    if whole > size:
        return f"{path} is cut short: it has {size:,} bytes, its header asks for {whole:,}; fetch it again"
    return f"{path} is no whole safetensors file ({error}), it begins with {start!r}: fetch it again"


def token_rows(shapes: Shapes) -> int | None:
    """Rows of the token embedding table; None where no tensor bears a usual name of one."""
    for ending in _TOKEN_TABLES:
        for name, shape in shapes.items():
            if name.endswith(ending) and len(shape) == 2:
                return shape[0]
    return None
