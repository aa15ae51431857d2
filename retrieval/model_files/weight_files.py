"""Whether a checkpoint's weights are whole, by the headers of its files. No weight is read, and torch is not imported.

transformers opens `model.safetensors`, else the shards that `model.safetensors.index.json` names.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data.errors import UserError
from retrieval.model_files import adapter_files
from retrieval.model_files.files import WHOLE_MODEL, is_adapter, no_weights, read_json
from retrieval.model_files.safetensors_headers import Shapes, header

_WHOLE, _INDEX = WHOLE_MODEL
# How the token table's weight is named, from the most to the least usual.
_TOKEN_TABLES = (
    "word_embeddings.weight", "embed_tokens.weight", "tok_embeddings.weight", "shared.weight", "wte.weight", "word_embedding.weight",
    "token_embedding.weight",
)  # fmt: skip


def tensor_shapes(folder: Path, *, option: str) -> Shapes:
    """Name and shape of every tensor that transformers would find; of an adapter, of the model that it makes of its base.

    Raises UserError: no weights that it opens, a file that is cut short or none of safetensors, a missing shard, a tensor of the index
    that its shard does not hold.
    """
    if is_adapter(folder):
        return {**tensor_shapes(adapter_files.base_folder(folder), option=option), **adapter_files.whole_tensors(folder)}
    named = read_json(folder / "config.json").get("transformers_weights")
    whole = folder / (named if isinstance(named, str) else _WHOLE)
    if whole.is_file() or whole.is_symlink():
        return header(whole)
    if (folder / _INDEX).is_file():
        return _of_shards(folder)
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    if others:
        raise UserError(f"{option}: {folder} holds {others[0]}, but no {whole.name} and no {_INDEX}, which transformers opens")
    raise UserError(no_weights(folder, option=option))


def tensor_files(folder: Path, *, option: str) -> dict[str, Path]:
    """The file that holds each tensor, as `tensor_shapes` finds them, in the order of the files. Raises UserError as that does."""
    names = tensor_shapes(folder, option=option)
    named = read_json(folder / "config.json").get("transformers_weights")
    whole = folder / (named if isinstance(named, str) else _WHOLE)
    if whole.is_file():
        return dict.fromkeys(names, whole)
    shard_of = read_json(folder / _INDEX)["weight_map"]
    return {name: folder / shard_of[name] for name in names}


def _of_shards(folder: Path) -> Shapes:
    index = folder / _INDEX
    shard_of: dict[str, Any] = read_json(index).get("weight_map") or {}
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(name, str) for name in shard_of.values()):
        raise UserError(f"{index}: expected a weight_map, from the names of tensors to those of files")
    shards = sorted(set(shard_of.values()))
    missing = [name for name in shards if not (folder / name).exists()]
    if missing:
        raise UserError(f"{folder} lacks {len(missing)} of the {len(shards)} shards that {_INDEX} names: {missing[0]}; fetch it again")
    shapes = {name: header(folder / name) for name in shards}
    lost = [tensor for tensor, shard in shard_of.items() if tensor not in shapes[shard]]
    if lost:
        raise UserError(f"{index} names {lost[0]} ({len(lost)} such), which {shard_of[lost[0]]} does not hold: fetch the model again")
    return {tensor: shapes[shard][tensor] for tensor, shard in shard_of.items()}


def token_rows(shapes: Shapes) -> int | None:
    """Rows of the token embedding table; None where no tensor bears a usual name of one."""
    for ending in _TOKEN_TABLES:
        for name, shape in shapes.items():
            if name.endswith(ending) and len(shape) == 2:
                return shape[0]
    return None
