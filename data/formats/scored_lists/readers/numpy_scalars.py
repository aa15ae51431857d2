"""Numbers of numpy in a pickle, known by how numpy writes them. Nothing is imported or called.

    numpy.dtype("f4", False, True), then its state (3, "<", ...)        the kind of number, and its byte order
    numpy.core.multiarray.scalar(dtype, bytes)                          the number; numpy._core in numpy 2
    _codecs.encode(text, "latin1")                                      bytes, in protocol 2

Source: `ndarray` scalars' `__reduce__` of numpy 1 and 2. Every other name, and these with other arguments, is a ValueError.
"""

from __future__ import annotations

import struct
from typing import Any, NamedTuple

_FORMS = {"f2": "e", "f4": "f", "f8": "d", "i1": "b", "i2": "h", "i4": "i", "i8": "q", "u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
_SCALARS = (("numpy.core.multiarray", "scalar"), ("numpy._core.multiarray", "scalar"))
_NAMES = (*_SCALARS, ("numpy", "dtype"), ("_codecs", "encode"))


class Name(NamedTuple):
    """What a pickle names as a function."""

    module: str
    name: str


class Dtype(NamedTuple):
    """A kind of number, its code one of `_FORMS`."""

    code: str
    order: str = "<"


def named(module: Any, name: Any) -> Name:
    """A name of those above."""
    if (module, name) not in _NAMES:
        raise ValueError(f"{module}.{name}")
    return Name(module, name)


def called(function: Any, arguments: Any) -> Dtype | bytes | float | int:
    """What the function of a name would give."""
    match function, arguments:
        case Name("numpy", "dtype"), (str(code), *_) if code in _FORMS:
            return Dtype(code)
        case Name("_codecs", "encode"), (str(text), "latin1"):
            return text.encode("latin1")
        case Name(_, "scalar"), (Dtype(code, order), bytes(content)):
            form = struct.Struct(order + _FORMS[code])
            if form.size == len(content):
                number: float | int = form.unpack(content)[0]
                return number
    raise ValueError("a call with other arguments than numpy's")


def with_state(thing: Any, state: Any) -> Dtype:
    """A kind of number with the byte order that its state says."""
    match thing, state:
        case Dtype(code, _), (int(), ("<" | ">" | "|" | "=") as order, *_):
            return Dtype(code, "<" if order in "|=" else order)
    raise ValueError("a state that is no dtype's")
