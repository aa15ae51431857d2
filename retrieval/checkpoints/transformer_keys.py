"""The keys of sentence_bert_config.json, which sentence-transformers hands to its Transformer: what is read, what changes no vector, and
the refusal of the rest.

A key read over is another vector without a word, so the harmless ones are listed, not the harmful.
"""

from __future__ import annotations

from pathlib import Path

from data.errors import UserError
from retrieval.checkpoints.files import read_json, tokenizer_settings
from retrieval.checkpoints.folder_file import FolderFile

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


def check_transformer(file: FolderFile, weights: Path) -> None:
    """Raises UserError, naming file and key, for the first one that would change a vector and is not honoured."""
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


def check_arguments(file: FolderFile, weights: Path) -> None:
    """Raises UserError for what the file would have from_pretrained told and is not read."""
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


def named_lengths(file: FolderFile) -> tuple[int | None, int | None]:
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
