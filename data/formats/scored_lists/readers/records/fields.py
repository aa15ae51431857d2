"""The values of a field in the one type that a layout works with, or what is wrong with a record.

kind       type                     also taken
text       string                   -
id         string                   whole numbers: 12, and 12.0 as pandas writes a column with gaps
number     double                   null and NaN: missing
label      int32                    1.0, true
texts      list of strings          one string; the text of a list, as CSV and pandas write it: "['a', 'b']", '["a"]'
ids        list of strings          as texts, of what is an id
numbers    list of doubles          one number; the text of a list
labels     list of int32            as numbers, of what is a label
passages   list of PASSAGE          one object; an object of lists, as older `datasets` write it

An Arrow column whose type fits is cast as a whole; everything else goes value by value.
"""

from __future__ import annotations

import ast
import io
import itertools
import json
import tokenize
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from data.formats.readers import shown
from data.formats.scored_lists.readers.records.rows import Column

Kind = Literal["text", "id", "number", "label", "texts", "ids", "numbers", "labels", "passages"]
PASSAGE = pa.struct([("docid", pa.string()), ("title", pa.string()), ("text", pa.string()), ("score", pa.float64())])
_STRING, _DOUBLE, _LABEL = pa.string(), pa.float64(), pa.int32()
TYPES: dict[Kind, pa.DataType] = {
    "text": _STRING, "id": _STRING, "number": _DOUBLE, "label": _LABEL, "texts": pa.list_(_STRING), "ids": pa.list_(_STRING),
    "numbers": pa.list_(_DOUBLE), "labels": pa.list_(_LABEL), "passages": pa.list_(PASSAGE),
}  # fmt: skip
_EASY: dict[Kind, set[type]] = {"text": {str, type(None)}, "id": {str, type(None)}, "number": {float, type(None)}}  # nothing to convert
_INT32 = 1 << 31


class Problem(NamedTuple):
    """Why a record is no list."""

    reason: str
    detail: str = ""


class _Broken(Exception):
    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.problem = Problem(reason, detail)


def canonical(column: Column, kind: Kind, *, name: str) -> tuple[pa.Array, dict[int, Problem]]:
    """A column in the type of its kind, and by row what is wrong with a value; such a value is null. NaN is null."""
    if not isinstance(column, list):
        cast = _cast(column, kind)
        if cast is not None:
            return cast, {}
        column = column.to_pylist()
    values: list[Any] = []
    problems: dict[int, Problem] = {}
    if set(map(type, column)) <= _EASY.get(kind, set()):
        try:
            return _without_nan(pa.array(column, TYPES[kind])), problems
        except UnicodeEncodeError:
            pass  # see below
    convert = _CONVERT[kind]
    for row, value in enumerate(column):
        try:
            values.append(None if value is None else convert(value, name))
        except _Broken as broken:
            problems[row] = broken.problem
            values.append(None)
    try:
        return pa.array(values, TYPES[kind]), problems
    except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which no file can hold as UTF-8
        for row, value in enumerate(values):
            if not _is_unicode(value):
                problems[row] = Problem("lone surrogate", f"in {name}")
                values[row] = None
        return pa.array(values, TYPES[kind]), problems


def is_list_type(column: Column) -> bool | None:
    """Whether the values of a column are lists; None where there is no value to tell it by. The text of a list counts as a list."""
    if not isinstance(column, list):
        kind = column.type
        if _is_list(kind):
            return True
        if pa.types.is_null(kind):
            return None
        column = column.slice(0, 1000).to_pylist() if _is_text(kind) else [0]
    value = next((value for value in column if value is not None), None)
    return None if value is None else isinstance(value, list) or (isinstance(value, str) and _parsed_list(value, "") is not None)


def _cast(column: pa.Array, kind: Kind) -> pa.Array | None:
    """The column, where its type says that all its values fit."""
    found, wanted = column.type, TYPES[kind]
    if pa.types.is_null(found):
        return pa.nulls(len(column), wanted)
    if kind == "passages":
        return _passages(column) if _is_list(found) and pa.types.is_struct(found.value_type) else None
    if pa.types.is_list(wanted) != _is_list(found):
        return None
    value_type = found.value_type if _is_list(found) else found
    fits = {"text": _is_text, "id": _is_id, "number": _is_number, "label": pa.types.is_integer}[kind.removesuffix("s")]
    if not (fits(value_type) or pa.types.is_null(value_type)):
        return None
    try:
        if _is_list(found):  # not cast as a whole: pyarrow 26 makes wrong offsets of those of a view
            return _list_like(column, _without_nan(column.flatten().cast(wanted.value_type)))
        return _without_nan(column.cast(wanted))
    except pa.ArrowInvalid:  # a label beyond int32, a number that a double cannot hold
        return None


def _is_list(kind: pa.DataType) -> bool:
    types = pa.types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(is_one(kind) for is_one in lists)


def _is_text(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_id(kind: pa.DataType) -> bool:
    return _is_text(kind) or bool(pa.types.is_integer(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _without_nan(column: pa.Array) -> pa.Array:
    return pc.if_else(pc.is_nan(column), pa.scalar(None, _DOUBLE), column) if pa.types.is_floating(column.type) else column


def _list_like(column: pa.Array, values: pa.Array) -> pa.Array:
    """The lists of a column with other values, as many."""
    lengths = pc.fill_null(pc.list_value_length(column), 0)
    offsets = pa.concat_arrays([pa.array([0], pa.int32()), pc.cumulative_sum(lengths).cast(pa.int32())])
    return pa.ListArray.from_arrays(offsets, values, mask=column.is_null() if column.null_count else None)


def _passages(column: pa.Array) -> pa.Array | None:
    """Lists of structs, each of whose fields has a type that fits."""
    flat = column.flatten()
    there = {flat.type.field(index).name for index in range(flat.type.num_fields)}
    fields = []
    for field, kind in (("docid", "id"), ("title", "text"), ("text", "text"), ("score", "number")):
        cast = _cast(pc.struct_field(flat, field), kind) if field in there else pa.nulls(len(flat), TYPES[kind])  # type: ignore[arg-type,index]
        if cast is None:
            return None
        fields.append(cast)
    return _list_like(column, pa.StructArray.from_arrays(fields, fields=list(PASSAGE), mask=flat.is_null() if flat.null_count else None))


def _text(value: Any, name: str) -> str:
    if type(value) is not str:
        raise _Broken(f"{name} is not a string", f"found {_seen(value)}")
    return value


def _id(value: Any, name: str) -> str:
    if type(value) is str:
        return value
    if type(value) is int:
        return str(value)
    if type(value) is float and value.is_integer() and abs(value) < 1 << 53:
        return str(int(value))
    raise _Broken(f"{name} is no id", f"found {_seen(value)}; expected a string or a whole number")


def _number(value: Any, name: str) -> float | None:
    if type(value) not in (int, float):
        raise _Broken(f"{name} is not a number", f"found {_seen(value)}")
    try:
        number = float(value)
    except OverflowError:
        raise _Broken(f"{name} is not a number", "it has more than 308 digits") from None
    return None if number != number else number  # NaN


def _label(value: Any, name: str) -> int | None:
    if type(value) is float and value != value:
        return None
    if type(value) not in (int, bool, float) or not -_INT32 <= value < _INT32 or value != int(value):
        raise _Broken(f"{name} is not a whole number", f"found {_seen(value)}")
    return int(value)


def _texts(value: Any, name: str) -> list[str | None]:
    listed = _listed(value, name)
    if not set(map(type, listed)) <= {str, type(None)}:
        other = next(item for item in listed if not isinstance(item, str | None))
        raise _Broken(f"{name} holds no strings", f"found {_seen(other)}")
    return listed


def _each(convert: Callable[[Any, str], Any]) -> Callable[[Any, str], list[Any]]:
    return lambda value, name: [None if item is None else convert(item, name) for item in _listed(value, name)]


def _passage_list(value: Any, name: str) -> list[dict[str, Any] | None]:
    if isinstance(value, dict):
        columns = {key: field for key, field in value.items() if isinstance(field, list)}
        lengths = {len(field) for field in columns.values()}
        if len(lengths) > 1:
            raise _Broken(f"{name} has fields of unequal lengths", f"found {_seen(value)}")
        value = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)] if columns else [value]
    return [None if item is None else _passage(item, name) for item in _listed(value, name)]


def _passage(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Broken(f"{name} holds no passages", f"found {_seen(value)}; expected objects with docid, title and text")

    def of(field: str, convert: Callable[[Any, str], Any]) -> Any:
        return None if value.get(field) is None else convert(value[field], field)

    return {"docid": of("docid", _id), "title": of("title", _text), "text": of("text", _text), "score": of("score", _number)}


def _listed(value: Any, name: str) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, str):
        parsed = _parsed_list(value, name)
        return [value] if parsed is None else parsed
    return [value]


def _parsed_list(text: str, name: str) -> list[Any] | None:
    """The list that a string is the text of; None where it is none."""
    if not (text.lstrip().startswith("[") and text.rstrip().endswith("]")):
        return None
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        try:
            parsed = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            return None
        if _joins_strings(text.strip()):  # numpy's ['a' 'b'], which Python reads as one string
            raise _Broken(f"{name} is no list", f"found {_seen(text)}, without commas") from None
    return parsed if isinstance(parsed, list) else None


def _joins_strings(text: str) -> bool:
    kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type != tokenize.NL]
    return any(one == other == tokenize.STRING for one, other in itertools.pairwise(kinds))


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _seen(value: Any) -> str:
    return shown(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))


_CONVERT: dict[Kind, Callable[[Any, str], Any]] = {
    "text": _text, "id": _id, "number": _number, "label": _label, "texts": _texts, "ids": _each(_id), "numbers": _each(_number),
    "labels": _each(_label), "passages": _passage_list,
}  # fmt: skip
