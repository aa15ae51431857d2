"""Weighted means of tensors, a part at a time, from safetensors files to one with the layout of the first.

What is written has the header of the first file, byte for byte: its names, order, shapes and types. So nothing has to be in memory but a
part of one tensor, in float64, whatever the size of the models. Tensors that are tied lie in a file once, and stay tied.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from data.errors import UserError

_AVERAGED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_EXACT = ("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL")  # positions and the like: equal, or of different models
_PART_ELEMENTS = 4 << 20  # of a tensor at a time: 32 MiB in float64, for each model
_LENGTH_BYTES = 8  # a safetensors file begins with the length of its header


@dataclass(frozen=True)
class Source:
    """A model that is averaged: the file of each tensor, and its weight."""

    name: str  # for errors
    files: dict[str, Path]
    weight: float


def write_average(out: Path, first: Path, sources: Sequence[Source]) -> None:
    """Write the weighted means of the tensors in `first`, a file of the first source. What another source lacks is the first one's.

    Tensors whose bits agree in all sources are copied. Sources of weight 0 are not read.

    Raises UserError: a tensor that is not finite, or is no floating-point one and differs, or of a type that cannot be averaged.
    """
    head = _head(first)
    with contextlib.ExitStack() as closing, open(out, "wb") as file:
        opened = _Opened(closing)
        file.write(head)
        for name, entry in _entries(head):
            if entry["dtype"] not in (*_AVERAGED, *_EXACT):
                raise UserError(
                    f"{first}: {name} is of type {entry['dtype']}, which cannot be averaged: give the model in fp32, bf16 or fp16"
                )
            start, end = entry["data_offsets"]
            file.seek(len(head) + start)
            read = [source for source in sources if source.weight]
            paths = [source.files.get(name) for source in read]
            if None in paths:
                read, paths = [sources[0]], [first]
            for part in _parts(entry["shape"]):
                tensors = [opened.part(path, name, part) for path in paths if path]
                file.write(_bytes(_mean(name, tensors, read, kind=_AVERAGED.get(entry["dtype"]))))
            if file.tell() != len(head) + end:
                raise UserError(f"{first}: its header says that {name} has {end - start} bytes: fetch the file again")
        file.flush()
        os.fsync(file.fileno())


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        length = file.read(_LENGTH_BYTES)
        return length + file.read(int.from_bytes(length, "little"))


def _entries(head: bytes) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and entry of each tensor, in the order of their bytes."""
    tensors = {name: entry for name, entry in json.loads(head[_LENGTH_BYTES:]).items() if name != "__metadata__"}
    yield from sorted(tensors.items(), key=lambda item: item[1]["data_offsets"])


def _parts(shape: list[int]) -> Iterator[slice | None]:
    """Rows of a tensor that are read at a time; None where it is a number."""
    if not shape:
        yield None
        return
    row = 1
    for size in shape[1:]:
        row *= size
    rows = max(1, _PART_ELEMENTS // max(1, row))
    for start in range(0, shape[0] if row else 0, rows):
        yield slice(start, min(start + rows, shape[0]))


class _Opened:
    """Files that are opened once."""

    def __init__(self, closing: contextlib.ExitStack) -> None:
        self._closing = closing
        self._files: dict[Path, Any] = {}

    def part(self, path: Path, name: str, rows: slice | None) -> Tensor:
        """Some rows of a tensor."""
        if path not in self._files:
            self._files[path] = self._closing.enter_context(safe_open(path, framework="pt"))
        file = self._files[path]
        found: Tensor = file.get_tensor(name) if rows is None else file.get_slice(name)[rows]
        return found


def _mean(name: str, tensors: list[Tensor], sources: list[Source], *, kind: torch.dtype | None) -> Tensor:
    """The mean in the type `kind`; None: of what cannot be averaged."""
    first = tensors[0]
    equal = [other.dtype == first.dtype and torch.equal(other, first) for other in tensors]
    if all(equal) and kind in (None, first.dtype):
        return first
    if kind is None or not all(tensor.is_floating_point() for tensor in tensors):
        others = ", ".join(source.name for source, same in zip(sources, equal, strict=True) if not same) or sources[0].name
        raise UserError(f"{name} is no floating-point tensor, or none in every model, and differs in {others}: it cannot be averaged")
    mean = torch.zeros(first.shape, dtype=torch.float64)
    for source, tensor in zip(sources, tensors, strict=True):
        if not torch.isfinite(tensor).all():
            raise UserError(f"{source.name}: {name} has values that are not finite: the training that made it broke")
        mean.add_(tensor.double(), alpha=source.weight)
    result = mean.to(kind)
    if not torch.isfinite(result).all():
        raise UserError(f"the mean of {name} is too large for {str(kind).removeprefix('torch.')}: give the first model in bf16 or fp32")
    return result


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
