"""A cross-encoder that is an ONNX graph: what its file says of itself, read by the package `onnx`, and ONNX Runtime to compute it.

Both come with the extra `onnx`. Weights beside the file are not read for a plan.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.digests import file_stamp
from data.errors import UserError
from retrieval.model_files.files import refuse_placeholder

GRAPH_NAME = "model.onnx"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")
_EXTRA = "teacher.backend=onnx needs ONNX Runtime: pip install 'adam-distillation[onnx]'"
_TYPES = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}  # TensorProto.DataType


@dataclass(frozen=True)
class Value:
    """An input or output: number format, and its dimensions, None for one that a batch decides; no dimensions where none are given."""

    kind: str
    dims: tuple[int | None, ...] | None

    @staticmethod
    def of(info: Any) -> Value:
        """From a ValueInfoProto. Exporters write 0 and -1, too, for a dimension that is not fixed."""
        tensor = info.type.tensor_type
        dims = tuple(dim.dim_value if dim.dim_value > 0 else None for dim in tensor.shape.dim)
        return Value(_TYPES.get(tensor.elem_type, f"type {tensor.elem_type}"), dims if tensor.HasField("shape") else None)


@dataclass
class OnnxGraph:
    """What a graph says of itself: inputs, outputs, weights and operators."""

    inputs: dict[str, Value] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    weights: dict[str, tuple[int, ...]] = field(default_factory=dict)  # shapes
    external: dict[str, int] = field(default_factory=dict)  # file beside the graph -> bytes that it must have
    operators: set[str] = field(default_factory=set)

    @property
    def masks_padding(self) -> bool:
        """Whether the graph can tell padding from text."""
        return "attention_mask" in self.inputs

    @property
    def batch(self) -> int | None:
        """Pairs of a batch where that is fixed."""
        return self._dim(0)

    @property
    def length(self) -> int | None:
        """Tokens of a pair where that is fixed."""
        return self._dim(1)

    def _dim(self, place: int) -> int | None:
        dims = self.inputs["input_ids"].dims or ()
        return dims[place] if len(dims) == 2 else None

    def note_nodes(self, nodes: Iterable[Any]) -> None:
        """Operators, and weights of constants and of graphs within."""
        for node in nodes:
            self.operators.add(node.op_type)
            for attribute in node.attribute:
                self.note_weights([attribute.t, *attribute.tensors], [attribute.sparse_tensor, *attribute.sparse_tensors])
                for inner in (attribute.g, *attribute.graphs):
                    self.note_graph(inner)

    def note_graph(self, graph: Any) -> None:
        """Operators and weights of a graph, which may be one within another."""
        self.note_nodes(graph.node)
        self.note_weights(graph.initializer, graph.sparse_initializer)

    def note_weights(self, tensors: Iterable[Any], sparse: Iterable[Any]) -> None:
        """Shapes of tensors, and the files that hold them."""
        for tensor in [*tensors, *(part for pair in sparse for part in (pair.values, pair.indices))]:
            if tensor.name:
                self.weights[tensor.name] = tuple(tensor.dims)
            if tensor.data_location == tensor.EXTERNAL:
                entries = {entry.key: entry.value for entry in tensor.external_data}
                end = sum(int(entries[key]) for key in ("offset", "length") if entries.get(key, "").isdecimal())
                location = entries.get("location", "")
                self.external[location] = max(self.external.get(location, 0), end)


def external_files(path: Path) -> list[str]:
    """Names of the files beside a graph that hold its weights, whether they lie there or not. Raises UserError as `read_graph`."""
    return list(_graph_of(path, file_stamp(path)).external)


def read_graph(path: Path) -> OnnxGraph:
    """What a graph's file says of itself.

    Raises UserError: a pointer, an empty file, one that is cut short or no ONNX graph, a file of its weights that is missing or too short.
    """
    graph = _graph_of(path, file_stamp(path))
    for name, size in graph.external.items():
        beside = path.parent / name
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise UserError(f"{path} keeps weights in {name}, outside its folder, which ONNX Runtime does not open: save it again")
        if not (beside.is_file() or beside.is_symlink()):
            raise UserError(f"{path} keeps weights in {name}, which is not beside it: copy or fetch that file too")
        refuse_placeholder(beside)
        if (found := beside.stat().st_size) < size:
            raise UserError(f"{beside} is cut short: it has {found:,} bytes, {path.name} asks for {size:,}; fetch it again")
    return graph


@functools.lru_cache(maxsize=8)
def _graph_of(path: Path, stamp: str) -> OnnxGraph:
    refuse_placeholder(path)
    try:
        from onnx import ModelProto
    except ImportError as error:
        raise UserError(_EXTRA) from error
    graph = OnnxGraph()
    try:
        model = ModelProto.FromString(path.read_bytes())
        graph.note_graph(model.graph)
        for function in model.functions:
            graph.note_nodes(function.node)
        graph.inputs = {info.name: Value.of(info) for info in model.graph.input if info.name not in graph.weights}  # older files list them
        graph.outputs = {info.name: Value.of(info) for info in model.graph.output}
        names = [*graph.inputs, *graph.outputs, *graph.weights, *graph.external, *graph.operators]
        whole = bool(graph.outputs) and all(isinstance(name, str) for name in names)  # bytes: no UTF-8
    except Exception:  # of the protobuf library in use, whose kinds differ
        whole = False
    if not whole:
        raise UserError(f"{path} is no whole ONNX graph ({path.stat().st_size:,} bytes): it is cut short or damaged, fetch it again")
    return graph


class OnnxCrossEncoder:
    """A graph under ONNX Runtime.

    A dynamically quantised graph takes its activation scale from the whole batch. A logit would then depend on its neighbours, by up to
    0.1 on int8 MiniLM, and so on what happens to be cached. Such a graph gets each pair alone; on a CPU that costs 7 %. So does one
    without attention_mask, to which padding is text. Inputs are cast to what the graph wants. Where its batch or length is fixed, batches
    are filled up to that.
    """

    def __init__(self, path: Path, *, device: str, threads: int, batch_tokens: int) -> None:
        graph = read_graph(path)
        self._session = _session(path, device=device, threads=threads)
        one_by_one = "DynamicQuantizeLinear" in graph.operators or not graph.masks_padding
        self.batch_tokens = 1 if one_by_one else batch_tokens
        self.length_multiple = graph.length or 1
        self.one_thread_each = False  # the session has threads of its own
        self.packs = False
        self._kinds = {name: value.kind for name, value in graph.inputs.items()}
        self._batch = graph.batch
        self._output = next(iter(graph.outputs))
        tried = np.ones((1, graph.length or 2), np.int64)
        self.logits(tried, tried, 0 * tried)  # not every graph says how many outputs it has

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
            raise UserError(f"teacher.model: the ONNX graph gives {list(logits.shape)} for {pairs} pair(s); one logit a pair is needed")
        return logits.reshape(-1)[:pairs].astype(np.float32)


def _session(path: Path, *, device: str, threads: int) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(_EXTRA) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    provider = "CUDAExecutionProvider" if device == "cuda" else "CPUExecutionProvider"
    if provider not in onnxruntime.get_available_providers():
        raise UserError(f"ONNX Runtime here lacks {provider}: install onnxruntime-gpu, or use runner.device=cpu")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # its kinds have no common ancestor but this
        raise UserError(f"teacher.model: ONNX Runtime does not open {path}: {' '.join(str(error).split())}") from error
