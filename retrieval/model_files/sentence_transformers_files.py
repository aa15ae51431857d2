"""What a sentence-transformers folder says of itself: pooling, normalisation, prompts, lengths, lower-casing. Loads no model.

Read as sentence-transformers 6.2 reads them; folders saved by older versions have other module names and flags for the same things.

    modules.json                        which modules, in which folders
    sentence_bert_config.json           lengths, do_lower_case   (beside the weights)
    1_Pooling/config.json, 2_Dense/     how token vectors become one, and what is made of it (`retrieval.model_files.module_files`)
    config_sentence_transformers.json   prompts, similarity, truncate_dim
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from data.errors import UserError
from retrieval.model_files.adapter_files import settings_folder
from retrieval.model_files.architectures import is_causal_language_model
from retrieval.model_files.files import read_json, tokenizer_settings, transformer_folder
from retrieval.model_files.folder_file import FolderFile
from retrieval.model_files.model_lengths import most_positions, usual_length
from retrieval.model_files.module_files import (
    VECTOR,
    VECTOR_MODULES,
    ModuleSpec,
    NormalizeSpec,
    PoolingSpec,
    listed_modules,
    read_module,
    read_pooling,
    size_after,
)

_QUERY_PROMPTS, _PASSAGE_PROMPTS = ("query",), ("document", "passage", "corpus")  # the first one there is taken
_FIRST_MODULES = ("Transformer", "Pooling")
_TRANSFORMER_NAMES = ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")  # sentence_<name>_config.json
_FOLDER_KEYS = (
    "__version__", "model_type", "requirements", "prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim",
)  # fmt: skip

# The keys of sentence_bert_config.json, which go to the Transformer: what is read, what changes no vector, and the refusal of the rest.
# A key read over is another vector without a word, so the harmless ones are listed, not the harmful.
_LENGTHS = ("max_seq_length", "query_length", "document_length")
_READ = (*_LENGTHS, "do_lower_case", "query_expansion", "transformer_task", "modality_config", "module_output_name", "processing_kwargs")
_HARMLESS = ("unpad_inputs", "cache_dir", "backend")
_FETCHING = ("trust_remote_code", "cache_dir", "local_files_only", "token", "use_auth_token", "revision", "code_revision", "force_download")

# What goes to from_pretrained of model, tokenizer and configuration, by old and new name, with the keys that change no vector here: weights
# are computed as our own settings say. A key is harmless, too, where it repeats what the file named last says.
_LOADING = (
    (("model_args", "model_kwargs"), (
        "attn_implementation", "dtype", "torch_dtype", "device_map", "low_cpu_mem_usage", "add_pooling_layer", "use_safetensors",
    ), "config.json"),
    (("tokenizer_args", "processor_kwargs"), (
        "model_max_length", "use_fast", "padding_side", "clean_up_tokenization_spaces",
    ), "tokenizer_config.json"),
    (("config_args", "config_kwargs"), ("use_cache", "return_dict", "attn_implementation"), "config.json"),
)  # fmt: skip
_TEXT_PROCESSING = ("max_length", "truncation", "padding", "padding_side", "pad_to_multiple_of", "logits_to_keep")


@dataclass(frozen=True)
class FolderSettings:
    """A checkpoint's own settings; the defaults are those of a plain transformers folder."""

    pooling: str = "cls"  # or a mode that is not supported
    modules: tuple[ModuleSpec, ...] = ()  # what is made of the pooled vector
    normalize: bool = False  # whether length 1 is the last of it
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
    return (settings_folder(folder) / "modules.json").is_file()


def folder_settings(folder: Path, *, option: str = "student.model") -> FolderSettings:
    """The settings of a checkpoint folder. `option` is for errors.

    Raises UserError where a file says what is not supported: modules other than Transformer, Pooling and those that work on vectors, in
    that order, keys that change the vectors, texts cut on the left, another kind of model.
    """
    weights = transformer_folder(folder)
    check_truncation_side(weights, option=option)
    folder = settings_folder(folder)
    if not is_sentence_transformers(folder):
        longest = _longest(weights, None)
        mode = "lasttoken" if is_causal_language_model(weights) else "cls"
        return FolderSettings(pooling=mode, query_tokens=longest, passage_tokens=longest)
    transformer = check_transformer(transformer_folder(folder), option=option)
    pooling, modules = _modules(folder, option=option)
    normalizes = bool(modules) and isinstance(modules[-1], NormalizeSpec)
    modules = modules[:-1] if normalizes else modules
    own = FolderFile.read(folder / "config_sentence_transformers.json", option=option)
    if own.text("model_type") not in (None, "SentenceTransformer"):
        raise own.refusal("model_type", "and only a SentenceTransformer gives one vector for a text")
    similarity = own.text("similarity_fn_name")
    kept = own.count("truncate_dim")
    hidden = read_json(weights / "config.json").get("hidden_size")
    several = pooling.modes.count("+") + 1
    size = size_after(modules, several * hidden if isinstance(hidden, int) and not modules else None, option=option)
    query_length, passage_length = _named_lengths(transformer)
    return FolderSettings(
        pooling=pooling.modes,
        modules=modules,
        # Search is by inner product, which is cosine between vectors of length 1. A folder that names no similarity stays as it is:
        # sentence-transformers would take cosine there as well, but most such folders are older than the key, and many were trained for
        # the inner product (TAS-B, the multi-qa and msmarco `dot` models).
        normalize=normalizes or similarity == "cosine",
        pools_prompt=pooling.include_prompt,
        query_prompt=_prompt(own, _QUERY_PROMPTS, others=_PASSAGE_PROMPTS),
        passage_prompt=_prompt(own, _PASSAGE_PROMPTS, others=_QUERY_PROMPTS),
        query_tokens=_longest(weights, query_length),
        passage_tokens=_longest(weights, passage_length),
        lower_case=bool(transformer.content.get("do_lower_case")),
        similarity=similarity,
        truncate_dim=None if kept is None or (size is not None and kept >= size) else kept,
        unread=tuple(sorted(own.content.keys() - set(_FOLDER_KEYS))),
    )


def _longest(weights: Path, named: int | None) -> int | None:
    """The length that the files name, never above what the model has positions for."""
    lengths = [length for length in (named or usual_length(weights), most_positions(weights)) if length is not None]
    return min(lengths, default=None)


def _modules(folder: Path, *, option: str) -> tuple[PoolingSpec, tuple[ModuleSpec, ...]]:
    """The pooling, and what comes behind it."""
    found = listed_modules(folder, option=option)
    for module in found:
        if module.kind not in (*_FIRST_MODULES, *VECTOR_MODULES):
            known = ", ".join((*_FIRST_MODULES, *VECTOR_MODULES))
            raise UserError(f"{option}: {folder} has a module {module.type}; {known} are supported")
    kinds = tuple(module.kind for module in found)
    if kinds[:2] != _FIRST_MODULES[: len(kinds)] or set(kinds[2:]) & set(_FIRST_MODULES):
        raise UserError(
            f"{option}: {folder / 'modules.json'} lists {', '.join(kinds)}; one Transformer, one Pooling and what works on vectors "
            f"({', '.join(VECTOR_MODULES)}) behind them, in this order, are supported"
        )
    if len(found) < 2:
        raise UserError(f"{option}: {folder} has no Pooling module, so its files do not say what the vector of a text is")
    modules = [read_module(module) for module in found[2:]]
    for spec, listed in zip(modules, found[2:], strict=True):
        if (spec.reads, spec.writes) != (VECTOR, VECTOR):
            raise UserError(
                f"{option}: {folder} has a module {listed.type} that reads {spec.reads} and writes {spec.writes} ({listed.file.path}), and "
                f"only the vector of a text, {VECTOR}, is supported"
            )
    return read_pooling(found[1].file), tuple(modules)


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


def check_transformer(weights: Path, *, option: str) -> FolderFile:
    """The settings of a Transformer that gives the vectors of tokens.

    Raises UserError, naming file and key, for the first one that would change a vector and is not honoured.
    """
    files = [FolderFile.read(weights / f"sentence_{name}_config.json", option=option) for name in _TRANSFORMER_NAMES]
    file = next((file for file in files if file.content), files[0])
    file.refuse_others([*_READ, *_HARMLESS, *(name for pair, _, _ in _LOADING for name in pair)])
    if file.content.get("query_expansion"):
        raise file.refusal("query_expansion", "which pads queries with mask tokens and is not supported")
    check_arguments(file, weights)
    processing = file.part("processing_kwargs")
    processing.part("common").refuse_others(["return_tensors", "padding"])
    text = processing.part("text")
    text.refuse_others(_TEXT_PROCESSING)
    if text.content.get("truncation") not in (None, True, "longest_first", "only_first"):
        raise text.refusal("truncation", "but texts are cut to student.query_tokens and student.passage_tokens here")
    if file.text("transformer_task") not in (None, "feature-extraction"):
        raise file.refusal("transformer_task", "but only feature-extraction gives vectors that can be pooled")
    if file.content.get("modality_config") is not None:
        _check_modalities(file, file.part("modality_config"))
    return file


def check_arguments(file: FolderFile, weights: Path) -> None:
    """Raises UserError for arguments of from_pretrained that the file gives and that are not read."""
    for pair, harmless, home in _LOADING:
        there = read_json(weights / home)
        for section in map(file.part, pair):
            for key, value in section.content.items():
                if key not in (*harmless, *_FETCHING) and value is not None and there.get(key) != value:
                    raise section.refusal(key, f"which is not read: write it into the {home} of a copy of the folder, or take it out")


def _check_modalities(file: FolderFile, modalities: FolderFile) -> None:
    """The vectors of all tokens, last layer, of the text itself: what an encoder gives and Pooling takes."""
    if "message" in modalities.content:
        raise file.refusal("modality_config", "which puts every text into the chat template; that is not supported")
    text = modalities.part("text").content
    if text.get("method") != "forward" or text.get("method_output_name") not in ("last_hidden_state", ["last_hidden_state"]):
        raise file.refusal("modality_config", "but only the last_hidden_state of a text's forward pass is pooled")
    if file.text("module_output_name") not in (None, "token_embeddings"):
        raise file.refusal("module_output_name", "but only token_embeddings can be pooled")


def _named_lengths(file: FolderFile) -> tuple[int | None, int | None]:
    """The longest query and passage in tokens, None where the file leaves it to model and tokenizer. The innermost name wins."""
    of_tokenizer = [file.part(name).count("model_max_length") for name in ("processor_kwargs", "tokenizer_args")]
    plain = next((length for length in of_tokenizer if length), None) or file.count("max_seq_length")
    for_all = file.part("processing_kwargs").part("text").count("max_length")
    query, passage = (for_all or file.count(name) or plain for name in ("query_length", "document_length"))
    return query, passage


def check_truncation_side(weights: Path, *, option: str) -> None:
    """Raises UserError where the tokenizer cuts long texts on the left: here all texts are cut on the right."""
    side, name = read_json(weights / "tokenizer_config.json").get("truncation_side"), "tokenizer_config.json"
    if side is None:
        side, name = (tokenizer_settings(weights).get("truncation") or {}).get("direction"), "tokenizer.json"
    if str(side or "right").lower() != "right":
        raise UserError(
            f'{option}: {weights / name} cuts long texts on the {str(side).lower()}, which is not supported; with truncation_side="right" '
            "in the tokenizer_config.json of a copy of the folder they are cut on the right"
        )
