"""The forms in which vectors are stored, and vectors cut to their first dimensions. numpy alone.

    fp16             2 bytes a dimension
    int8, uint8      1 byte: which of 256 equal steps between the smallest and the largest value of the dimension (int8: less 128)
    binary, ubinary  1 bit: whether the value is above 0; 8 of them a byte (binary: less 128, as int8)

All but the first are those of sentence-transformers' `quantize_embeddings`, byte for byte. A search reads them back as fp16: the value at
which a step begins, or 1 and -1 for a bit, which orders passages as sentence-transformers' rescoring does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.tables.schemas import embeddings

QUANTIZED = ("int8", "uint8", "binary", "ubinary")
_STEPS = 255
_TYPES = {"fp16": pa.float16(), "int8": pa.int8(), "uint8": pa.uint8(), "binary": pa.int8(), "ubinary": pa.uint8()}

Codes = NDArray[Any]  # [n, W]: W is D, or an eighth of it, rounded up


@dataclass(frozen=True)
class VectorFormat:
    """How vectors of `size` dimensions are stored. `ranges` [2, D] fp32, smallest and largest values, are of int8 and uint8."""

    precision: str
    size: int
    ranges: NDArray[np.float32] | None = None

    @property
    def width(self) -> int:
        """W, numbers of a stored vector."""
        return -(-self.size // 8) if self.precision in ("binary", "ubinary") else self.size

    def schema(self, *, id_name: str) -> pa.Schema:
        """Of a shard of such vectors."""
        return embeddings(self.width, id_name=id_name, kind=_TYPES[self.precision])

    @property
    def footer(self) -> dict[str, Any]:
        """What a shard says of it; nothing where it is fp16."""
        if self.precision == "fp16":
            return {}
        ranges = {} if self.ranges is None else {"ranges": self.ranges.tolist()}
        return {"precision": self.precision, "size": self.size, **ranges}

    @staticmethod
    def of_footer(footer: dict[str, Any]) -> VectorFormat:
        """The format of a shard that is not stored as fp16."""
        ranges = np.array(footer["ranges"], np.float32) if "ranges" in footer else None
        return VectorFormat(footer["precision"], footer["size"], ranges)

    @staticmethod
    def calibrated(precision: str, vectors: NDArray[np.float32]) -> VectorFormat:
        """The format of vectors of which `vectors` [n, D] are a sample, n at least 1. What lies outside of their range is cut to it."""
        ranges = np.stack([vectors.min(axis=0), vectors.max(axis=0)]) if precision in ("int8", "uint8") else None
        return VectorFormat(precision, vectors.shape[1], ranges)

    def store(self, vectors: NDArray[np.float32]) -> Codes:
        """[n, D] vectors to [n, W] stored numbers."""
        if self.precision == "fp16":
            return vectors.astype(np.float16)
        if self.ranges is not None:
            starts, steps = self._scale(self.ranges)
            numbers = np.clip(np.floor((vectors - starts) / steps), 0, _STEPS).astype(np.uint8)
        else:
            numbers = np.packbits(vectors > 0, axis=-1)
        return (numbers ^ 0x80).view(np.int8) if _TYPES[self.precision] == pa.int8() else numbers

    def restore(self, codes: Codes) -> NDArray[np.float16]:
        """[n, W] stored numbers to [n, D] vectors."""
        if self.precision == "fp16":
            return codes
        numbers = codes.view(np.uint8) ^ np.uint8(0x80 if codes.dtype == np.int8 else 0)
        if self.ranges is not None:
            starts, steps = self._scale(self.ranges)
            return (numbers * steps + starts).astype(np.float16)
        bits = np.unpackbits(numbers, axis=-1, count=self.size)
        return np.where(bits, np.float16(1), np.float16(-1))

    @staticmethod
    def _scale(ranges: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(where the first step begins, how wide a step is) of each dimension; of one that never differs any width will do."""
        steps = (ranges[1] - ranges[0]) / np.float32(_STEPS)
        return ranges[0], np.where(steps == 0, np.float32(1), steps)


def first_dimensions(vectors: NDArray[Any], kept: int, *, normalize: bool) -> NDArray[Any]:
    """[n, kept] of vectors [n, D] in their own precision; those that are cut get length 1 with `normalize`."""
    if kept >= vectors.shape[1]:
        return vectors
    cut = vectors[:, :kept]
    if normalize:
        values = cut.astype(np.float32)
        cut = values / np.maximum(np.sqrt(np.einsum("nd,nd->n", values, values)), 1e-12)[:, None]
    return np.ascontiguousarray(cut, dtype=vectors.dtype)
