"""A cross-encoder of sentence-transformers whose score comes out of modules behind the Transformer, as the Ettin rerankers have it.

    Transformer -> Pooling -> Dense -> LayerNorm -> Dense, which writes `scores`

Each module reads and writes under a name; what none of them writes as `scores` is an embedding model. The `activation_fn` that such a
folder names for scores is not applied: a teacher's logits are raw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.config import settings
from data.config.settings import POOLINGS
from data.digests import DigestCache
from data.errors import UserError
from retrieval.model_files.adapter_files import settings_folder
from retrieval.model_files.files import behind_transformer, read_json, text_settings, transformer_folder
from retrieval.model_files.folder_file import FolderFile
from retrieval.model_files.module_files import (
    VECTOR,
    VECTOR_MODULES,
    Listed,
    ModuleSpec,
    PoolingSpec,
    listed_modules,
    read_module,
    read_pooling,
)
from retrieval.model_files.sentence_transformers_files import check_transformer
from retrieval.teachers.heads import Head, PairModel
from retrieval.teachers.plain_pairs import ONE_OUTPUT

if TYPE_CHECKING:
    from torch import Tensor

SCORES = "scores"  # what sentence-transformers takes for the logits


@dataclass(frozen=True)
class ChainHead(Head):
    """Pooling and what is behind it."""

    pooling: PoolingSpec
    modules: tuple[ModuleSpec, ...]

    def key(self, digests: DigestCache) -> Any:
        """Settings and weights of all modules."""
        return {"pooling": asdict(self.pooling), "modules": [module.key(digests) for module in self.modules]}

    def open(self, folder: Path, *, trusted: bool, ways: Sequence[dict[str, Any]]) -> PairModel:
        """The encoder and its modules. Raises UserError where a file of weights cannot be read."""
        return _Chain(self, folder, trusted=trusted, ways=ways)


def chain_head(folder: Path, teacher: settings.Teacher) -> ChainHead | None:
    """The head of a chain, None where a Transformer is all that a folder has. Opens no model.

    Raises UserError, naming module or key, for what is not honoured: other modules or another order, a name that nothing writes, vectors
    of another size than the next module reads, none or several scores, weights that are missing or pickled, a folder of another kind.
    """
    home = settings_folder(folder)
    if not behind_transformer(home):
        return None
    option, listed = "teacher.model", listed_modules(home, option="teacher.model")
    kinds = [module.kind for module in listed]
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds[2:]) <= set(VECTOR_MODULES):
        raise UserError(
            f"{option}: {folder} is a chain of sentence-transformers modules ({', '.join(kinds)} in its modules.json); a teacher is a "
            f"Transformer, or a Transformer, a Pooling, and then {', '.join(VECTOR_MODULES)}"
        )
    own = FolderFile.read(home / "config_sentence_transformers.json", option=option)
    if own.text("model_type") != "CrossEncoder":
        raise own.refusal("model_type", 'and only a "CrossEncoder" scores pairs')
    if teacher.label is not None:
        raise UserError(f"teacher.label={teacher.label}: {folder} is a chain of modules, which gives one score; leave it out")
    check_transformer(transformer_folder(home), option=option)
    pooling = _pooling(listed[1], option=option)
    modules = tuple(map(read_module, listed[2:]))
    _check_names(folder, pooling, modules, option=option)
    return ChainHead(pooling, modules)


def _pooling(listed: Listed, *, option: str) -> PoolingSpec:
    pooling = read_pooling(listed.file)
    if not pooling.include_prompt:
        raise listed.file.refusal("include_prompt", "but all tokens of a pair are pooled: write true into a copy of the folder")
    if unknown := [mode for mode in pooling.modes.split("+") if mode not in POOLINGS]:
        raise UserError(f"{option}: {listed.file.path} pools by {unknown[0]}; {', '.join(POOLINGS)} are supported")
    return pooling


def _check_names(folder: Path, pooling: PoolingSpec, modules: Sequence[ModuleSpec], *, option: str) -> None:
    """Every module finds what it reads, in the size that it expects, and one score comes out."""
    size = text_settings(read_json(transformer_folder(folder) / "config.json")).get("hidden_size")
    sizes = {VECTOR: size * len(pooling.modes.split("+")) if isinstance(size, int) else None}
    for module in modules:
        if module.reads not in sizes:
            raise UserError(f"{option}: {module.folder} reads {module.reads}, which no module before it writes")
        expected, made = module.sizes
        there = sizes[module.reads]
        if None not in (expected, there) and expected != there:
            raise UserError(f"{option}: {module.folder} reads vectors of {expected} dimensions, and {module.reads} has {there}")
        sizes[module.writes] = there if made is None else made
    if SCORES not in sizes:
        raise UserError(f"{option}: no module of {folder} writes {SCORES}, so it gives vectors of texts; {ONE_OUTPUT}")
    if sizes[SCORES] != 1:
        raise UserError(f"{option}: the modules of {folder} give {sizes[SCORES]} scores; {ONE_OUTPUT}")


class _Chain(PairModel):
    def __init__(self, head: ChainHead, folder: Path, *, trusted: bool, ways: Sequence[dict[str, Any]]) -> None:
        from retrieval.models.loading import open_model
        from retrieval.models.modules import open_modules

        option = "teacher.model"
        ways = [*({"add_pooling_layer": False, **way} for way in ways), *ways]  # it would compute what nothing reads
        self.backbone = open_model("AutoModel", folder, option=option, trusted=trusted, ways=ways)
        self._modules = open_modules(head.modules, option=option).eval()
        self._head = head
        self._has_segments = getattr(self.backbone.config, "type_vocab_size", 1) > 1

    def to(self, device: str) -> None:
        super().to(device)
        self._modules.to(device=device)

    def logits(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        from retrieval.models.pooling import pool

        inputs = {"input_ids": ids, "attention_mask": mask, **({"token_type_ids": segments} if self._has_segments else {})}
        states = self.backbone(**inputs).last_hidden_state
        vectors = {VECTOR: pool(states, mask, self._head.pooling.modes)}
        for spec, module in zip(self._head.modules, self._modules, strict=True):
            vectors[spec.writes] = module(vectors[spec.reads])
        return vectors[SCORES][:, 0].float()
