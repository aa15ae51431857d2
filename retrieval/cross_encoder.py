"""The teacher: a cross-encoder that gives one raw logit for a (query, candidate) pair, under torch or ONNX Runtime."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from data.digests import DigestCache, json_digest
from data.errors import UserError
from data.settings import Teacher
from retrieval import precision as precisions
from retrieval.checkpoint_files import read_json, resolve_folder, tokenizer_digest, weights_digest
from retrieval.quiet import quiet_transformers
from retrieval.tokenizer import PairEncoding

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

    def key(self, digests: DigestCache) -> dict[str, Any]:
        """The parts of the logit-store namespace (weights, tokenizer, template, truncation, length, head, precision class)."""
        return {
            "weights": weights_digest(self.folder, digests, option="teacher.model"),
            "tokenizer": tokenizer_digest(self.folder),
            "template": INPUT_TEMPLATE,
            "max_tokens": self.max_tokens,
            "head": "logit",
            "precision": f"{self.backend}/{self.precision}",
        }

    def namespace(self, digests: DigestCache) -> str:
        """Digest of `key`: the folder of this teacher's logits in the store."""
        return json_digest(self.key(digests))


def resolve_teacher(teacher: Teacher, *, device: str) -> TeacherSpec:
    """Find the teacher's folder and its precision class. Loads no model."""
    folder = resolve_folder(teacher.model, option="teacher.model")
    needed = "model.onnx" if teacher.backend == "onnx" else "config.json"
    if not (folder / needed).is_file():
        other = "torch" if teacher.backend == "onnx" else "onnx"
        raise UserError(f"teacher.model: {folder} holds no {needed}, which teacher.backend={teacher.backend} needs; try backend={other}?")
    # An ONNX file has its number format inside it, and its content is in the weights digest.
    precision = "graph" if teacher.backend == "onnx" else precisions.resolve(teacher.precision, device=device)
    return TeacherSpec(folder, teacher.model, teacher.backend, precision, teacher.max_tokens)


class CrossEncoder(Protocol):
    """Anything that scores a batch of encoded pairs."""

    one_by_one: bool  # a logit depends on the batch around it by more than rounding, so each pair must be a batch alone

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64], segments: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, L] arrays to [n] raw fp32 logits."""


def load_cross_encoder(spec: TeacherSpec, *, device: str, threads: int) -> CrossEncoder:
    """The teacher, ready to score, in eval mode (offline logits must repeat, so there is no dropout)."""
    if spec.backend == "onnx":
        return OnnxCrossEncoder(spec.folder, device=device, threads=threads)
    return TorchCrossEncoder(spec.folder, precision=spec.precision, device=device)


class TorchCrossEncoder:
    """A transformers sequence-classification model with one output."""

    one_by_one = False

    def __init__(self, folder: Path, *, precision: str, device: str) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification

        from retrieval.encode import TORCH_TYPES

        quiet_transformers()
        self._torch, self._device = torch, device
        labels = read_json(folder / "config.json").get("num_labels") or len(read_json(folder / "config.json").get("id2label", {0: ""}))
        if labels != 1:
            raise UserError(f"teacher.model: {folder} has {labels} outputs; a cross-encoder with one output (num_labels=1) is needed")
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, use_safetensors=True)
        self._model = model.eval().to(device=device, dtype=TORCH_TYPES[precision])
        self._has_segments = getattr(model.config, "type_vocab_size", 1) > 1

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64], segments: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, L] arrays to [n] raw fp32 logits."""
        torch = self._torch
        inputs = {"input_ids": ids, "attention_mask": mask}
        if self._has_segments:
            inputs["token_type_ids"] = segments
        with torch.inference_mode():
            output = self._model(**{name: torch.from_numpy(array).to(self._device) for name, array in inputs.items()})
        return output.logits[:, 0].float().cpu().numpy()


class OnnxCrossEncoder:
    """A folder with model.onnx, under ONNX Runtime (extra `onnx`).

    A dynamically quantised graph takes its activation scale from the whole batch, so a logit would depend on its neighbours, by
    up to 0.1 on int8 MiniLM, and on what happens to be cached. Such a graph gets each pair alone; on a CPU that costs 7 %.
    """

    def __init__(self, folder: Path, *, device: str, threads: int) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise UserError("teacher.backend=onnx needs ONNX Runtime: pip install 'adam-distillation[onnx]'") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers = ["CUDAExecutionProvider"] if device == "cuda" else ["CPUExecutionProvider"]
        missing = set(providers) - set(onnxruntime.get_available_providers())
        if missing:
            raise UserError(f"ONNX Runtime here lacks {', '.join(missing)}: install onnxruntime-gpu, or use runner.device=cpu")
        self._session = onnxruntime.InferenceSession(str(folder / "model.onnx"), options, providers=providers)
        self.one_by_one = b"DynamicQuantizeLinear" in (folder / "model.onnx").read_bytes()
        self._inputs = {node.name for node in self._session.get_inputs()}

    def logits(self, ids: NDArray[np.int64], mask: NDArray[np.int64], segments: NDArray[np.int64]) -> NDArray[np.float32]:
        """[n, L] arrays to [n] raw fp32 logits."""
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": segments}
        (logits,) = self._session.run(None, {name: array for name, array in inputs.items() if name in self._inputs})[:1]
        if logits.ndim == 2 and logits.shape[1] != 1:
            raise UserError(f"teacher.model: the ONNX graph has {logits.shape[1]} outputs; a cross-encoder with one is needed")
        return logits.reshape(-1).astype(np.float32)


def score_pairs(
    cross_encoder: CrossEncoder,
    pairs: Sequence[PairEncoding],
    *,
    batch_tokens: int,
    pad_id: int,
    progress: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """[n] raw logits of the pairs, in their order."""
    from retrieval.batching import token_budget_batches

    batch_tokens = 1 if cross_encoder.one_by_one else batch_tokens
    logits = np.empty(len(pairs), dtype=np.float32)
    for rows in token_budget_batches([len(pair.ids) for pair in pairs], budget=batch_tokens):
        longest = len(pairs[rows[0]].ids)
        ids = np.full((len(rows), longest), pad_id, dtype=np.int64)
        mask, segments = np.zeros_like(ids), np.zeros_like(ids)
        for place, row in enumerate(rows):
            length = len(pairs[row].ids)
            ids[place, :length], segments[place, :length], mask[place, :length] = pairs[row].ids, pairs[row].segments, 1
        logits[rows] = cross_encoder.logits(ids, mask, segments)
        if progress:
            progress(len(rows))
    return logits
