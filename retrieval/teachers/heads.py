"""How a torch checkpoint makes one logit of a pair: found from its files, then opened.

    ClassifierHead   a transformers sequence classifier with one output
    ChainHead        modules of sentence-transformers behind an encoder (`retrieval.teachers.module_chain`)

A further kind is a `Head` in a file of its own, and a line in `find_head`. What comes before the logit (batches, padding, precision, the
check of a batch's independence) is the same for all, in `retrieval/teachers/cross_encoder.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data.config import settings
from data.digests import DigestCache
from data.errors import UserError
from retrieval.teachers.plain_pairs import ONE_OUTPUT

if TYPE_CHECKING:
    from torch import Tensor


class PairModel(ABC):
    """A model that is open: token ids in, logits out."""

    backbone: Any  # the transformers model, whose layers get their precision and attention

    def to(self, device: str) -> None:
        """Move all weights."""
        self.backbone.to(device=device)

    @abstractmethod
    def logits(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        """[n, L] token ids, mask and segment ids, padded on the right, to [n] fp32 logits."""


class Head(ABC):
    """What the files of a checkpoint say of how its logit is made. Frozen, and small: it travels to the workers."""

    @abstractmethod
    def key(self, digests: DigestCache) -> Any:
        """What the logit namespace holds of it, besides the weights of the folder."""

    @abstractmethod
    def open(self, folder: Path, *, trusted: bool, ways: Sequence[dict[str, Any]]) -> PairModel:
        """The model of the folder in fp32, in eval mode, on the CPU. `trusted` and `ways` as `open_model` takes them.

        Raises UserError where the folder cannot be opened as this.
        """


def find_head(folder: Path, teacher: settings.Teacher) -> Head:
    """The head of a checked folder. Opens no model. Raises UserError for modules that are not honoured."""
    from retrieval.teachers.module_chain import chain_head

    return chain_head(folder, teacher) or ClassifierHead()


@dataclass(frozen=True)
class ClassifierHead(Head):
    """A transformers sequence classifier with one output."""

    def key(self, digests: DigestCache) -> Any:
        """As the stores have it that are older than other heads."""
        return "logit"

    def open(self, folder: Path, *, trusted: bool, ways: Sequence[dict[str, Any]]) -> PairModel:
        """The classifier. Raises UserError where it has another number of outputs."""
        return _Classifier(folder, trusted=trusted, ways=ways)


class _Classifier(PairModel):
    def __init__(self, folder: Path, *, trusted: bool, ways: Sequence[dict[str, Any]]) -> None:
        from retrieval.models.loading import open_model

        self.backbone = open_model("AutoModelForSequenceClassification", folder, option="teacher.model", trusted=trusted, ways=ways)
        config = self.backbone.config
        if config.num_labels != 1:
            raise UserError(f"teacher.model: {folder} has {config.num_labels} outputs; {ONE_OUTPUT}")
        self._has_segments = getattr(config, "type_vocab_size", 1) > 1

    def logits(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self._has_segments:
            inputs["token_type_ids"] = segments
        return self.backbone(**inputs).logits[:, 0].float()
