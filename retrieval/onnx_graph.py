"""What an ONNX file says of itself: inputs, output, operators, and the files beside it that hold its weights.

The file is walked as protobuf (onnx.proto, field numbers below), weights are stepped over: 0.1 s, also where it has gigabytes. So a plan
need not start ONNX Runtime, and the package `onnx` is not needed.
"""

from __future__ import annotations

import functools
import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data.digests import file_stamp
from data.errors import UserError
from retrieval.checkpoint_files import refuse_placeholder

GRAPH_NAME = "model.onnx"
_TYPES = {1: "float32", 6: "int32", 7: "int64", 9: "bool", 10: "float16", 11: "float64"}  # TensorProto.DataType
_EXTERNAL = 1  # TensorProto.DataLocation
_MODEL_GRAPH, _MODEL_FUNCTION, _FUNCTION_NODE = 7, 25, 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE = 1, 5, 11, 12, 15
_NODE_OPERATOR, _NODE_ATTRIBUTE = 4, 5
_ATTRIBUTE_TENSORS, _ATTRIBUTE_GRAPHS, _ATTRIBUTE_SPARSE = (5, 10), (6, 11), (22, 23)
_TENSOR_DIMS, _TENSOR_NAME, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 8, 13, 14

Bytes = memoryview


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
    def external_names(self) -> list[str]:
        """Files beside the graph that hold weights."""
        return sorted(self.external)

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


def _fields(message: Bytes) -> Iterator[tuple[int, int | Bytes]]:
    """Numbers and values of a message's fields; values of a fixed width are passed over."""
    at, end = 0, len(message)
    while at < end:
        tag, at = _varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(message, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(message, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise _Damaged
        if at + size > end:
            raise _Damaged
        if wire == 2:
            with message[at : at + size] as part:
                yield number, part
        at += size


def _varint(message: Bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        byte = message[at]
        value, at, shift = value | (byte & 0x7F) << shift, at + 1, shift + 7
        if byte < 0x80:
            return value, at
    raise _Damaged


def _parts(message: Bytes, *numbers: int) -> Iterator[tuple[int, Bytes]]:
    for number, value in _fields(message):
        if number in numbers:
            if isinstance(value, int):
                raise _Damaged
            yield number, value


def _text(value: int | Bytes) -> str:
    if isinstance(value, int):
        raise _Damaged
    return bytes(value).decode()


def _read_model(message: Bytes, graph: OnnxGraph) -> bool:
    found = False
    for number, part in _parts(message, _MODEL_GRAPH, _MODEL_FUNCTION):
        if number == _MODEL_GRAPH:
            found = True
            _read_graph(part, graph, outermost=True)
        else:
            for _, node in _parts(part, _FUNCTION_NODE):
                _read_node(node, graph)
    # Older files list their weights among the inputs.
    graph.inputs = {name: value for name, value in graph.inputs.items() if name not in graph.weights}
    return found and bool(graph.outputs)


def _read_graph(message: Bytes, graph: OnnxGraph, *, outermost: bool) -> None:
    numbers = (_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT, _GRAPH_OUTPUT, _GRAPH_SPARSE)
    for number, part in _parts(message, *numbers):
        if number == _GRAPH_NODE:
            _read_node(part, graph)
        elif number == _GRAPH_INITIALIZER:
            _read_tensor(part, graph)
        elif number == _GRAPH_SPARSE:
            _read_sparse(part, graph)
        elif outermost:
            name, value = _read_value(part)
            (graph.inputs if number == _GRAPH_INPUT else graph.outputs)[name] = value


def _read_node(message: Bytes, graph: OnnxGraph) -> None:
    for number, part in _parts(message, _NODE_OPERATOR, _NODE_ATTRIBUTE):
        if number == _NODE_OPERATOR:
            graph.operators.add(_text(part))
            continue
        for inner, value in _parts(part, *_ATTRIBUTE_TENSORS, *_ATTRIBUTE_GRAPHS, *_ATTRIBUTE_SPARSE):
            if inner in _ATTRIBUTE_TENSORS:
                _read_tensor(value, graph)
            elif inner in _ATTRIBUTE_GRAPHS:
                _read_graph(value, graph, outermost=False)
            else:
                _read_sparse(value, graph)


def _read_sparse(message: Bytes, graph: OnnxGraph) -> None:
    for _, tensor in _parts(message, 1, 2):  # values, indices
        _read_tensor(tensor, graph)


def _read_tensor(message: Bytes, graph: OnnxGraph) -> None:
    name, dims, external, entries = "", list[int](), False, dict[str, str]()
    for number, value in _fields(message):
        if number == _TENSOR_DIMS:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif number == _TENSOR_NAME:
            name = _text(value)
        elif number == _TENSOR_LOCATION:
            external = value == _EXTERNAL
        elif number == _TENSOR_EXTERNAL and not isinstance(value, int):
            pair = {key: _text(text) for key, text in _fields(value)}
            entries[pair.get(1, "")] = pair.get(2, "")
    if name:
        graph.weights[name] = tuple(dims)
    if external:
        numbers = {key: int(entries.get(key) or 0) if (entries.get(key) or "0").isdecimal() else 0 for key in ("offset", "length")}
        location = entries.get("location", "")
        graph.external[location] = max(graph.external.get(location, 0), numbers["offset"] + numbers["length"])


def _packed(value: Bytes) -> list[int]:
    numbers, at = list[int](), 0
    while at < len(value):
        number, at = _varint(value, at)
        numbers.append(number)
    return numbers


def _read_value(message: Bytes) -> tuple[str, Value]:
    """ValueInfoProto: name, and type.tensor_type with element type and shape."""
    name, kind, dims = "", "", None
    for number, value in _fields(message):
        if number == 1:
            name = _text(value)
        elif number == 2 and not isinstance(value, int):
            for _, tensor in _parts(value, 1):
                for inner, entry in _fields(tensor):
                    if inner == 1 and isinstance(entry, int):
                        kind = _TYPES.get(entry, f"type {entry}")
                    elif inner == 2 and not isinstance(entry, int):
                        dims = tuple(_dimension(dim) for _, dim in _parts(entry, 1))
    return name, Value(kind, dims)


def _dimension(message: Bytes) -> int | None:
    """A fixed dimension; exporters write 0 and -1, too, for one that is not."""
    fixed = [value for number, value in _fields(message) if number == 1 and isinstance(value, int)]
    return fixed[0] if fixed and 0 < fixed[0] < 1 << 63 else None
