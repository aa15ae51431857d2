"""What a student checkpoint is, read from its files without loading it (no torch here, so that a plan stays cheap)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.digests import DigestCache
from data.errors import UserError
from data.settings import Student
from retrieval.checkpoint_files import read_json, resolve_folder, tokenizer_digest, transformer_folder, weights_digest


@dataclass(frozen=True)
class StudentSpec:
    """A student's settings with every `auto` resolved from its folder: what decides its vectors, besides the weights."""

    folder: Path
    layers: int | None
    pooling: str
    normalize: bool
    query_prefix: str
    passage_prefix: str
    query_tokens: int
    passage_tokens: int

    @property
    def weights_folder(self) -> Path:
        """Where config.json, the weights and the tokenizer lie."""
        return transformer_folder(self.folder)

    def key(self, digests: DigestCache) -> dict[str, Any]:
        """What a fingerprint holds of the student: content digests and settings, never the path."""
        settings = {name: value for name, value in asdict(self).items() if name != "folder"}
        return {
            **settings,
            "weights": weights_digest(self.weights_folder, digests, option="student.model"),
            "tokenizer": self.tokenizer_digest,
        }

    @property
    def tokenizer_digest(self) -> str:
        """Digest of the student's tokenizer, which training shards carry."""
        return tokenizer_digest(self.weights_folder)


def resolve_student(student: Student, *, option: str = "student.model") -> StudentSpec:
    """Fill `auto` from the folder's sentence-transformers files where it has them. Imports no model code. `option` is for errors."""
    folder = resolve_folder(student.model, option=option)
    pooling, normalize = _sentence_transformers_settings(folder)
    return StudentSpec(
        folder=folder,
        layers=student.layers,
        pooling=pooling if student.pooling == "auto" else student.pooling,
        normalize=normalize if student.normalize is None else student.normalize,
        query_prefix=student.query_prefix,
        passage_prefix=student.passage_prefix,
        query_tokens=student.query_tokens,
        passage_tokens=student.passage_tokens,
    )


def _sentence_transformers_settings(folder: Path) -> tuple[str, bool]:
    """(pooling, normalize) of a sentence-transformers folder; ("cls", False) for a plain transformers one."""
    if not (folder / "modules.json").is_file():
        return "cls", False
    pooling, normalize = "cls", False
    for module in json.loads((folder / "modules.json").read_text()):
        kind = module["type"].rsplit(".", 1)[-1]
        if kind == "Pooling":
            pooling = _pooling_mode(read_json(folder / module["path"] / "config.json"), folder)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise UserError(f"student.model: {folder} has a module {kind}; Transformer, Pooling and Normalize are supported")
    return pooling, normalize


def _pooling_mode(settings: dict[str, Any], folder: Path) -> str:
    mode = settings.get("pooling_mode")  # since sentence-transformers 5.x; older files have a flag for each mode
    modes = [mode] if isinstance(mode, str) else list(mode or [])
    flags = [name for name, on in settings.items() if name.startswith("pooling_mode_") and on is True]
    modes = modes or [flag.removeprefix("pooling_mode_") for flag in flags]
    short = {"cls_token": "cls", "mean_tokens": "mean"}
    modes = [short.get(name, name) for name in modes]
    if len(modes) != 1 or modes[0] not in ("cls", "mean"):
        raise UserError(f"student.model: {folder} pools by {modes}; cls and mean are supported")
    return modes[0]
