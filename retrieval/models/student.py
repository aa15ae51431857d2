"""What a student checkpoint is, read from its files without loading it (no torch here, so that a plan stays cheap)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.config.settings import POOLINGS, Student
from data.digests import DigestCache, json_digest
from data.errors import UserError
from retrieval.model_files.checks import check_student
from retrieval.model_files.custom_code import check_custom_code, code_key
from retrieval.model_files.files import resolve_folder, tokenizer_digest, transformer_folder, weights_digest
from retrieval.model_files.model_lengths import check_length
from retrieval.model_files.module_files import ModuleSpec
from retrieval.model_files.sentence_transformers_files import FolderSettings, folder_settings, is_sentence_transformers

_NOT_KEYED = ("folder", "lower_case", "trust_remote_code", "option", "notes", "modules", "pools_prompt")
# sentence-transformers leaves the prompts of these out of the pooling by their names, which their files do not say.
_INSTRUCTORS = ("hkunlp/instructor-base", "hkunlp/instructor-large", "hkunlp/instructor-xl")

# A vector of a passage does not depend on how queries are read, and the other way round.
OF_THE_OTHERS = {"corpus": ("query_prefix", "query_tokens"), "queries": ("passage_prefix", "passage_tokens")}

EMBEDDING_VERSION = 5  # raised when the same texts, model and precision give other vectors


@dataclass(frozen=True)
class StudentSpec:
    """A student's settings with every `auto` and `null` resolved from its folder: what decides its vectors, besides the weights."""

    folder: Path
    layers: int | None
    pooling: str
    normalize: bool
    query_prefix: str
    passage_prefix: str
    query_tokens: int
    passage_tokens: int
    pools_prompt: bool = True  # False: the tokens of a prompt are read and left out of the pooling
    modules: tuple[ModuleSpec, ...] = ()  # what is made of the pooled vector, before it is normalised
    lower_case: bool = False  # lower-cased before the tokenizer's own normalisation
    truncate_dim: int | None = None  # first dimensions that are kept of a vector, before it is normalised; None: all
    trust_remote_code: bool = False
    option: str = "student.model"  # the setting that names it; for people, never keyed
    notes: tuple[str, ...] = ()  # what a person should know of how its files were read, of which nothing is an error

    @property
    def weights_folder(self) -> Path:
        """Where config.json, the weights and the tokenizer lie."""
        return transformer_folder(self.folder)

    def key(self, digests: DigestCache) -> dict[str, Any]:
        """What a fingerprint holds of the student: content digests and resolved settings, never the path.

        A setting that resolves to the same value so gives the same key, whoever set it.
        """
        settings = {name: value for name, value in asdict(self).items() if name not in _NOT_KEYED}
        if self.truncate_dim is None:  # as the keys of stores that are older than the setting
            del settings["truncate_dim"]
        if not self.pools_prompt:
            settings["pools_prompt"] = False
        if self.modules:
            settings["modules"] = [module.key(digests) for module in self.modules]
        return {
            **settings,
            "weights": weights_digest(self.weights_folder, digests, option=self.option),
            "tokenizer": self.tokenizer_digest,
            **code_key(self.weights_folder, trusted=self.trust_remote_code),
        }

    @property
    def tokenizer_digest(self) -> str:
        """Digest of what makes the student's tokens of a text, which training shards carry."""
        digest = tokenizer_digest(self.weights_folder)
        return json_digest([digest, "lower case"]) if self.lower_case else digest


def resolve_student(student: Student, *, option: str = "student.model") -> StudentSpec:
    """Fill `auto` and `null` from the folder's files. Imports no model code. `option` is for errors.

    Raises UserError: what `folder_settings` and `check_student` refuse, a pooling that is not known, a similarity that no inner product
    is, a length above the model's positions.
    """
    folder = resolve_folder(student.model, option=option, revision=student.revision, with_code=student.trust_remote_code)
    check_custom_code(transformer_folder(folder), option=option, trusted=student.trust_remote_code)
    own = folder_settings(folder, option=option)
    if student.pooling == "auto":
        _check_pooling(own, folder, option=option)
    if student.normalize is None:
        _check_similarity(own, folder, option=option)
    query_prefix = own.query_prompt if student.query_prefix == "auto" else student.query_prefix
    passage_prefix = own.passage_prompt if student.passage_prefix == "auto" else student.passage_prefix
    spec = StudentSpec(
        folder=folder,
        layers=student.layers,
        pooling=own.pooling if student.pooling == "auto" else student.pooling,
        pools_prompt=(own.pools_prompt and student.model not in _INSTRUCTORS) or not (query_prefix or passage_prefix),
        modules=own.modules,
        normalize=own.normalize if student.normalize is None else student.normalize,
        query_prefix=query_prefix,
        passage_prefix=passage_prefix,
        query_tokens=_length(student.query_tokens, own.query_tokens, folder, option="student.query_tokens"),
        passage_tokens=_length(student.passage_tokens, own.passage_tokens, folder, option="student.passage_tokens"),
        lower_case=own.lower_case,
        truncate_dim=own.truncate_dim,
        trust_remote_code=student.trust_remote_code,
        option=option,
        notes=tuple(_notes(student, own, folder)),
    )
    check_student(folder, pooling=spec.pooling, layers=spec.layers, option=option)
    return spec


def _notes(student: Student, own: FolderSettings, folder: Path) -> Iterator[str]:
    if is_sentence_transformers(folder) and own.similarity is None and not own.normalize and student.normalize is None:
        yield (
            f"{folder} names no similarity and normalises nothing: passages are ranked by inner product, where sentence-transformers "
            "would take cosine; student.normalize=true or false decides it"
        )
    if own.unread:
        yield f"{folder}/config_sentence_transformers.json has keys that are not known here: {', '.join(own.unread)}"


def _length(given: int | None, own: int | None, folder: Path, *, option: str) -> int:
    length = own if given is None else given
    if length is None:
        raise UserError(f"{option}=null: the files of {folder} name no length; give a number of tokens")
    check_length(length, transformer_folder(folder), option=option)
    return length


def _check_pooling(own: FolderSettings, folder: Path, *, option: str) -> None:
    if not set(own.pooling.split("+")) <= set(POOLINGS):
        known = ", ".join(POOLINGS)
        raise UserError(f"{option}: {folder} pools by {own.pooling}; {known} are supported (student.pooling=mean takes another one)")
    if not is_sentence_transformers(folder) and (folder / "1_Pooling" / "config.json").is_file():
        raise UserError(
            f"{option}: {folder} has a 1_Pooling folder and no modules.json, which says what to do with it: fetch the whole folder again, "
            "or say student.pooling and student.normalize"
        )


def _check_similarity(own: FolderSettings, folder: Path, *, option: str) -> None:
    """Between vectors of length 1 the Euclidean distance orders as the inner product does. Vectors that are cut have another length."""
    cut = own.normalize and own.truncate_dim is not None
    fitting = (None, "cosine", *([] if cut else ["dot"]), *(["euclidean"] if own.normalize and not cut else []))
    if own.similarity not in fitting:
        raise UserError(
            f"{option}: {folder}/config_sentence_transformers.json says similarity_fn_name={own.similarity}"
            f"{' with truncate_dim and Normalize' if cut else ''}, and passages are ranked by inner product of whole vectors here; "
            "student.normalize=true (cosine) or false (inner product) takes that instead"
        )
