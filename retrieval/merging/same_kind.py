"""Whether checkpoints are of one kind, so that the mean of their weights means anything. Read from their files; no weight is loaded.

    tokenizer    the same tokens for a text
    config.json  the same architecture: every key that changes what is computed, defaults filled in
    modules      pooling, what comes behind it, prompts, lower-casing, similarity
    weights      the same names and shapes

Lengths may differ: the first model's are taken.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError, first_line
from data.formats.readers import shown
from retrieval.model_files.checks import is_classifier
from retrieval.model_files.files import (
    is_adapter,
    module_list,
    read_json,
    tokenizer_digest,
    transformer_folder,
)
from retrieval.model_files.safetensors_headers import Shapes
from retrieval.model_files.sentence_transformers_files import folder_settings
from retrieval.model_files.weight_files import tensor_shapes

_VOLATILE = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "architectures", "_commit_hash", "use_cache", "return_dict")
_LENGTHS = ("query_tokens", "passage_tokens")
_UNCOMPARED = (*_LENGTHS, "modules", "unread", "similarity")  # of a similarity `normalize` says what it changes here
_COMPUTED = ("position_ids", "token_type_ids", "inv_freq", "num_batches_tracked")  # buffers that a class makes itself
_SHOWN = 3


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder, and the folders below it that hold weights ("" is the folder itself)."""

    name: str  # as it was given
    folder: Path
    weights: tuple[str, ...]

    @property
    def transformer(self) -> Path:
        """Where config.json lies."""
        return transformer_folder(self.folder)

    @property
    def embeds(self) -> bool:
        """Whether it is a dual encoder by its files, not a cross-encoder."""
        of_folder = read_json(self.folder / "config_sentence_transformers.json").get("model_type")
        return of_folder != "CrossEncoder" and not is_classifier(read_json(self.transformer / "config.json"))


def checkpoint(name: str, folder: Path) -> Checkpoint:
    """A model to be averaged. Raises UserError: an adapter, a quantised model, weights that are not whole, or no safetensors."""
    option = f"models: {name}"
    transformer = transformer_folder(folder)
    if is_adapter(transformer):
        raise UserError(f"models={name} is an adapter, whose base lies elsewhere: merge it into that first (PEFT's merge_and_unload)")
    config = read_json(transformer / "config.json")
    if not config:
        raise UserError(f"models={name}: {transformer} holds no config.json, it is not a transformers checkpoint")
    if config.get("quantization_config") or config.get("compression_config"):
        raise UserError(f"models={name} is quantised; give the model as it was before, in fp32, bf16 or fp16")
    places = [transformer.relative_to(folder).as_posix().removeprefix(".")]
    places += [module["path"] for module in module_list(folder) if _holds_weights(folder / module["path"], folder, transformer)]
    for place in places:
        tensor_shapes(folder / place, option=option)
    return Checkpoint(name, folder, tuple(places))


def _holds_weights(module: Path, folder: Path, transformer: Path) -> bool:
    patterns = ("*.safetensors", "*.bin", "*.pt")
    return module not in (folder, transformer) and any(True for pattern in patterns for _ in module.glob(pattern))


def check_same(first: Checkpoint, other: Checkpoint, *, note: Callable[[str], None]) -> None:
    """Raises UserError, naming what differs. `note` gets a line on what may differ, and does."""
    where = f"{other.name} cannot be averaged with {first.name}"
    if first.embeds != other.embeds:
        kinds = ["a dual encoder" if one.embeds else "a cross-encoder" for one in (other, first)]
        raise UserError(f"{where}: it is {kinds[0]}, the other {kinds[1]}")
    if tokenizer_digest(first.transformer) != tokenizer_digest(other.transformer):
        raise UserError(f"{where}: their tokenizers differ")
    _refuse(where, "config.json", _configs(first, other))
    _refuse(where, "modules", _both(*(_modules(one) for one in (first, other))))
    if first.weights != other.weights:
        raise UserError(f"{where}: weights lie in {_places(other)}, those of the other in {_places(first)}")
    for place in first.weights:
        ours, theirs = (tensor_shapes(one.folder / place, option=f"models: {one.name}") for one in (first, other))
        _check_shapes(ours, theirs, first, where=where, note=note)
    if first.embeds:
        lengths = [{name: getattr(folder_settings(one.folder), name) for name in _LENGTHS} for one in (first, other)]
        if lengths[0] != lengths[1]:
            note(f"lengths differ between {first.name} and {other.name}: {lengths[0]} of the first are taken")


def _places(one: Checkpoint) -> str:
    return ", ".join(place or "the folder itself" for place in one.weights)


Differences = dict[str, tuple[Any, Any]]  # key -> value of the first, value of the other


def _both(first: dict[str, Any], other: dict[str, Any]) -> Differences:
    keys = [*first, *(key for key in other if key not in first)]
    return {key: (first.get(key), other.get(key)) for key in keys if first.get(key) != other.get(key)}


def _refuse(where: str, what: str, differences: Differences) -> None:
    if differences:
        named = [f"{key} is {shown(theirs)}, that of the other {shown(ours)}" for key, (ours, theirs) in list(differences.items())[:_SHOWN]]
        more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise UserError(f"{where}: their {what} differ: {'; '.join(named)}{more}")


def _configs(first: Checkpoint, other: Checkpoint) -> Differences:
    """What differs between two configurations. One that says the defaults and one that leaves them out are the same."""
    files = [read_json(one.transformer / "config.json") for one in (first, other)]
    raw = _both(*({key: value for key, value in file.items() if key not in _VOLATILE} for file in files))
    if not raw or any("auto_map" in file for file in files):
        return raw
    return _both(*({key: value for key, value in _filled(one).items() if key not in _VOLATILE} for one in (first, other)))


def _filled(one: Checkpoint) -> dict[str, Any]:
    from transformers import AutoConfig

    try:
        filled: dict[str, Any] = AutoConfig.from_pretrained(one.transformer).to_dict()
    except Exception as error:  # transformers raises many kinds
        raise UserError(f"models={one.name}: its config.json cannot be read by transformers: {first_line(error)}") from error
    return filled


def _modules(one: Checkpoint) -> dict[str, Any]:
    """What is made of the token vectors, and of a text before them."""
    if one.embeds:
        own = folder_settings(one.folder, option=f"models: {one.name}")
        settings = {name: getattr(own, name) for name in asdict(own) if name not in _UNCOMPARED}
        behind = {"modules": [module.kind for module in own.modules]}
        numbered = enumerate(own.modules, 2)  # as sentence-transformers names their folders
        return {
            **settings,
            **behind,
            **{f"{n}_{module.kind}.{key}": value for n, module in numbered for key, value in module.config().items()},
        }
    listed = module_list(one.folder)
    kinds = [module["type"].rsplit(".", 1)[-1] for module in listed]
    files = {module["path"]: read_json(one.folder / module["path"] / "config.json") for module in listed if module["path"]}
    of_folder = dict(read_json(one.folder / "config_sentence_transformers.json"))
    of_folder.pop("__version__", None)
    return {"modules": kinds, **files, **of_folder}


def _check_shapes(first: Shapes, other: Shapes, one: Checkpoint, *, where: str, note: Callable[[str], None]) -> None:
    """Raises UserError where names or shapes differ, but for what nothing reads."""
    alone = [name for name in (*first, *other) if (name in first) != (name in other)]
    unread = [name for name in alone if _is_unread(name, one)]
    if len(unread) < len(alone):
        lost = [name for name in alone if name not in unread]
        raise UserError(f"{where}: one of them alone has {', '.join(lost[:_SHOWN])} ({len(lost)} such weights)")
    reshaped = {name: (list(shape), list(other[name])) for name, shape in first.items() if other.get(name, shape) != shape}
    _refuse(where, "shapes", reshaped)
    if unread:
        note(f"{len(unread)} weights are in one model alone, and nothing reads them: {', '.join(unread[:_SHOWN])}")


def _is_unread(name: str, one: Checkpoint) -> bool:
    """Whether a weight changes nothing: a buffer that the class makes, the pooler of a dual encoder, an output tied to the token table."""
    tied = read_json(one.transformer / "config.json").get("tie_word_embeddings") is True and name == "lm_head.weight"
    return tied or name.endswith(_COMPUTED) or (one.embeds and "pooler" in name.split("."))
