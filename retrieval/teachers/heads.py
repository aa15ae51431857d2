"""How a torch checkpoint makes one logit of a pair: found from its files, then opened.

    ClassifierHead   a transformers sequence classifier: its one output, or the one that teacher.label names
    AnswerHead       a causal language model: its answer at the end of the pair (`retrieval.teachers.causal_lm`)
    ChainHead        modules of sentence-transformers behind an encoder (`retrieval.teachers.module_chain`)

A further kind is a `Head` in a file of its own, and a line in `find_head`. What comes before the logit (batches, padding, precision, the
check of a batch's independence) is the same for all, in `retrieval/teachers/cross_encoder.py`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from data.config import settings
from data.digests import DigestCache
from data.errors import UserError
from retrieval.model_files.checks import bare_decoder, is_classifier, label_count, other_model
from retrieval.model_files.files import read_json, transformer_folder
from retrieval.model_files.weight_files import tensor_shapes
from retrieval.teachers.plain_pairs import ONE_OUTPUT

if TYPE_CHECKING:
    from torch import Tensor

_OPTION = "teacher.model"
Label = Literal["difference"] | int


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

    needs_template: ClassVar[bool] = False  # whether a pair that the tokenizer joins means nothing to it

    @abstractmethod
    def key(self, digests: DigestCache) -> Any:
        """What the logit namespace holds of it, besides the weights of the folder."""

    @abstractmethod
    def open(self, folder: Path, *, trusted: bool, ways: Sequence[dict[str, Any]]) -> PairModel:
        """The model of the folder in fp32, in eval mode, on the CPU. `trusted` and `ways` as `open_model` takes them.

        Raises UserError where the folder cannot be opened as this.
        """

    def keeps_stored(self, folder: Path) -> bool:
        """Whether it is so large that in low precision it is opened in the number format of its file."""
        return False


def find_head(folder: Path, teacher: settings.Teacher) -> Head:
    """The head of a checked folder. Opens no model.

    Raises UserError: a model of another task or of several outputs, with the settings that choose among them; modules that are not known.
    """
    from retrieval.teachers.causal_lm import answer_head
    from retrieval.teachers.module_chain import chain_head

    if head := answer_head(folder, teacher):
        if teacher.label is not None:
            raise UserError(
                f"teacher.label={teacher.label}: {folder} is a causal language model, whose outputs are its tokens; leave it out"
            )
        return head
    if chain := chain_head(folder, teacher):
        return chain
    return _classifier_head(transformer_folder(folder), teacher.label)


def _classifier_head(weights: Path, label: Label | None) -> ClassifierHead:
    """The head of a sequence classifier. Raises UserError where the folder holds none, or label does not choose one of its outputs."""
    config = read_json(weights / "config.json")
    own_code = "AutoModelForSequenceClassification" in (config.get("auto_map") or {})
    if not (own_code or is_classifier(config)) and (other := other_model(config, tensor_shapes(weights, option=_OPTION))):
        raise UserError(
            f"{_OPTION}: {weights} is {other}, not a sequence classifier; {ONE_OUTPUT}. train.task=cross_encoder makes one of an encoder"
        )
    return ClassifierHead(choose_label(label, label_count(config), config.get("id2label"), f"{_OPTION}: {weights}"))


def choose_label(label: Label | None, count: int, names: Any, model: str) -> Label | None:
    """Which of `count` outputs is the logit; None for a single one. `names` is id2label, `model` begins an error.

    Raises UserError where the setting is missing, and where it names none of them.
    """
    if count == 1:
        if label in (None, 0):
            return None
        raise UserError(f"teacher.label={label}: the model has one output; leave the label out")
    called = ", ".join(f"{number}: {name}" for number, name in names.items()) if isinstance(names, dict) else f"0 to {count - 1}"
    if label is None:
        difference = ", teacher.label=difference that of the second less the first" if count == 2 else ""
        raise UserError(
            f"{model} has {count} outputs; {ONE_OUTPUT}, or a choice: teacher.label=N takes the logit of one ({called}){difference}"
        )
    if label == "difference" and count != 2:
        raise UserError(f"teacher.label=difference is of two outputs, the model has {count} ({called}); give the number of one")
    if label != "difference" and not 0 <= label < count:
        raise UserError(f"teacher.label={label}: the model has the outputs 0 to {count - 1} ({called})")
    return label


@dataclass(frozen=True)
class ClassifierHead(Head):
    """A transformers sequence classifier: its one output, one of several, or the second less the first."""

    label: Label | None = None

    def key(self, digests: DigestCache) -> Any:
        """As the stores have it that are older than other heads; with the label where there are several."""
        return "logit" if self.label is None else {"label": self.label}

    def keeps_stored(self, folder: Path) -> bool:
        """Decoders are large."""
        return bare_decoder(folder)

    def open(self, folder: Path, *, trusted: bool, ways: Sequence[dict[str, Any]]) -> PairModel:
        """The classifier. Raises UserError where it has not the outputs that its files said."""
        return _Classifier(folder, self.label, trusted=trusted, ways=ways)


class _Classifier(PairModel):
    def __init__(self, folder: Path, label: Label | None, *, trusted: bool, ways: Sequence[dict[str, Any]]) -> None:
        from retrieval.models.loading import open_model

        self.backbone = open_model("AutoModelForSequenceClassification", folder, option=_OPTION, trusted=trusted, ways=ways)
        config = self.backbone.config
        self._label = choose_label(label, config.num_labels, config.id2label, f"{_OPTION}: {folder}")
        self._has_segments = getattr(config, "type_vocab_size", 1) > 1

    def logits(self, ids: Tensor, mask: Tensor, segments: Tensor) -> Tensor:
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self._has_segments:
            inputs["token_type_ids"] = segments
        logits = self.backbone(**inputs).logits
        if self._label == "difference":
            return logits[:, 1].float() - logits[:, 0].float()
        return logits[:, self._label or 0].float()
