"""From a YAML file and `dotted.key=value` overrides to a checked, frozen settings object.

Values are read as plain strings and coerced by the field's declared type, never by YAML's guessing: `teacher.model=1e3` stays the
string it is, `train.learning_rate=5e-5` becomes a float. An unknown key is an error that names the nearest valid ones, and so is a key
that stands twice. Paths are marked, so that one function sees them all.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from data.errors import UserError
from data.files.paths import expanded


class Section(BaseModel):
    """A group of settings: frozen, unknown keys forbidden, numbers finite and checked against their bounds."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False, protected_namespaces=())


SectionType = TypeVar("SectionType", bound=Section)
PathKind = Literal["path", "model"]  # a model may be a hub id


def keyed(default: Any, meaning: str, **bounds: Any) -> Any:
    """A semantic field: it changes the bytes, so it enters fingerprints."""
    return Field(default, description=meaning, json_schema_extra={"keyed": True}, **bounds)


def execution(default: Any, meaning: str, *, path: PathKind | None = None, **bounds: Any) -> Any:
    """An execution-only field: how fast or where, never what. It enters no fingerprint. `path` marks a path, see `map_paths`."""
    return Field(default, description=meaning, json_schema_extra={"keyed": False, "path": path}, **bounds)


def keyed_values(section: Section, *, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """The semantic fields of a section, ready for a fingerprint."""
    values = section.model_dump(mode="json")
    fields = type(section).model_fields
    return {name: values[name] for name in fields if _is_keyed(fields[name]) and name not in leave_out}


def _is_keyed(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("keyed"))


def read_yaml(path: Path) -> dict[str, Any]:
    """The file's mapping with every scalar as the string it is written as."""
    if not path.is_file():
        near = [str(found) for found in sorted((path if path.is_dir() else path.parent).glob("*.yaml"))]
        what = f"{path} is a folder, not a configuration file" if path.is_dir() else f"no configuration file at {path}"
        raise UserError(what + (f"; found {', '.join(near)}" if near else ""))
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not readable YAML (UTF-8): {error}") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if not isinstance(content, dict):
        found = {"": "nothing", None: "nothing"}.get(content, "a single value") if not isinstance(content, list) else "a list"
        raise UserError(f"{path} must hold a mapping of sections (`store: ...`, `ingest: ...`), it holds {found}")
    return content


class _Loader(yaml.BaseLoader):
    """Every scalar as the string it is written as. A key that stands twice in a mapping is an error: YAML's own reader takes the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if key.value == "<<":
                raise yaml.YAMLError(f"line {line}: merge keys (<<) are not read; write the settings out")
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in lines:
                both = f"in lines {lines[key.value]} and {line}"
                raise yaml.YAMLError(f"the key {key.value} stands twice in one mapping, {both}: put them together")
            lines[key.value] = line
        return super().construct_mapping(node, deep=deep)


NULLS = ("", "~", "null")  # as YAML writes them


def without_null_sections(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """The values without sections that hold nothing (`runner:` with every key commented out, `dev: null`): these have their defaults."""
    kept: dict[str, Any] = {}
    for name, value in values.items():
        field = model.model_fields.get(name)
        section = field and _section_of(field.annotation)
        if not section:
            kept[name] = value
        elif isinstance(value, dict):
            kept[name] = without_null_sections(section, value)
        elif value not in NULLS:
            kept[name] = value
    return kept


def map_paths(
    model: type[BaseModel], values: dict[str, Any], change: Callable[[str, str, PathKind], str], *, prefix: str = ""
) -> dict[str, Any]:
    """The values with `change(path, dotted key, kind)` in place of each path, in all sections.

    Raises UserError where a path has bytes that are no text: settings travel as JSON.
    """
    changed = dict(values)
    for name, value in values.items():
        field = model.model_fields.get(name)
        section = field and _section_of(field.annotation)
        if section and isinstance(value, dict):
            changed[name] = map_paths(section, value, change, prefix=f"{prefix}{name}.")
        elif field and isinstance(value, str) and not (value in NULLS and type(None) in typing.get_args(field.annotation)):
            kind = isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("path")
            changed[name] = _as_text(change(value, f"{prefix}{name}", typing.cast(PathKind, kind)), f"{prefix}{name}") if kind else value
    return changed


def _as_text(path: str, key: str) -> str:
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UserError(f"{key}={path}: the path is no text in this terminal's encoding: set PYTHONUTF8=1, or rename it in UTF-8") from None
    return path


def expanded_paths(model: type[BaseModel], values: dict[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """The values with `~` and environment variables replaced in each path.

    Raises UserError as `data.files.paths.expanded` does, and where a path that must be given is empty: `~` alone is YAML's null.
    """

    def change(path: str, key: str, kind: PathKind) -> str:
        if path in NULLS:
            raise UserError(f"{key} is empty: give a path")
        return expanded(path, key=key)

    return map_paths(model, values, change, prefix=prefix)


def set_dotted(values: dict[str, Any], key: str, value: str) -> None:
    """Set `a.b.c` in nested mappings, in place."""
    *parents, last = key.split(".")
    for parent in parents:
        below = values.setdefault(parent, {})
        if not isinstance(below, dict):
            raise UserError(f"cannot set {key}: {parent} is a single value, not a section")
        values = below
    values[last] = value


def deep_merge(values: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """`values` with `others` over them; where both have a mapping, key by key."""
    sections = [name for name, own in others.items() if isinstance(own, dict) and isinstance(values.get(name), dict)]
    both = {name: deep_merge(values[name], others[name]) for name in sections}
    return {**values, **others, **both}


def build(model: type[SectionType], values: dict[str, Any]) -> SectionType:
    """A checked settings object. Raises UserError with every fault, each naming its key and what was expected."""
    refuse_unknown(model, values)
    try:
        return model.model_validate(_shaped(model, values))
    except ValidationError as error:
        faults = [f"  {'.'.join(map(str, fault['loc']))}: {fault['msg']} (got {fault['input']!r})" for fault in error.errors()]
        raise UserError("\n".join(["the configuration has faults:", *faults])) from error


def all_keys(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Every dotted key of a settings model."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        section = _section_of(field.annotation)
        keys += all_keys(section, f"{prefix}{name}.") if section else [f"{prefix}{name}"]
    return keys


def refuse_unknown(model: type[BaseModel], values: dict[str, Any], *, prefix: str = "") -> None:
    """Raises UserError for a key that the model has not, with the nearest that it has."""
    for name, value in values.items():
        field = model.model_fields.get(name)
        if field is None:
            raise unknown_key(f"{prefix}{name}", valid=all_keys(model, prefix))
        section = _section_of(field.annotation)
        if section and isinstance(value, dict):
            refuse_unknown(section, value, prefix=f"{prefix}{name}.")
        elif section:
            raise UserError(f"{prefix}{name} is a section: set one of its keys, e.g. {all_keys(section, f'{prefix}{name}.')[0]}=...")


def unknown_key(key: str, *, valid: list[str]) -> UserError:
    """The error for a name that does not exist, with the nearest ones that do."""
    by_last_part = [other for other in valid if other.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    near = list(dict.fromkeys(by_last_part + difflib.get_close_matches(key, valid, n=4, cutoff=0.4)))[:4]
    hint = f"; nearest: {', '.join(near)}" if near else f"; valid: {', '.join(valid[:20])}"
    return UserError(f"unknown key {key}{hint}")


def _section_of(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _shaped(model: type[BaseModel], values: dict[str, Any]) -> dict[str, Any]:
    """Strings into the shape the type wants: `a,b` to a list, `null` to None. Scalars are left to pydantic."""
    shaped: dict[str, Any] = {}
    for name, value in values.items():
        annotation = model.model_fields[name].annotation
        section = _section_of(annotation)
        if section:
            shaped[name] = _shaped(section, value)
        else:
            shaped[name] = _shaped_value(annotation, value)
    return shaped


def _shaped_value(annotation: Any, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        if type(None) in arguments and value.lower() in ("null", "none", "~", ""):
            return None
        return _shaped_value(next(a for a in arguments if a is not type(None)), value)
    if origin in (tuple, list):
        inner = value.strip().removeprefix("[").removesuffix("]")
        return [part.strip() for part in inner.split(",") if part.strip()]
    return value


def parse_arguments(arguments: list[str]) -> dict[str, str]:
    """`key=value` words of a command line, in order; a later one wins. Raises UserError on any other word."""
    parsed: dict[str, str] = {}
    for word in arguments:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UserError(f"expected key=value, got {word!r} (for example stage=embed or hard_negatives.negatives=10)")
        parsed[key] = value
    return parsed
