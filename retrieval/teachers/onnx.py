"""What an ONNX file says of itself: inputs, output, operators, and the files beside it that hold its weights.

The file is walked as protobuf (onnx.proto, field numbers below), weights are stepped over: 0.1 s, also where it has gigabytes. So a plan
need not start ONNX Runtime, and the package `onnx` is not needed.
"""

from __future__ import annotations

import functools
import mmap
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

from data.digests import file_stamp
from data.errors import UserError
from retrieval.checkpoints.files import refuse_placeholder

GRAPH_NAME = "model.onnx"
_TYPES = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}  # TensorProto.DataType
_EXTERNAL = 1  # TensorProto.DataLocation
_MODEL_GRAPH, _MODEL_FUNCTION, _FUNCTION_NODE = 7, 25, 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 11, 12, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_DIMS, _TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 8, 13, 14

Bytes = memoryview
Message = dict[int, list[int | Bytes]]  # a field's number -> its values


@dataclass(frozen=True)
class Value:
    """An input or output: number format, and its dimensions, None for one that a batch decides; no dimensions where none are given."""

    kind: str
    dims: tuple[int | None, ...] | None


@dataclass
class OnnxGraph:
    """A graph's outside."""

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


class _Damaged(Exception):
    """The bytes are no protobuf message."""


def read_graph(folder: Path) -> OnnxGraph:
    """The graph of a folder's model.onnx.

    Raises UserError: a pointer, an empty file, one that is cut short or no ONNX graph, a file of its weights that is missing or too short.
    """
    path = folder / GRAPH_NAME
    if not os.path.lexists(path):
        raise UserError(f"{folder} holds no {GRAPH_NAME}")
    refuse_placeholder(path)
    graph = _graph_of(path, file_stamp(path))
    for name, size in graph.external.items():
        beside = folder / name
        if not _is_inside(name):
            raise UserError(f"{path} keeps weights in {name}, outside its folder, which ONNX Runtime does not open: save it again")
        if not (beside.is_file() or beside.is_symlink()):
            raise UserError(f"{path} keeps weights in {name}, which is not beside it: copy or fetch that file too")
        refuse_placeholder(beside)
        if beside.stat().st_size < size:
            found = beside.stat().st_size
            raise UserError(f"{beside} is cut short: it has {found:,} bytes, {GRAPH_NAME} asks for {size:,}; fetch it again")
    return graph


def _is_inside(name: str) -> bool:
    return bool(name) and not Path(name).is_absolute() and ".." not in Path(name).parts


@functools.lru_cache(maxsize=8)
def _graph_of(path: Path, stamp: str) -> OnnxGraph:
    graph = OnnxGraph()
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content, memoryview(content) as whole:
        try:
            found = _read_model(whole, graph)
        except (_Damaged, UnicodeDecodeError, RecursionError):
            found = False
    if not found:
        raise UserError(f"{path} is no whole ONNX graph ({path.stat().st_size:,} bytes): it is cut short or damaged, fetch it again")
    return graph


def _message(content: Bytes) -> Message:
    """The fields of a message. Values of a fixed width are passed over."""
    fields: Message = {}
    at, end = 0, len(content)
    while at < end:
        tag, at = _varint(content, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(content, at)
            fields.setdefault(number, []).append(value)
            continue
        if wire == 2:
            size, at = _varint(content, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _Damaged
        if at + size > end:
            raise _Damaged
        if wire == 2:
            fields.setdefault(number, []).append(content[at : at + size])
        at += size
    return fields


def _varint(content: Bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(content) and shift < 64:
        byte = content[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise _Damaged


def _parts(message: Message, *numbers: int) -> list[Bytes]:
    values = [value for number in numbers for value in message.get(number, [])]
    if any(isinstance(value, int) for value in values):
        raise _Damaged
    return cast(list[Bytes], values)


def _text(message: Message, number: int) -> str:
    """The last one counts, as for all fields that are no lists."""
    return bytes((_parts(message, number) or [memoryview(b"")])[-1]).decode()


def _numbers(message: Message, number: int) -> list[int]:
    """Integers, each in a field of its own or all packed into one."""
    numbers: list[int] = []
    for value in message.get(number, []):
        if isinstance(value, int):
            numbers.append(value)
            continue
        at = 0
        while at < len(value):
            found, at = _varint(value, at)
            numbers.append(found)
    return numbers


def _read_model(content: Bytes, graph: OnnxGraph) -> bool:
    model = _message(content)
    for part in _parts(model, _MODEL_GRAPH):
        outermost = _message(part)
        _read_graph(outermost, graph)
        graph.inputs |= map(_read_value, _parts(outermost, _GRAPH_INPUT))
        graph.outputs |= map(_read_value, _parts(outermost, _GRAPH_OUTPUT))
    for function in _parts(model, _MODEL_FUNCTION):
        for node in _parts(_message(function), _FUNCTION_NODE):
            _read_node(_message(node), graph)
    # Older files list their weights among the inputs.
    graph.inputs = {name: value for name, value in graph.inputs.items() if name not in graph.weights}
    return bool(graph.outputs)


def _read_graph(part: Message, graph: OnnxGraph) -> None:
    """Operators and weights of a graph, which may be one within another."""
    for node in _parts(part, _GRAPH_NODE):
        _read_node(_message(node), graph)
    for tensor in [*_parts(part, _GRAPH_INITIALIZER), *_sparse_tensors(part, _GRAPH_SPARSE)]:
        _read_tensor(_message(tensor), graph)


def _read_node(node: Message, graph: OnnxGraph) -> None:
    graph.operators.add(_text(node, _NODE_OPERATOR))
    for attribute in map(_message, _parts(node, _NODE_ATTRIBUTE)):
        for tensor in [*_parts(attribute, *_ATTRIBUTE_TENSORS), *_sparse_tensors(attribute, *_ATTRIBUTE_SPARSE)]:
            _read_tensor(_message(tensor), graph)
        for inner in _parts(attribute, *_ATTRIBUTE_GRAPHS):
            _read_graph(_message(inner), graph)


def _sparse_tensors(message: Message, *numbers: int) -> list[Bytes]:
    """Values and indices of sparse tensors."""
    return [tensor for sparse in _parts(message, *numbers) for tensor in _parts(_message(sparse), 1, 2)]


def _read_tensor(tensor: Message, graph: OnnxGraph) -> None:
    if name := _text(tensor, _TENSOR_NAME):
        graph.weights[name] = tuple(_numbers(tensor, _TENSOR_DIMS))
    if _numbers(tensor, _TENSOR_LOCATION)[-1:] == [_EXTERNAL]:
        entries = {_text(entry, 1): _text(entry, 2) for entry in map(_message, _parts(tensor, _TENSOR_EXTERNAL))}
        end = sum(int(entries[key]) for key in ("offset", "length") if entries.get(key, "").isdecimal())
        location = entries.get("location", "")
        graph.external[location] = max(graph.external.get(location, 0), end)


def _read_value(part: Bytes) -> tuple[str, Value]:
    """ValueInfoProto: name, and type.tensor_type with element type and shape."""
    value, kind, dims = _message(part), "", None
    for tensor in [_message(tensor) for of_type in _parts(value, 2) for tensor in _parts(_message(of_type), 1)]:
        for code in _numbers(tensor, 1):
            kind = _TYPES.get(code, f"type {code}")
        for shape in _parts(tensor, 2):
            dims = tuple(_dimension(_message(dim)) for dim in _parts(_message(shape), 1))
    return _text(value, 1), Value(kind, dims)


def _dimension(message: Message) -> int | None:
    """A fixed dimension; exporters write 0 and -1, too, for one that is not."""
    fixed = _numbers(message, 1)
    return fixed[0] if fixed and 0 < fixed[0] < 1 << 63 else None
