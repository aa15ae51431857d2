"""The teacher: a cross-encoder that gives one raw logit for a (query, candidate) pair, under torch or ONNX Runtime.

Speed is in `score_pairs` (batches of like length under a token budget), in `retrieval.compute.low_precision` (bf16 and fp16, CPU
attention) and in `retrieval.compute.unpadded` (GPUs).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.config.settings import Teacher
from data.digests import DigestCache, json_digest
from data.errors import RunFailed, UserError, first_line
from retrieval.checkpoints.checks import bare_decoder, check_teacher
from retrieval.checkpoints.custom_code import check_custom_code, code_key
from retrieval.checkpoints.files import (
    read_json,
    resolve_folder,
    text_settings,
    tokenizer_digest,
    tokenizer_pad_id,
    transformer_folder,
    weights_digest,
    withholds_segments,
)
from retrieval.checkpoints.model_lengths import check_length
from retrieval.checkpoints.weight_files import tensor_shapes
from retrieval.compute import precision as precisions
from retrieval.compute.allocator import tune_allocator
from retrieval.compute.batching import DEFAULT_BATCH_TOKENS, longest_first, token_budget_batches
from retrieval.models.loading import open_model
from retrieval.teachers.graph_checks import INPUTS, check_graph
from retrieval.teachers.onnx import GRAPH_NAME, OnnxGraph, read_graph
from retrieval.teachers.pair_tokens import PairEncoding

# The input is `[CLS] query [SEP] candidate [SEP]` as the tokenizer's own pair template makes it, the longer part cut first.
INPUT_TEMPLATE = "pair/longest_first/v1"


@dataclass(frozen=True)
class TeacherSpec:
    """A teacher with its precision resolved: what decides its logits."""

    folder: Path
    name: str  # as the user wrote it; for people, never keyed
    backend: str
    precision: str
    max_tokens: int
    trust_remote_code: bool = False

    def key(self, digests: DigestCache) -> dict[str, Any]:
        """The parts of the logit-store namespace (weights, tokenizer, template, truncation, length, head, precision class)."""
        graph = read_graph(self.folder) if self.backend == "onnx" else None
        beside = [self.folder / name for name in graph.external] if graph else []
        # Without a mask a logit once depended on the padding of its batch.
        alone = {"batch": "one pair"} if graph and not graph.masks_padding else {}
        return {
            "weights": weights_digest(self.folder, digests, option="teacher.model", beside=beside),
            "tokenizer": tokenizer_digest(self.folder),
            "template": INPUT_TEMPLATE,
            "max_tokens": self.max_tokens,
            "head": "logit",
            "precision": f"{self.backend}/{precisions.class_of(self.precision) if self.backend == 'torch' else self.precision}",
            **alone,
            **self._padding_key(),
            **({"segments": "none"} if self._reads_segments(graph) and withholds_segments(self.folder) else {}),
            **code_key(self.folder, trusted=self.trust_remote_code),
        }

    def _padding_key(self) -> dict[str, Any]:
        """The padding id of a decoder whose tokenizer names another one: padded with that, its logits once depended on their batch."""
        if self.backend != "torch" or not bare_decoder(self.folder):
            return {}
        named = text_settings(read_json(self.folder / "config.json")).get("pad_token_id")
        return {} if named == tokenizer_pad_id(self.folder) else {"padding": named}

    def _reads_segments(self, graph: OnnxGraph | None) -> bool:
        """Whether the model tells segments apart, which it was once given against what its tokenizer's settings say."""
        if graph:
            return "token_type_ids" in graph.inputs
        shapes = tensor_shapes(self.folder, option="teacher.model")
        return any(name.endswith("token_type_embeddings.weight") and shape[0] > 1 for name, shape in shapes.items())

    def namespace(self, digests: DigestCache) -> str:
        """Digest of `key`: the folder of this teacher's logits in the store."""
        return json_digest(self.key(digests))


def teacher_source(teacher: Teacher) -> Path:
    """The teacher's folder as it was named. Raises UserError where it is not to be had."""
    return resolve_folder(teacher.model, option="teacher.model", revision=teacher.revision, with_code=teacher.trust_remote_code)


def teacher_folder(teacher: Teacher) -> Path:
    """Where the teacher's weights and tokenizer lie, its files checked. Loads no model.

    Raises UserError: no such model, not of this backend, `max_tokens` above what it can read, and all that `check_teacher` and
    `check_graph` find.
    """
    if teacher.backend == "none":
        raise UserError("teacher.backend=none: there is no teacher; set teacher.backend=torch or onnx")
    folder = teacher_source(teacher)
    weights = folder if teacher.backend == "onnx" else transformer_folder(folder)
    needed, other = (GRAPH_NAME, "config.json") if teacher.backend == "onnx" else ("config.json", GRAPH_NAME)
    exports = [str(path.relative_to(folder)) for pattern in ("*.onnx", "onnx/*.onnx") for path in sorted(folder.glob(pattern))]
    if teacher.backend == "onnx" and exports and not os.path.lexists(folder / GRAPH_NAME):
        raise UserError(
            f"teacher.model: {folder} holds no {GRAPH_NAME}, but {exports[0]}: copy it as {GRAPH_NAME}, with its external weights and the "
            "tokenizer's files, into a folder of its own"
        )
    if not os.path.lexists(weights / needed) and os.path.lexists(weights / other):
        remedy = f"teacher.backend={'torch' if teacher.backend == 'onnx' else 'onnx'}"
        raise UserError(f"teacher.model: {folder} holds no {needed}, which teacher.backend={teacher.backend} needs; try {remedy}?")
    check_custom_code(weights, option="teacher.model", trusted=teacher.trust_remote_code, graph=teacher.backend == "onnx")
    if teacher.backend == "onnx":
        check_graph(folder, max_tokens=teacher.max_tokens, option="teacher.model")
    else:
        check_teacher(folder, option="teacher.model")
        check_length(teacher.max_tokens, weights, option="teacher.max_tokens")
    return weights


def teacher_notes(teacher: Teacher) -> list[str]:
    """What a person should know of the teacher's files before it is paid for, of which nothing is an error."""
    if teacher.backend != "torch" or not bare_decoder(folder := teacher_folder(teacher)):
        return []
    return [
        f"teacher.model: {folder} is a decoder with a scoring head and names no template of query and document, so it reads pairs as its "
        "tokenizer joins them; where its model card tells of a template or instruction, its logits will mean little"
    ]


def resolve_teacher(teacher: Teacher, *, device: str) -> TeacherSpec:
    """Find the teacher's folder and its precision class. Raises UserError as `teacher_folder` does."""
    folder = teacher_folder(teacher)
    # An ONNX file has its number format inside it, and its content is in the weights digest.
    precision = "graph" if teacher.backend == "onnx" else precisions.resolve(teacher.precision, device=device)
    return TeacherSpec(folder, teacher.model, teacher.backend, precision, teacher.max_tokens, teacher.trust_remote_code)


class OutOfMemory(Exception):
    """A batch did not fit on the device."""


class CrossEncoder(Protocol):
    """Anything that scores a batch of encoded pairs."""

    batch_tokens: int  # padding included; halved by `score_pairs` when a batch does not fit on a GPU
    length_multiple: int  # batches are padded to a multiple of it
    one_thread_each: bool  # batches are computed side by side, each by one CPU thread
    packs: bool  # batches go through the layers without their padding

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64], segments: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, L] arrays to [n] raw fp32 logits. Raises OutOfMemory."""


def load_cross_encoder(
    spec: TeacherSpec, *, device: str, threads: int, batch_tokens: int | None = None, compiled: bool = False
) -> CrossEncoder:
    """The teacher, ready to score, in eval mode (offline logits must repeat, so there is no dropout).

    Args:
        spec: which teacher, in which precision.
        device: cpu or cuda.
        threads: CPU threads of the ONNX session; torch's are the caller's to set.
        batch_tokens: tokens of a batch, padding included; None takes the device's default.
        compiled: use torch.compile. The first batches then take about half a minute.
    """
    batch_tokens = batch_tokens or DEFAULT_BATCH_TOKENS[device]
    if spec.backend == "onnx":
        return OnnxCrossEncoder(spec.folder, device=device, threads=threads, batch_tokens=batch_tokens)
    return TorchCrossEncoder(
        spec.folder, precision=spec.precision, device=device, batch_tokens=batch_tokens, compiled=compiled, trusted=spec.trust_remote_code
    )


class TorchCrossEncoder:
    """A transformers sequence-classification model with one output."""

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
    ) -> None:
        import torch

        from retrieval.compute import cpu_attention, low_precision, unpadded
        from retrieval.compute.probe import pad_id_of
        from retrieval.models.padding import check_padding

        self._torch, self._device, self._compiled = torch, device, compiled
        self.batch_tokens = batch_tokens or DEFAULT_BATCH_TOKENS[device]
        self.length_multiple = 1 if device == "cpu" else 8  # tensor cores want multiples of 8; a CPU only has more padding then (3 %)
        self.one_thread_each = device == "cpu" and not compiled and not unpad  # compiled code has its number of threads inside
        if device == "cuda" and precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise UserError("teacher.precision=bf16: this GPU would only emulate it; use teacher.precision=fp16")
        if device == "cpu":
            tune_allocator()
        ways = [{"attn_implementation": cpu_attention.register_cpu_attention()}] if device == "cpu" else []
        model = open_model("AutoModelForSequenceClassification", folder, option="teacher.model", trusted=trusted, ways=[*ways, {}])
        if model.config.num_labels != 1:
            outputs = model.config.num_labels
            raise UserError(f"teacher.model: {folder} has {outputs} outputs; a cross-encoder with one output (num_labels=1) is needed")
        self.packs = False
        self._has_segments = getattr(model.config, "type_vocab_size", 1) > 1
        self._model = model.eval().to(device=device)
        self._forward: Callable[..., Any] = self._model
        self._pad_id = pad_id_of(self._model) or 0
        check_padding(self._model, check=self._logits_of, option="teacher.model")
        low_precision.apply(self._model, precision=precision, check=self._logits_of, option="teacher.precision", compiled=compiled)
        if unpad if unpad is not None else device == "cuda" and precision != "fp32" and not compiled:
            self.packs = unpadded.install(self._model)
        if compiled:
            self._forward = self._compile()

    def _compile(self) -> Callable[..., Any]:
        import torch._inductor.config

        torch._inductor.config.freezing = True  # weights become constants, laid out as the processor's kernels want them
        return self._torch.compile(self._model, dynamic=True)

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
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self._has_segments:
            inputs["token_type_ids"] = segments
        with self._torch.inference_mode():
            return self._forward(**inputs).logits[:, 0].float()


class OnnxCrossEncoder:
    """A folder with model.onnx, under ONNX Runtime (extra `onnx`).

    A dynamically quantised graph takes its activation scale from the whole batch, so a logit would depend on its neighbours, by
    up to 0.1 on int8 MiniLM, and on what happens to be cached. Such a graph gets each pair alone; on a CPU that costs 7 %. So does one
    without attention_mask, to which padding is text. Inputs are cast to what the graph wants; where its batch or length is fixed, batches
    are filled up to that.
    """

    def __init__(self, folder: Path, *, device: str, threads: int, batch_tokens: int) -> None:
        self._session = _onnx_session(folder, device=device, threads=threads)
        graph = read_graph(folder)
        one_by_one = "DynamicQuantizeLinear" in graph.operators or not graph.masks_padding
        self.batch_tokens, self.length_multiple = (1 if one_by_one else batch_tokens), graph.length or 1
        self.one_thread_each = False  # the session has threads of its own
        self.packs = False
        self._kinds = {name: value.kind for name, value in graph.inputs.items()}
        self._batch = graph.batch
        self._output = next(iter(graph.outputs))

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64], segments: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, L] arrays to [n] raw fp32 logits."""
        arrays = dict(zip(INPUTS, (ids, mask, segments), strict=True))
        inputs = {name: arrays[name].astype(kind) for name, kind in self._kinds.items()}
        size = self._batch or len(ids)
        parts = [self._run({name: array[start : start + size] for name, array in inputs.items()}) for start in range(0, len(ids), size)]
        return np.concatenate(parts)

    def _run(self, inputs: dict[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The logits of at most as many pairs as the graph takes; its last places are filled with the last pair again."""
        pairs = len(inputs["input_ids"])
        if self._batch:
            inputs = {name: array[np.minimum(np.arange(self._batch), pairs - 1)] for name, array in inputs.items()}
        (logits,) = self._session.run([self._output], inputs)
        if logits.size != len(inputs["input_ids"]):
            raise UserError(f"teacher.model: the ONNX graph gives {list(logits.shape)} for {pairs} pairs; one logit a pair is needed")
        return logits.reshape(-1)[:pairs].astype(np.float32)


def _onnx_session(folder: Path, *, device: str, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError("teacher.backend=onnx needs ONNX Runtime: pip install 'adam-distillation[onnx]'") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    providers = ["CUDAExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
    missing = set(providers) - set(onnxruntime.get_available_providers())
    if missing:
        raise UserError(f"ONNX Runtime here lacks {', '.join(missing)}: install onnxruntime-gpu, or use runner.device=cpu")
    try:
        return onnxruntime.InferenceSession(str(folder / GRAPH_NAME), options, providers=providers)
    except Exception as error:  # its kinds have no common ancestor but this
        reason = " ".join(str(error).split())
        raise UserError(f"teacher.model: ONNX Runtime does not open {folder / GRAPH_NAME}: {reason}") from error


Progress = Callable[[int, int, int], None]  # pairs, tokens, tokens with padding


def score_pairs(
    cross_encoder: CrossEncoder, pairs: Sequence[PairEncoding], *, pad_id: int, progress: Progress = lambda pairs, tokens, padded: None
) -> NDArray[np.float32]:
    """[n] raw logits of the pairs, in their order.

    Batches hold pairs of like length, the longest first. Where one does not fit on the device, the budget is halved for good.

    Raises:
        RunFailed: a single pair does not fit, or a logit is not a finite number.
    """
    logits = np.empty(len(pairs), dtype=np.float32)
    multiple = cross_encoder.length_multiple
    lengths = [-(-len(pair.ids) // multiple) * multiple for pair in pairs]

    def compute(rows: list[int]) -> tuple[int, int, int]:
        length = lengths[rows[0]]
        logits[rows] = cross_encoder.logits(*_batch([pairs[row] for row in rows], length, pad_id))
        return len(rows), sum(len(pairs[row].ids) for row in rows), len(rows) * length

    for done in _computed(compute, lengths, cross_encoder):
        progress(*done)
    if not np.isfinite(logits).all():
        broken = int((~np.isfinite(logits)).sum())
        raise RunFailed(f"the teacher gave {broken} logits that are not finite numbers; try teacher.precision=fp32")
    return logits


def _computed(
    compute: Callable[[list[int]], tuple[int, int, int]], lengths: list[int], cross_encoder: CrossEncoder
) -> Iterator[tuple[int, int, int]]:
    """What `compute` gives for each batch of rows."""
    if cross_encoder.one_thread_each:
        from retrieval.compute.parallel_batches import side_by_side

        yield from side_by_side(compute, token_budget_batches(lengths, budget=cross_encoder.batch_tokens))
        return
    order, start = longest_first(lengths).tolist(), 0
    while start < len(order):
        longest = lengths[order[start]]
        rows = order[start : start + max(1, cross_encoder.batch_tokens // longest)]
        try:
            done = compute(rows)
        except OutOfMemory as error:
            if len(rows) == 1:
                raise RunFailed(f"a pair of {longest} tokens does not fit on the device ({error})") from error
            cross_encoder.batch_tokens = max(longest, cross_encoder.batch_tokens // 2)
            continue
        start += len(rows)
        yield done


def _batch(pairs: list[PairEncoding], length: int, pad_id: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """[n, length] token ids, mask and segment ids."""
    ids = np.full((len(pairs), length), pad_id, dtype=np.int64)
    mask, segments = np.zeros_like(ids), np.zeros_like(ids)
    for row, pair in enumerate(pairs):
        own = len(pair.ids)
        ids[row, :own], segments[row, :own], mask[row, :own] = pair.ids, pair.segments, 1
    return ids, mask, segments
