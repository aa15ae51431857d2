"""Whether a cross-encoder's folder asks for more than a plain pair of query and passage, which is all that teachers read.

A folder with a template or a prompt was trained on other texts: without it, its logits rank as if at random (measured on a Qwen3
reranker, Spearman's rho 0.18 to what it gives with its template).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from data.errors import UserError
from retrieval.model_files.adapter_files import settings_folder
from retrieval.model_files.files import module_list, read_json, tokenizer_folder, tokenizer_settings, transformer_folder
from retrieval.model_files.folder_file import FolderFile
from retrieval.model_files.sentence_transformers_files import check_arguments, check_truncation_side

ONE_OUTPUT = "a cross-encoder with one output (num_labels=1) is needed"


def refuse_modules(folder: Path, *, option: str) -> None:
    """A cross-encoder of sentence-transformers is one Transformer; what follows it (LogitScore, Pooling, Dense) makes another score."""
    kinds = [module["type"].rsplit(".", 1)[-1] for module in module_list(settings_folder(folder))]
    if kinds not in ([], ["Transformer"]):
        raise UserError(
            f"{option}: {folder} is a chain of sentence-transformers modules ({', '.join(kinds)} in its modules.json), of which a teacher "
            f"may have a Transformer alone; {ONE_OUTPUT}"
        )


def refuse_templates(folder: Path, *, option: str) -> None:
    """Raises UserError for a template of query and document, a prompt, a cut on the left, or arguments of sentence-transformers."""
    weights = transformer_folder(folder)
    for place, template in _templates(*dict.fromkeys((folder, weights, tokenizer_folder(weights)))):
        # A role or a variable of this name; the word in running text is none.
        if all(re.search(rf"""(['"])({names})\1|\{{\{{-?\s*({names})\b""", template) for names in ("query", "document|passage")):
            raise UserError(
                f"{option}: {folder} has a template for query and document ({place}), which teachers do not read yet: its logits would be "
                "of other texts than those it was trained on; choose a teacher that reads plain pairs"
            )
    _refuse_prompt(folder, option=option)
    check_truncation_side(weights, option=option)
    file = FolderFile.read(weights / "sentence_bert_config.json", option=option)
    check_arguments(file, weights)
    if file.content.get("do_lower_case") and not _lowers(weights):
        raise file.refusal("do_lower_case", "but a teacher's texts are lower-cased by its tokenizer alone, and this one does not")


def _lowers(weights: Path) -> bool:
    """Whether a tokenizer lower-cases texts itself; one without tokenizer.json is BERT's, which does as its own settings say."""
    if not (tokenizer_folder(weights) / "tokenizer.json").is_file():
        return True
    normalizer = json.dumps(tokenizer_settings(weights).get("normalizer"))
    return '"lowercase": true' in normalizer or '"Lowercase"' in normalizer


def _refuse_prompt(folder: Path, *, option: str) -> None:
    path = settings_folder(folder) / "config_sentence_transformers.json"
    settings = read_json(path)
    prompts = settings.get("prompts")
    for name in (settings.get("default_prompt_name"), "query", "document", "passage"):
        if isinstance(prompts, dict) and name is not None and (prompt := prompts.get(str(name))):
            raise UserError(
                f"{option}: {folder} asks for the prompt {name!r} ({prompt!r} in its {path.name}), which teachers do not read yet; choose "
                "another teacher, or take the prompt out of that file if pairs are to be read without it"
            )


def _templates(*folders: Path) -> Iterator[tuple[str, str]]:
    """Chat templates, each with where it stands."""
    for folder in folders:
        for path in [folder / "chat_template.jinja", *sorted(folder.glob("additional_chat_templates/*.jinja"))]:
            if path.is_file():
                yield path.name, path.read_text(encoding="utf-8", errors="replace")
        for name in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
            given = read_json(folder / name).get("chat_template")
            for template in given if isinstance(given, list) else [given]:
                text = template.get("template") if isinstance(template, dict) else template
                if isinstance(text, str):
                    yield f"chat_template in {name}", text
