"""What a sentence-transformers folder says of itself: pooling, normalisation, prompts, lengths, lower-casing. Loads no model.

Read as sentence-transformers 6.2 reads them; folders saved by older versions have other module names and flags for the same things.

    modules.json                        which modules, in which folders
    sentence_bert_config.json           lengths, do_lower_case   (beside the weights)
    1_Pooling/config.json               how token vectors become one
    config_sentence_transformers.json   prompts
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.errors import UserError
from retrieval.checkpoint_files import read_json, transformer_folder
from retrieval.model_lengths import most_positions, usual_length

_QUERY_PROMPTS, _PASSAGE_PROMPTS = ("query",), ("document", "passage", "corpus")  # the first one there is taken
_SHORT_MODES = {"cls_token": "cls", "mean_tokens": "mean"}
_OLD_NAMES = ("roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")  # sentence_<name>_config.json


@dataclass(frozen=True)
class FolderSettings:
    """A checkpoint's own settings; the defaults are those of a plain transformers folder."""

    pooling: str = "cls"
    normalize: bool = False
    pools_prompt: bool = True  # False: the prompt's tokens are left out of the pooling
    query_prompt: str = ""
    passage_prompt: str = ""
    query_tokens: int | None = None  # longest text in tokens, special ones included; None where no file says
    passage_tokens: int | None = None
    lower_case: bool = False


def is_sentence_transformers(folder: Path) -> bool:
    """Whether a checkpoint folder says of itself how its vectors are made."""
    return (folder / "modules.json").is_file()


def folder_settings(folder: Path) -> FolderSettings:
    """The settings of a checkpoint folder.

    Raises UserError where it has a module other than Transformer, Pooling and Normalize, or pools otherwise than by cls or mean.
    """
    weights = transformer_folder(folder)
    if not is_sentence_transformers(folder):
        longest = _longest(weights, None)
        return FolderSettings(query_tokens=longest, passage_tokens=longest)
    transformer = _transformer_config(weights)
    if transformer.get("query_expansion"):
        raise UserError(f"student.model: {folder} pads its queries with mask tokens (query_expansion), which is not supported")
    pooling, pools_prompt, normalize = _modules(folder)
    prompts = read_json(folder / "config_sentence_transformers.json")
    longest = transformer.get("max_seq_length")
    return FolderSettings(
        pooling=pooling,
        normalize=normalize,
        pools_prompt=pools_prompt,
        query_prompt=_prompt(prompts, _QUERY_PROMPTS, folder),
        passage_prompt=_prompt(prompts, _PASSAGE_PROMPTS, folder),
        query_tokens=_longest(weights, transformer.get("query_length") or longest),
        passage_tokens=_longest(weights, transformer.get("document_length") or longest),
        lower_case=bool(transformer.get("do_lower_case")),
    )


def _transformer_config(weights: Path) -> dict[str, Any]:
    names = ["sentence_bert_config.json", *(f"sentence_{name}_config.json" for name in _OLD_NAMES)]
    return next((found for name in names if (found := read_json(weights / name))), {})


def _longest(weights: Path, named: int | None) -> int | None:
    """The length that the files name, never above what the model has positions for."""
    lengths = [length for length in (named or usual_length(weights), most_positions(weights)) if length is not None]
    return min(lengths, default=None)


def _modules(folder: Path) -> tuple[str, bool, bool]:
    """(pooling, whether it takes the prompt in, normalize)."""
    pooling: tuple[str, bool] | None = None
    normalize = False
    for module in json.loads((folder / "modules.json").read_text(encoding="utf-8")):
        kind = _kind(module["type"])
        settings = read_json(folder / module["path"] / "config.json") if kind in ("Pooling", "Normalize") else {}
        if kind == "Pooling":
            pooling = _pooling_mode(settings, folder), settings.get("include_prompt", True) is not False
        elif kind == "Normalize" and settings.get("module_input_name", "sentence_embedding") == "sentence_embedding":
            normalize = True
        elif kind != "Transformer":
            raise UserError(f"student.model: {folder} has a module {module['type']}; Transformer, Pooling and Normalize are supported")
    if pooling is None:
        raise UserError(f"student.model: {folder} has no Pooling module, so its files do not say what the vector of a text is")
    return *pooling, normalize


def _kind(module_type: str) -> str:
    """`Pooling` of `sentence_transformers.models.Pooling` and of `sentence_transformers.sentence_transformer.modules.pooling.Pooling`.

    A class from elsewhere keeps its whole name: it is code that comes with the checkpoint, whatever it is called.
    """
    return module_type.rsplit(".", 1)[-1] if module_type.startswith("sentence_transformers.") else module_type


def _pooling_mode(settings: dict[str, Any], folder: Path) -> str:
    mode = settings.get("pooling_mode")  # since sentence-transformers 5.x; older files have a flag for each mode
    modes = [mode] if isinstance(mode, str) else list(mode or [])
    flags = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on is True]
    modes = modes or [flag.removeprefix("pooling_mode_") for flag in flags] or ["mean"]
    modes = [_SHORT_MODES.get(name, name) for name in modes]
    if len(modes) != 1 or modes[0] not in ("cls", "mean"):
        raise UserError(f"student.model: {folder} pools by {', '.join(modes)}; cls and mean are supported")
    return modes[0]


def _prompt(config: dict[str, Any], names: tuple[str, ...], folder: Path) -> str:
    """The first prompt of these names, an empty one too; else the default one, which a plain `encode` puts before every text."""
    prompts = config.get("prompts") or {}
    for name in names:
        if name in prompts:
            return prompts[name] or ""
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise UserError(
            f"student.model: {folder} has no prompt {default!r}, its default_prompt_name; it has {', '.join(prompts) or 'none'}"
        )
    return (prompts[default] or "") if default is not None else ""
