"""Cross-encoders as teachers: a transformers folder under torch, or a graph under ONNX Runtime (`retrieval/teachers/graphs`).

Speed is in `retrieval/teachers/scoring.py` (batches of like length), in `retrieval.compute.low_precision` (bf16 and fp16), in
`retrieval.compute.cpu_attention` and in `retrieval.compute.unpadded` (GPUs).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config import settings
from data.digests import DigestCache
from data.errors import UserError, first_line
from retrieval.batches.encoded import EncodedPairs
from retrieval.compute import precision as precisions
from retrieval.compute.allocator import tune_allocator
from retrieval.compute.batching import DEFAULT_BATCH_TOKENS
from retrieval.model_files.checks import bare_decoder, check_teacher
from retrieval.model_files.custom_code import check_custom_code, code_key
from retrieval.model_files.files import (
    is_adapter,
    read_json,
    resolve_folder,
    text_settings,
    tokenizer_digest,
    tokenizer_files,
    transformer_folder,
    weights_digest,
    withholds_segments,
)
from retrieval.model_files.model_lengths import check_length
from retrieval.model_files.weight_files import tensor_shapes
from retrieval.models.tokenizer import tokenizing_threads
from retrieval.teachers.base import OnBatch, Pair, PreparedPairs, PreparingTeacher, TeacherSettings, TeacherSpec, ignore_batch
from retrieval.teachers.graphs.graph_checks import check_graph
from retrieval.teachers.graphs.graph_files import GraphFiles, find_graph, graphs_in
from retrieval.teachers.graphs.onnx import OnnxCrossEncoder, OnnxGraph, read_graph
from retrieval.teachers.heads import ClassifierHead, Head, PairModel, find_head
from retrieval.teachers.pair_template import KNOWN, PairText, find_pair_text
from retrieval.teachers.pair_tokens import PairTokenizer
from retrieval.teachers.scoring import CrossEncoder, OutOfMemory, score_pairs

# The input is `[CLS] query [SEP] candidate [SEP]` as the tokenizer's own pair template makes it, the longer part cut first.
INPUT_TEMPLATE = "pair/longest_first/v1"


@dataclass(frozen=True)
class CrossEncoderSpec(TeacherSpec):
    """A cross-encoder with its precision resolved."""

    folder: Path  # of weights and tokenizer; of backend onnx, of the tokenizer
    name: str
    backend: str  # torch or onnx
    precision: str
    max_tokens: int
    trust_remote_code: bool = False
    head: Head = field(default_factory=ClassifierHead)  # of backend torch
    template: PairText | None = None  # what stands around a pair; None: the tokenizer joins it
    graph: GraphFiles | None = None  # of backend onnx
    device: str = "cpu"  # cpu or cuda, whose arithmetic the logits are of

    @property
    def tokenizer_folder(self) -> Path:  # type: ignore[override]
        """Where the tokenizer lies."""
        return self.folder

    def key(self, digests: DigestCache) -> dict[str, Any]:
        """Weights, tokenizer, template, truncation, length, head, and precision class on its kind of device."""
        graph = read_graph(self.graph.graph) if self.graph else None
        own_class = self.precision if graph else precisions.class_of(self.precision)
        # Without a mask a logit once depended on the padding of its batch.
        alone = {"batch": "one pair"} if graph and not graph.masks_padding else {}
        return {
            "weights": self._weights_digest(digests),
            "tokenizer": tokenizer_digest(self.folder),
            "template": INPUT_TEMPLATE if self.template is None else self.template.key(),
            "max_tokens": self.max_tokens,
            "head": self.head.key(digests),
            "precision": f"{self.backend}/{precisions.class_on(self.device, own_class)}",
            **alone,
            **self._padding_key(),
            **({"segments": "none"} if self._reads_segments(graph) and withholds_segments(self.folder) else {}),
            **code_key(self.folder, trusted=self.trust_remote_code),
        }

    def _weights_digest(self, digests: DigestCache) -> str:
        option = "teacher.model"
        return self.graph.digest(digests, option=option) if self.graph else weights_digest(self.folder, digests, option=option)

    def _padding_key(self) -> dict[str, Any]:
        """The padding id of a decoder whose tokenizer names another one: padded with that, its logits once depended on their batch."""
        if self.backend != "torch" or not bare_decoder(self.folder):
            return {}
        named = text_settings(read_json(self.folder / "config.json")).get("pad_token_id")
        return {} if named == tokenizer_files(self.folder).pad_id else {"padding": named}

    def _reads_segments(self, graph: OnnxGraph | None) -> bool:
        """Whether the model tells segments apart, which it was once given against what its tokenizer's settings say."""
        if graph:
            return "token_type_ids" in graph.inputs
        shapes = tensor_shapes(self.folder, option="teacher.model")
        return any(name.endswith("token_type_embeddings.weight") and shape[0] > 1 for name, shape in shapes.items())

    def notes(self) -> list[str]:
        """That a decoder names no template."""
        if self.backend != "torch" or self.template is not None or not bare_decoder(self.folder):
            return []
        return [
            f"teacher.model: {self.folder} is a decoder with a scoring head and names no template of query and document, so it reads pairs "
            "as its tokenizer joins them; where its model card tells of a template or instruction, its logits will mean little without: "
            f"give it as teacher.template ({', '.join(KNOWN)}, or a Jinja file)"
        ]

    def open(self, given: TeacherSettings) -> CrossEncoderTeacher:
        """Tokenizer and model, each loaded when it is first needed."""
        return CrossEncoderTeacher(self, given)


class CrossEncoderTeacher(PreparingTeacher):
    """A cross-encoder with its tokenizer."""

    def __init__(self, spec: CrossEncoderSpec, given: TeacherSettings) -> None:
        self._spec = spec
        self._given = given

    @cached_property
    def _tokenizer(self) -> PairTokenizer:
        spec, threads = self._spec, tokenizing_threads(device=self._given.device, threads=self._given.threads)
        trusted, text = spec.trust_remote_code, spec.template
        return PairTokenizer(spec.folder, max_tokens=spec.max_tokens, trusted=trusted, text=text, threads=threads)

    @cached_property
    def _model(self) -> CrossEncoder:
        own = self._given
        return load_cross_encoder(self._spec, device=own.device, threads=own.threads, batch_tokens=own.batch_tokens, compiled=own.compile)

    @property
    def packs(self) -> bool:
        """Whether batches go through the layers without their padding."""
        return self._model.packs

    def load(self) -> None:
        """Tokenizer and model, which tries itself out."""
        _ = self._tokenizer, self._model

    def prepare(self, pairs: Sequence[Pair]) -> PreparedPairs:
        """The pairs' tokens."""
        encoded = self._tokenizer.encode(pairs)
        return PreparedPairs(encoded, encoded.lengths.astype(np.int32), encoded.truncated)

    def score_prepared(self, prepared: PreparedPairs, *, on_batch: OnBatch = ignore_batch) -> NDArray[np.float32]:
        """[n] raw logits. Raises RunFailed as `score_pairs` does."""
        return score_pairs(self._model, prepared.pairs, pad_id=self._tokenizer.pad_id, on_batch=on_batch)


def teacher_source(teacher: settings.Teacher) -> Path:
    """The teacher's folder as it was named. Raises UserError where it is not to be had."""
    return resolve_folder(teacher.model, option="teacher.model", revision=teacher.revision, with_code=teacher.trust_remote_code)


def resolve_cross_encoder(teacher: settings.Teacher, *, device: str) -> CrossEncoderSpec:
    """Find a transformers folder and its precision class, and check its files. Loads no model.

    Raises UserError: no such model, not of this backend, `max_tokens` above what it can read, and all that `check_teacher` finds.
    """
    folder = teacher_source(teacher)
    weights = transformer_folder(folder)
    if not (os.path.lexists(weights / "config.json") or is_adapter(weights)) and (graphs := graphs_in(folder)):
        needs = f"holds no config.json, which teacher.backend=torch needs, but {graphs[0]}"
        raise UserError(f"teacher.model: {folder} {needs}; try teacher.backend=onnx?")
    check_custom_code(weights, option="teacher.model", trusted=teacher.trust_remote_code)
    check_teacher(folder, option="teacher.model")
    check_length(teacher.max_tokens, weights, option="teacher.max_tokens")
    precision = precisions.resolve(teacher.precision, device=device)
    head, text = find_head(folder, teacher), find_pair_text(folder, teacher)
    if head.needs_template and text is None:
        raise UserError(
            f"teacher.model: {folder} is a language model, and nothing says which text it reads a pair in: give teacher.template "
            f"({', '.join(KNOWN)}, or a Jinja file)"
        )
    trusted = teacher.trust_remote_code
    return CrossEncoderSpec(weights, teacher.model, "torch", precision, teacher.max_tokens, trusted, head, text, device=device)


def resolve_graph(teacher: settings.Teacher, *, device: str) -> CrossEncoderSpec:
    """Find an ONNX graph, its tokenizer and configuration, and check them. Needs no ONNX Runtime.

    Raises UserError as `find_graph` and `check_graph`, and for a tokenizer of Python code that is not trusted.
    """
    files, trusted = find_graph(teacher), teacher.trust_remote_code
    check_custom_code(files.tokenizer, option="teacher.model", trusted=trusted, graph=True)
    check_graph(files, max_tokens=teacher.max_tokens, option="teacher.model")
    precision = "graph"  # the file has its number format inside it, and its content is in the weights digest
    text = find_pair_text(files.texts, teacher)
    return CrossEncoderSpec(
        files.tokenizer, teacher.model, "onnx", precision, teacher.max_tokens, trusted, template=text, graph=files, device=device
    )


def load_cross_encoder(
    spec: CrossEncoderSpec, *, device: str, threads: int, batch_tokens: int | None = None, compiled: bool = False
) -> CrossEncoder:
    """The model, ready to score, in eval mode (offline logits must repeat, so there is no dropout).

    `threads` are those of an ONNX session; torch's are the caller's to set. `batch_tokens` count padding; None takes the device's default.
    `compiled`: use torch.compile, under torch; the first batches then take about half a minute.

    Raises UserError where its logits are another kind of device's, to which this one's are not added.
    """
    if device != spec.device:
        raise UserError(
            f"teacher.model: this store has its logits from {spec.device}, and new pairs would get {device}'s, which round otherwise: "
            f"give runner.device={spec.device}, or delete them (prep cache gc) to have all scored anew"
        )
    if spec.graph:
        batch_tokens = batch_tokens or DEFAULT_BATCH_TOKENS[device]
        return OnnxCrossEncoder(spec.graph.graph, device=device, threads=threads, batch_tokens=batch_tokens)
    precision = precisions.resolve(spec.precision, device=device)
    return TorchCrossEncoder(
        spec.folder, precision=precision, device=device, batch_tokens=batch_tokens, compiled=compiled,
        trusted=spec.trust_remote_code, head=spec.head,
    )  # fmt: skip


def _open(head: Head, folder: Path, precision: str, *, trusted: bool, ways: Sequence[dict[str, Any]]) -> PairModel:
    """The head's model. Where it is lowered anyway, a large one is opened in the number format of its file, if it computes in it."""
    if precision != "fp32" and head.keeps_stored(folder):
        import torch

        from retrieval.compute import stored_precision
        from retrieval.compute.cpu_attention import own_attention
        from retrieval.compute.probe import probe_batch

        with contextlib.suppress(UserError, RuntimeError, TypeError, AttributeError), stored_precision.kept(folder):
            model = head.open(folder, trusted=trusted, ways=ways)
            with torch.inference_mode(), own_attention(model.backbone):
                model.logits(*probe_batch(model.backbone))
            return model
    return head.open(folder, trusted=trusted, ways=ways)


class TorchCrossEncoder:
    """A cross-encoder under torch, whose logit is made by its head."""

    def __init__(
        self,
        folder: Path,
        *,
        precision: str,
        device: str,
        batch_tokens: int | None = None,
        compiled: bool = False,
        unpad: bool | None = None,  # None: on GPUs, in low precision
        trusted: bool = False,  # whether code that comes with the checkpoint may run
        head: Head | None = None,  # None: a classifier with one output
    ) -> None:
        import torch

        from retrieval.compute import cpu_attention, low_precision, unpadded
        from retrieval.compute.probe import pad_id_of
        from retrieval.models.padding import check_padding

        self._torch = torch
        self._device = device
        self._compiled = compiled
        self.batch_tokens = batch_tokens or DEFAULT_BATCH_TOKENS[device]
        self.length_multiple = 1 if device == "cpu" else 8  # tensor cores want multiples of 8; a CPU only has more padding then (3 %)
        self.one_thread_each = device == "cpu" and not compiled and not unpad  # compiled code has its number of threads inside
        if device == "cpu":
            tune_allocator()
        ways = [{"attn_implementation": cpu_attention.register_cpu_attention()}] if device == "cpu" else []
        self._model = _open(head or ClassifierHead(), folder, precision, trusted=trusted, ways=[*ways, {}])
        self._model.to(device)
        backbone = self._model.backbone
        self._pad_id = pad_id_of(backbone) or 0
        check_padding(backbone, check=self._logits_of, option="teacher.model")
        low_precision.apply(backbone, precision=precision, check=self._logits_of, option="teacher.precision", compiled=compiled)
        unpad = device == "cuda" and precision != "fp32" and not compiled if unpad is None else unpad
        self.packs = unpad and unpadded.install(backbone)
        if not compiled and (device != "cpu" or unpad):
            self.on_device = self._on_device
        if compiled:
            import torch._inductor.config

            torch._inductor.config.freezing = True  # weights become constants, laid out as the processor's kernels want them
            backbone.compile(dynamic=True)

    def _on_device(self, pairs: EncodedPairs) -> Any:
        """What launches batches of the pairs on a GPU."""
        from retrieval.batches.on_device import OnDevice

        return OnDevice(self._logits_of, pairs.ids, segments=pairs.segments, pad_id=self._pad_id, device=self._device)

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64], segments: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, L] arrays to [n] raw fp32 logits."""
        torch = self._torch
        arrays = [np.where(mask, ids, self._pad_id), mask, segments]
        if self._compiled and len(ids) == 1:  # a dimension of 1 would be compiled once more, for itself
            arrays = [np.repeat(array, 2, axis=0) for array in arrays]
        try:
            return self._logits_of(*(torch.from_numpy(array).to(self._device) for array in arrays))[: len(ids)].cpu().numpy()
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            raise OutOfMemory(first_line(error)) from error

    def _logits_of(self, ids: Any, mask: Any, segments: Any) -> Any:
        with self._torch.inference_mode():
            return self._model.logits(ids, mask, segments)
