"""The YAML file of an experiment, the phase of it that is asked for, and the command line over both.

    store: runs/store
    train: {epochs: 3}
    phases:                                     # trainings in a row, each with its own data, models and schedule
      first: {train: {output: runs/first}}      # settings that lie over the rest of the file where `phase=first` asks for them
      second: {student: {model: runs/first/student}, train: {output: runs/second, epochs: 1}}

Every scalar is read as the string that it is written as. A key that stands twice is an error.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from data.config.fields import NULLS, known, unknown_key, warn_once
from data.errors import UserError
from data.files.paths import expanded

SHORTHANDS = {"runner": "runner.kind", "recipe": "train.recipe", "task": "train.task", "dev": "train.dev"}


def layers(model: type[BaseModel], args: dict[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The raw values of the file with its phase laid over them, and those of the command line, shorthands spelt out.

    Args:
        model: of the settings, by which all keys of the file are checked, those of other phases too.
        args: `config`, `phase` if one is asked for, and overrides by dotted keys.

    Raises UserError: no `config`, no such file or phase, and what `known` refuses.
    """
    overrides = dict(args)
    name = overrides.pop("phase", None)
    if (old := overrides.pop("step", None)) is not None:
        if name is not None:
            raise UserError("step is the old name of phase: leave one of them out")
        warn_once(f"step={old} is now phase={old}; the old name is read until the next version")
        name = old
    values, phases = _read(model, overrides.pop("config", None))
    if name is not None:
        if not phases:
            raise UserError(f"phase={name}: {args['config']} has no phases")
        if name not in phases:
            raise unknown_key(f"phase={name}", valid=[f"phase={one}" for one in phases])
        values = deep_merge(values, phases[name])
    given = nested({SHORTHANDS.get(key, key): value for key, value in overrides.items()})
    return values, known(model, given)


def nested(dotted: dict[str, str]) -> dict[str, Any]:
    """`{"a.b": "c"}` as `{"a": {"b": "c"}}`. Raises UserError where a key is a value and a section."""
    values: dict[str, Any] = {}
    for key, value in dotted.items():
        _set_dotted(values, key, value)
    return values


def phases_of(model: type[BaseModel], file: str | None) -> dict[str, dict[str, Any]]:
    """The phases of a file in its order, by name: what each lays over the rest. Raises UserError as `layers` does."""
    return _read(model, file)[1]


def _read(model: type[BaseModel], file: str | None) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    if file is None:
        raise UserError("say which experiment: config=FILE (a YAML file, see recipes/)")
    values = read_yaml(Path(expanded(file, key="config")))
    if "steps" in values and "phases" not in values:
        warn_once(f"{file}: `steps` are now `phases`; the old name is read until the next version")
        values["phases"] = values.pop("steps")
    phases = values.pop("phases", {})
    if not isinstance(phases, dict) or not all(isinstance(own, dict) or own in NULLS for own in phases.values()):
        raise UserError(f"{file}: phases is a mapping of names, each with settings below it")
    phases = {name: {} if own in NULLS else own for name, own in phases.items()}
    if not values.keys() & model.model_fields.keys():
        raise UserError(
            f"{file} is no experiment: it has the keys {', '.join(list(values)[:8]) or 'of nothing'}; expected store, ingest, ..."
        )
    if any("stages" in own["train"] for own in (values, *phases.values()) if isinstance(own.get("train"), dict)):
        raise UserError(
            f"{file}: train.stages are now phases, which `prep phases` runs in order: write each stage as\n"
            "phases:\n  NAME:\n    student: {model: OUTPUT-OF-THE-ONE-BEFORE/student}\n    train: {output: FOLDER, draw: 1, ...}\n"
            "and set embed.model to what mines (see recipes/cl_drd/cl_drd.yaml)"
        )
    checked = {name: known(model, own, from_file=True) for name, own in phases.items()}
    return known(model, values, from_file=True), checked


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
        found = "a list" if isinstance(content, list) else "a single value" if content else "nothing"
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


def _set_dotted(values: dict[str, Any], key: str, value: str) -> None:
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
