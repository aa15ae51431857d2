"""What the header of a safetensors file says: names and shapes. No weight is read, and torch is not imported."""

from __future__ import annotations

import functools
import json
from pathlib import Path

from data.digests import file_stamp
from data.errors import UserError
from retrieval.model_files.files import refuse_placeholder

_LENGTH_BYTES = 8  # a safetensors file begins with the length of its header

Shapes = dict[str, tuple[int, ...]]


def header(path: Path) -> Shapes:
    """Name and shape of each tensor of a file. Raises UserError for one that is cut short, or none of safetensors."""
    from safetensors import SafetensorError

    try:
        return _header_of(path, file_stamp(path))
    except (SafetensorError, OSError) as error:
        refuse_placeholder(path)
        raise UserError(_fault(path, error)) from error


@functools.lru_cache(maxsize=64)
def _header_of(path: Path, stamp: str) -> Shapes:
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _fault(path: Path, error: Exception) -> str:
    """What is wrong with a file that safetensors refuses."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(_LENGTH_BYTES)
        length = int.from_bytes(start, "little")
        header = file.read(length) if length < size else b""
    try:
        tensors = {name: tensor for name, tensor in json.loads(header).items() if name != "__metadata__"}
        whole = _LENGTH_BYTES + length + max(tensor["data_offsets"][1] for tensor in tensors.values())
    except (ValueError, TypeError, KeyError, AttributeError, IndexError):
        whole = _LENGTH_BYTES + length if start[-2:] == b"\0\0" else 0  # a length that a file can have
    if whole > size:
        return f"{path} is cut short: it has {size:,} bytes, its header asks for {whole:,}; fetch it again"
    return f"{path} is no whole safetensors file ({error}), it begins with {start!r}: fetch it again"
