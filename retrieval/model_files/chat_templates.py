"""The chat template and the prompt that a cross-encoder's folder names for its pairs. Renders nothing.

sentence-transformers gives a template one message with the role `query` and one with the role `document`. Which template, and what it is
given, is read here as its version 6.2 and transformers read it:

    chat_template.jinja, tokenizer_config.json   the template
    sentence_bert_config.json                    whether pairs go through it, and what else it is given
    config_sentence_transformers.json            the prompt, which is the system message
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data.errors import UserError
from retrieval.model_files.adapter_files import settings_folder
from retrieval.model_files.files import read_json, role_tokens, tokenizer_folder, transformer_folder
from retrieval.model_files.folder_file import FolderFile

_FLAT_MODELS = ("apertus", "deepseek_v3", "gpt_oss", "seed_oss")  # whose templates look as if they read parts
_READS_PARTS = ("content[0]", ".type", "'type'", '"type"', "message.content[")
_SIZES = ("padding", "truncation", "max_length", "return_tensors")  # of processing_kwargs.chat_template, for the tokenizer
_PAIR_PROMPTS = ("query", "document", "passage")


@dataclass(frozen=True)
class ChatTemplate:
    """A Jinja template of pairs, and what it is rendered with."""

    text: str
    place: str  # where it stands, for errors
    structured: bool = False  # a message's content is a list of parts
    variables: dict[str, Any] = field(default_factory=dict)  # special tokens, and what the folder gives besides


def chat_template(folder: Path, *, option: str) -> ChatTemplate | None:
    """The template through which a folder's pairs go; None where they are plain pairs of the tokenizer.

    A template for chats alone, as most language models have one, is none of pairs, unless the folder says that pairs go through it.
    Raises UserError where the folder asks for a template that it lacks, or has one of pairs that is not its default.
    """
    weights = transformer_folder(folder)
    file = FolderFile.read(transformer_folder(settings_folder(folder)) / "sentence_bert_config.json", option=option)
    given = _given(file)
    modalities = file.part("modality_config").content
    templates = _named(tokenizer_folder(weights))
    name = given.pop("chat_template", None) or "default"
    found = templates.get(name) or ((name, file.path.name) if "{" in name else None)
    if modalities and "message" not in modalities:
        return None
    if found and (modalities or carries_pairs(found[0])):
        return chat_template_of(*found, weights=weights, structured=_format(file), variables=given)
    if modalities:
        raise file.refusal("modality_config", f"which puts pairs into the chat template {name!r}, but the folder has none of that name")
    for place, text in _elsewhere(folder, weights, templates):
        if carries_pairs(text):
            raise UserError(
                f"{option}: {folder} has a template of query and document that is not its default one ({place}); write it to a file and "
                "give that as teacher.template, or take it out of a copy of the folder"
            )
    return None


def chat_template_of(
    text: str, place: str, *, weights: Path, structured: bool | None = None, variables: dict[str, Any] | None = None
) -> ChatTemplate:
    """A template text for the tokenizer of a folder. `structured`: None has it told from the text, as sentence-transformers does."""
    if structured is None:
        flat = read_json(weights / "config.json").get("model_type") in _FLAT_MODELS
        structured = not flat and any(pattern in text for pattern in _READS_PARTS)
    return ChatTemplate(text, place, structured, {**role_tokens(weights), **(variables or {})})


def carries_pairs(text: str) -> bool:
    """Whether a template names a query and a document, as roles or variables; the words in running text are none."""
    return all(re.search(rf"""(['"])({names})\1|\{{\{{-?\s*({names})\b""", text) for names in ("query", "document|passage"))


def default_prompt(folder: Path, *, option: str) -> str | None:
    """What `CrossEncoder.predict` puts before a query, or into the system message; None where that is nothing.

    Raises UserError for a default that is not there, and where prompts of queries or documents have no default among them.
    """
    file = _prompt_file(folder, option=option)
    found = pair_prompts(folder, option=option)
    if file.text("default_prompt_name") is None and found:
        name, prompt = next(iter(found.items()))
        raise file.part("prompts").refusal(
            name,
            "but names no default_prompt_name, so it is open whether pairs are read with it: set "
            f"teacher.instruction={prompt!r}, or an empty one",
        )
    return found.get(file.text("default_prompt_name") or "")


def pair_prompts(folder: Path, *, option: str) -> dict[str, str]:
    """Those of a folder's prompts that pairs may be read with, by name: the default one first, no empty ones."""
    file = _prompt_file(folder, option=option)
    prompts, default = file.part("prompts"), file.text("default_prompt_name")
    if default is not None and default not in prompts.content:
        raise file.refusal("default_prompt_name", f"but has no prompt {default!r}; it has {', '.join(prompts.content) or 'none'}")
    names = dict.fromkeys([*([default] if default is not None else []), *_PAIR_PROMPTS])
    return {name: prompt for name in names if (prompt := prompts.text(name))}


def _prompt_file(folder: Path, *, option: str) -> FolderFile:
    return FolderFile.read(settings_folder(folder) / "config_sentence_transformers.json", option=option)


def _given(file: FolderFile) -> dict[str, Any]:
    """What `apply_chat_template` is given besides the messages."""
    section = file.part("processing_kwargs").part("chat_template")
    if section.content.get("restore_suffix") is False:
        raise section.refusal("restore_suffix", "but the text behind a document that is too long is always kept here")
    if section.content.get("continue_final_message"):
        raise section.refusal("continue_final_message", "which is not supported: write the template so that it ends where it should")
    section.text("chat_template")
    return {key: value for key, value in section.content.items() if key not in (*_SIZES, "restore_suffix", "continue_final_message")}


def _format(file: FolderFile) -> bool | None:
    """Whether messages have their content in parts, where the folder says so."""
    named = file.part("modality_config").part("message").text("format")
    return None if named in (None, "auto") else named == "structured"


def _named(weights: Path) -> dict[str, tuple[str, str]]:
    """Templates by name, each with where it stands. Files win over tokenizer_config.json."""
    paths = [(path.stem, path) for path in sorted(weights.glob("additional_chat_templates/*.jinja"))]
    files = [("default", weights / "chat_template.jinja"), *paths]
    if found := {name: (read_template(path), path.name) for name, path in files if path.is_file()}:
        return found
    return dict(_in_json(weights / "tokenizer_config.json"))


def _elsewhere(folder: Path, weights: Path, templates: dict[str, tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """(place, text) of all templates of the folder that are not its default."""
    yield from ((f"{name} in {place}", text) for name, (text, place) in templates.items() if name != "default")
    home = tokenizer_folder(weights)
    for path in (home / "tokenizer_config.json", home / "chat_template.json", home / "processor_config.json"):
        yield from ((place, text) for _, (text, place) in _in_json(path))
    if folder != weights:
        yield from ((str(folder / place), text) for text, place in _named(folder).values())


def _in_json(path: Path) -> Iterator[tuple[str, tuple[str, str]]]:
    given = read_json(path).get("chat_template")
    for template in given if isinstance(given, list) else [given]:
        name, text = (template.get("name"), template.get("template")) if isinstance(template, dict) else ("default", template)
        if isinstance(text, str):
            yield str(name), (text, f"chat_template in {path.name}")


def read_template(path: Path) -> str:
    """A Jinja file. Raises UserError where it is none that can be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a template: {error}") from error
