"""What a setting is: a typed field with a meaning and a mark, and the way from raw values to a checked, frozen object.

Raw values are strings, coerced by the field's declared type: `teacher.model=1e3` stays the string it is, `train.learning_rate=5e-5`
becomes a float. An unknown key is an error that names the nearest valid ones. Paths are marked, so that one function sees them all.

A field that got another name keeps its old one for a version (`Renamed`), and for good in fingerprints, so that stores stay valid.
"""

from __future__ import annotations

import difflib
import functools
import re
import sys
import typing
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from data.errors import UserError
from data.files.paths import expanded


class Section(BaseModel):
    """A group of settings: frozen, unknown keys forbidden, numbers finite and checked against their bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _shaped(cls, values: Any) -> Any:
        """Strings into the shape that the type wants: `a,b`, or a line each, to a list, `null` to None. Scalars are left to pydantic."""
        if not isinstance(values, dict):
            return values
        fields = cls.model_fields
        return {name: _shaped_value(fields[name].annotation, value) if name in fields else value for name, value in values.items()}


SectionType = TypeVar("SectionType", bound=Section)
PathKind = Literal["path", "model"]  # a model may be a hub id
NULLS = ("", "~", "null")  # as YAML writes them


class Renamed(NamedTuple):
    """The name that a field had, and how its value was counted. Fingerprints keep both."""

    old: str
    new_value: Callable[[int], int] = int  # of a whole number under the old name
    old_value: Callable[[Any], Any] = lambda value: value


def keyed(default: Any, meaning: str, *, renamed: Renamed | None = None, later: bool = False, **bounds: Any) -> Any:
    """A semantic field: it changes the bytes, so it enters fingerprints. One that came `later` does so only where it is not its default."""
    marks: Any = {"keyed": True, "renamed": renamed, "later": later}
    return Field(default, description=meaning, json_schema_extra=marks, **bounds)


def execution(default: Any, meaning: str, *, path: PathKind | None = None, **bounds: Any) -> Any:
    """An execution-only field: how fast or where, never what. It enters no fingerprint. `path` marks a path, see `map_paths`."""
    return Field(default, description=meaning, json_schema_extra={"keyed": False, "path": path}, **bounds)


def _mark(model: type[BaseModel], name: str, mark: str) -> Any:
    extra = model.model_fields[name].json_schema_extra if name in model.model_fields else None
    return extra.get(mark) if isinstance(extra, dict) else None


def keyed_values(section: Section, *, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """The semantic fields of a section, ready for a fingerprint: under the names and values of the version that had each first."""
    model = type(section)
    values = section.model_dump(mode="json")
    key: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        unset = _mark(model, name, "later") and getattr(section, name) == field.default
        if _mark(model, name, "keyed") and not unset and name not in leave_out:
            renamed = _mark(model, name, "renamed") or Renamed(name)
            key[renamed.old] = renamed.old_value(values[name])
    return key


def map_paths(
    model: type[BaseModel], values: dict[str, Any], change: Callable[[str, str, PathKind], str], *, prefix: str = ""
) -> dict[str, Any]:
    """The values with `change(path, dotted key, kind)` in place of each path, in all sections.

    Raises UserError where a path has bytes that are no text: settings travel as JSON.
    """
    changed = dict(values)
    for name, value in values.items():
        key = f"{prefix}{name}"
        section = section_of(model, name)
        kind = _mark(model, name, "path")
        if section and isinstance(value, dict):
            changed[name] = map_paths(section, value, change, prefix=f"{key}.")
        elif kind:
            value = _shaped_value(model.model_fields[name].annotation, value)
            if isinstance(value, str):
                changed[name] = _changed_path(value, key, kind, change)
            elif isinstance(value, list | tuple):
                changed[name] = [_changed_path(path, key, kind, change) if isinstance(path, str) else path for path in value]
    return changed


def _changed_path(value: str, key: str, kind: PathKind, change: Callable[[str, str, PathKind], str]) -> str:
    path = change(value, key, kind)
    if path.encode(errors="ignore").decode() != path:
        raise UserError(f"{key}={path}: it is no text in this terminal's encoding: set PYTHONUTF8=1, or rename it in UTF-8")
    return path


def expanded_paths(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """The values with `~` and environment variables replaced in each path.

    Raises UserError as `data.files.paths.expanded` does, and where a path that must be given is empty: `~` alone is YAML's null.
    """

    def change(path: str, key: str, kind: PathKind) -> str:
        if path in NULLS:
            raise UserError(f"{key} is empty: give a path")
        return expanded(path, key=key)

    return map_paths(model, values, change)


def build(model: type[SectionType], values: dict[str, Any]) -> SectionType:
    """A checked settings object. Raises UserError with every fault, each naming its key and what was expected."""
    try:
        return model.model_validate(known(model, values))
    except ValidationError as error:
        faults = [f"  {_fault(fault)}" for fault in error.errors()]
        raise UserError("\n".join(["the configuration has faults:", *faults])) from error


def _fault(fault: ErrorDetails) -> str:
    """What is wrong, after the key. Of settings that do not go together the sentence names them, so their values are left out."""
    key, said = ".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "dict_type":
        said = "expected names and values, as {1: 0.5, 2: 1.0}"
    if not isinstance(fault["input"], dict) and fault["type"] != "missing":
        said += f" (got {fault['input']!r})"
    return f"{key}: {said}" if key else said


def all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a settings model."""
    keys: list[str] = []
    for name in model.model_fields:
        section = section_of(model, name)
        keys += all_keys(section, f"{prefix}{name}.") if section else [f"{prefix}{name}"]
    return keys


def known(model: type[BaseModel], values: dict[str, Any], *, from_file: bool = False, prefix: str = "") -> dict[str, Any]:
    """Raw values, nested mappings of strings, under the names of this version. An old name is warned of. `prefix` is for messages.

    With `from_file` a section that holds nothing (`runner:` with every key commented out) is left out, and has its defaults.
    Raises UserError: a key that the model has not, with the nearest that it has; a section with a value; a key under both its names.
    """
    new_names = {renamed.old: name for name in model.model_fields if (renamed := _mark(model, name, "renamed"))}
    found: dict[str, Any] = {}
    for name, value in values.items():
        if old := name if name in new_names else "":
            name = new_names[old]
            if name in values:
                raise UserError(f"{prefix}{old} is the old name of {prefix}{name}: leave one of them out")
            new_value = str(_mark(model, name, "renamed").new_value(int(value))) if str(value).isdecimal() else value
            warn_once(f"{prefix}{old}={value} is now {prefix}{name}={new_value}; the old name is read until the next version")
            value = new_value
        if name not in model.model_fields:
            raise unknown_key(f"{prefix}{name}", valid=all_keys(model, prefix))
        section = section_of(model, name)
        if section and isinstance(value, dict):
            found[name] = known(section, value, from_file=from_file, prefix=f"{prefix}{name}.")
        elif section and not (from_file and value in NULLS):
            raise UserError(f"{prefix}{name} is a section: set one of its keys, e.g. {all_keys(section, f'{prefix}{name}.')[0]}=...")
        elif not section:
            found[name] = value
    return found


@functools.cache
def warn_once(line: str) -> None:
    """A warning on the error stream, once in a process: a command may read its file several times."""
    print(f"warning: {line}", file=sys.stderr)


def unknown_key(key: str, *, valid: list[str]) -> UserError:
    """The error for a name that does not exist, with the nearest ones that do."""
    by_last_part = [other for other in valid if other.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = list(dict.fromkeys(by_last_part + difflib.get_close_matches(key, valid, n=4, cutoff=0.4)))[:4]
    hint = f"; nearest: {', '.join(near)}" if near else f"; valid: {', '.join(valid[:20])}"
    return UserError(f"unknown key {key}{hint}")


def section_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The section that a field of this name holds; None for a value, and where there is no such field."""
    annotation = model.model_fields[name].annotation if name in model.model_fields else None
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _may_be_null(annotation: Any) -> bool:
    return type(None) in typing.get_args(annotation)


def _shaped_value(annotation: Any, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    is_null = value.lower() in (*NULLS, "none")
    if _may_be_null(annotation) and is_null:
        return None
    if typing.get_origin(annotation) is tuple:
        inner = value.strip()
        inner = inner[1:-1] if inner.startswith("[") and inner.endswith("]") else inner
        return [] if is_null else [part.strip() for part in re.split("[,\n]", inner) if part.strip()]
    if typing.get_origin(annotation) is dict:
        parts = [] if is_null else [part for part in re.split("[,\n]", value.strip().strip("{}")) if part.strip()]
        pairs = [part.partition(":") for part in parts]
        if not all(colon for _, colon, _ in pairs):
            return value
        return {key.strip(): found.strip() for key, _, found in pairs}
    return value


def parse_arguments(arguments: list[str]) -> dict[str, str]:
    """`key=value` arguments of a command line, in order; a later one wins. Raises UserError on any other."""
    parsed: dict[str, str] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise UserError(f"expected key=value, got {argument!r} (for example stage=embed or hard_negatives.num_negatives=10)")
        parsed[key] = value
    return parsed
