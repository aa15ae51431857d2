"""What a sentence-transformers folder says of itself: pooling, normalisation, prompts, lengths, lower-casing. Loads no model.

Read as sentence-transformers 6.2 reads them; folders saved by older versions have other module names and flags for the same things.

    modules.json                        which modules, in which folders
    sentence_bert_config.json           lengths, do_lower_case   (beside the weights; others: `transformer_keys`)
    1_Pooling/config.json               how token vectors become one
    config_sentence_transformers.json   prompts, similarity, truncate_dim
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError
from retrieval.checkpoints.files import module_list, read_json, transformer_folder
from retrieval.checkpoints.folder_file import FolderFile
from retrieval.checkpoints.model_lengths import most_positions, usual_length
from retrieval.checkpoints.transformer_keys import check_transformer, check_truncation_side, named_lengths

_QUERY_PROMPTS, _PASSAGE_PROMPTS = ("query",), ("document", "passage", "corpus")  # the first one there is taken
_SHORT_MODES = {"cls_token": "cls", "mean_tokens": "mean"}
_MODULES = ("Transformer", "Pooling", "Normalize")
_TRANSFORMER_NAMES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")  # sentence_<name>_config.json
_POOLING_KEYS = ("pooling_mode", "include_prompt", "word_embedding_dimension", "embedding_dimension")
_FOLDER_KEYS = (
    "__version__", "model_type", "requirements", "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim",
)  # fmt: skip


@dataclass(frozen=True)
class FolderSettings:
    """A checkpoint's own settings; the defaults are those of a plain transformers folder."""

    pooling: str = "cls"  # or a mode that is not supported
    normalize: bool = False
    pools_prompt: bool = True  # False: the prompt's tokens are left out of the pooling
    query_prompt: str = ""
    passage_prompt: str = ""
    query_tokens: int | None = None  # longest text in tokens, special ones included; None where no file says
    passage_tokens: int | None = None
    lower_case: bool = False
    similarity: str | None = None  # of vectors, as the files name it; None where they do not
    truncate_dim: int | None = None  # first dimensions of a vector that are kept, where there are more
    unread: tuple[str, ...] = ()  # keys of config_sentence_transformers.json that nobody here knows


def is_sentence_transformers(folder: Path) -> bool:
    """Whether a checkpoint folder says of itself how its vectors are made."""
    return (folder / "modules.json").is_file()


def has_lost_its_modules(folder: Path) -> bool:
    """Whether it once said so, and was copied without the file that all of it hangs on."""
    return not is_sentence_transformers(folder) and (folder / "1_Pooling" / "config.json").is_file()


def folder_settings(folder: Path, *, option: str = "student.model") -> FolderSettings:
    """The settings of a checkpoint folder. `option` is for errors.

    Raises UserError where a file says what is not supported: another module than Transformer, Pooling and Normalize in that order, keys
    of the Transformer that change its vectors, texts cut on the left, another kind of model.
    """
    weights = transformer_folder(folder)
    check_truncation_side(weights, option=option)
    if not is_sentence_transformers(folder):
        longest = _longest(weights, None)
        return FolderSettings(query_tokens=longest, passage_tokens=longest)
    files = [FolderFile.read(weights / f"sentence_{name}_config.json", option=option) for name in _TRANSFORMER_NAMES]
    transformer = next((file for file in files if file.content), files[0])
    check_transformer(transformer, weights)
    pooling, normalizes = _modules(folder, option=option)
    own = FolderFile.read(folder / "config_sentence_transformers.json", option=option)
    if own.text("model_type") not in (None, "SentenceTransformer"):
        raise own.refusal("model_type", "and only a SentenceTransformer gives one vector for a text")
    similarity, kept = own.text("similarity_fn_name"), own.count("truncate_dim")
    size = read_json(weights / "config.json").get("hidden_size")
    query_length, passage_length = named_lengths(transformer)
    return FolderSettings(
        pooling=_pooling_modes(pooling),
        # Search is by inner product, which is cosine between vectors of length 1. A folder that names no similarity stays as it is:
        # sentence-transformers would take cosine there as well, but most such folders are older than the key, and many were trained for
        # the inner product (TAS-B, the multi-qa and msmarco `dot` models).
        normalize=normalizes or similarity == "cosine",
        pools_prompt=pooling.content.get("include_prompt", True) is not False,
        query_prompt=_prompt(own, _QUERY_PROMPTS, others=_PASSAGE_PROMPTS),
        passage_prompt=_prompt(own, _PASSAGE_PROMPTS, others=_QUERY_PROMPTS),
        query_tokens=_longest(weights, query_length),
        passage_tokens=_longest(weights, passage_length),
        lower_case=bool(transformer.content.get("do_lower_case")),
        similarity=similarity,
        truncate_dim=None if kept is None or (isinstance(size, int) and kept >= size) else kept,
        unread=tuple(sorted(own.content.keys() - set(_FOLDER_KEYS))),
    )


def _longest(weights: Path, named: int | None) -> int | None:
    """The length that the files name, never above what the model has positions for."""
    lengths = [length for length in (named or usual_length(weights), most_positions(weights)) if length is not None]
    return min(lengths, default=None)


def _modules(folder: Path, *, option: str) -> tuple[FolderFile, bool]:
    """(settings of the pooling, whether its vectors are normalised)."""
    found: list[tuple[str, FolderFile]] = []
    for module in module_list(folder):
        kind, settings = module["type"], FolderFile.read(folder / module["path"] / "config.json", option=option)
        # `Pooling` of whichever module of sentence-transformers: it moved. A class from elsewhere is code that comes with the checkpoint.
        kind = kind.rsplit(".", 1)[-1] if kind.startswith("sentence_transformers.") else kind
        if kind not in _MODULES or (kind == "Normalize" and not _normalizes_texts(settings)):
            raise UserError(f"{option}: {folder} has a module {module['type']}; Transformer, Pooling and Normalize are supported")
        found.append((kind, settings))
    if any(kind != _MODULES[min(place, 2)] for place, (kind, _) in enumerate(found)):
        raise UserError(
            f"{option}: {folder / 'modules.json'} lists {', '.join(kind for kind, _ in found)}; one Transformer, one Pooling and at most "
            "Normalize behind them, in this order, are supported"
        )
    if len(found) < 2:
        raise UserError(f"{option}: {folder} has no Pooling module, so its files do not say what the vector of a text is")
    pooling = found[1][1]
    if not pooling.path.is_file():
        raise UserError(f"{option}: {pooling.path} is missing, which says how token vectors become one; fetch the whole folder again")
    return pooling, len(found) > 2


def _normalizes_texts(settings: FolderFile) -> bool:
    name = "sentence_embedding"
    input_name = settings.content.get("module_input_name") or name
    return input_name == (settings.content.get("module_output_name") or input_name) == name


def _pooling_modes(settings: FolderFile) -> str:
    """`cls`, `mean`, or the names of what is not supported."""
    flags = [key for key in settings.content if key.startswith("pooling_mode_")]
    settings.refuse_others([*_POOLING_KEYS, *flags])
    mode = settings.of_type("pooling_mode", (str, list), "a mode, or a list of them")  # since 5.x; older files have a flag for each mode
    modes = [mode] if isinstance(mode, str) else list(mode or [])
    modes = modes or [flag.removeprefix("pooling_mode_") for flag in flags if settings.content[flag]] or ["mean"]
    return ", ".join(_SHORT_MODES.get(str(name), str(name)) for name in modes)


def _prompt(own: FolderFile, names: tuple[str, ...], *, others: tuple[str, ...]) -> str:
    """The first prompt of these names, an empty one too; else the default one, which a plain `encode` puts before every text.

    A default that names the `others`' prompt is theirs alone: `encode_query` and `encode_document` never fall back to it.
    """
    prompts = own.part("prompts")
    for name in names:
        if name in prompts.content:
            return prompts.text(name) or ""
    default = own.text("default_prompt_name")
    if default is not None and default not in prompts.content:
        raise own.refusal("default_prompt_name", f"but has no prompt {default!r}; it has {', '.join(prompts.content) or 'none'}")
    return "" if default is None or default in others else prompts.text(default) or ""
