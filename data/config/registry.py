"""Choices that a setting names: a built-in by its name, anyone's own by its import path.

    train.objective.distillation=kl                    registered here
    train.objective.distillation=mylab.losses:rank_net   imported when it is first asked for

A plug-in is a callable in a module that this process can import. Its `version` (0 where it has none) is raised by its author when what it
computes changes: qualified name and version enter the fingerprint.
"""

from __future__ import annotations

import contextlib
import difflib
import importlib
import platform
import re
import traceback
from collections.abc import Iterable, Iterator
from typing import Any, Generic, TypeVar

from data.errors import RunFailed, UserError

Thing = TypeVar("Thing")
IMPORT_PATH = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*"


def is_import_path(name: str) -> bool:
    """Whether a name is `package.module:object`."""
    return re.fullmatch(IMPORT_PATH, name) is not None


def check_name(name: str, names: Iterable[str], *, kind: str) -> str:
    """The name, if it is one of `names` or an import path. Raises ValueError with the nearest otherwise; imports nothing."""
    listed = list(names)
    if name in listed or is_import_path(name):
        return name
    near = difflib.get_close_matches(name, listed, n=2, cutoff=0.3)
    hint = f"nearest: {', '.join(near)}" if near else f"there are {', '.join(listed)}"
    raise ValueError(f"no {kind} {name!r}; {hint}; or give your own as package.module:object")


class Registry(Generic[Thing]):
    """The built-ins of one kind, and the door for others."""

    def __init__(self, kind: str, built_in: dict[str, Thing]) -> None:
        """`kind`, for errors: `loss`, `sampler`, `source`, `teacher`."""
        self.kind = kind
        self.built_in = built_in

    def get(self, name: str, *, setting: str) -> Thing:
        """The thing of this name. Raises UserError: an unknown name, with the nearest; a module or an object that is not there."""
        if name in self.built_in:
            return self.built_in[name]
        try:
            check_name(name, self.built_in, kind=self.kind)
        except ValueError as error:
            raise UserError(f"{setting}={name}: {error}") from None
        return import_object(name, setting=setting)

    def key(self, name: str, *, setting: str) -> dict[str, Any]:
        """What a fingerprint holds of a plug-in: `{"plugin": "mylab.losses:rank_net", "version": 2}`; nothing of a built-in."""
        thing = self.get(name, setting=setting)
        if name in self.built_in:
            return {}
        version = getattr(thing, "version", 0)
        if not isinstance(version, int | str):
            raise UserError(f"{name}: its version is {version!r}; expected a whole number or a text")
        return {"plugin": name, "version": version}


@contextlib.contextmanager
def plugin_call(name: str, *, setting: str) -> Iterator[None]:
    """Around a call of a plug-in and the first use of its answer: what goes wrong there is reported with the setting and its place.

    Raises RunFailed. A built-in's exceptions pass through: they are faults of this project.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_import_path(name):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise RunFailed(f"{setting}={name} ends in {type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})") from error


def import_object(name: str, *, setting: str) -> Any:
    """The object of `package.module:object`. Raises UserError where the module cannot be imported, or has no such callable."""
    module_name, _, path = name.partition(":")
    try:
        thing: Any = importlib.import_module(module_name)
    except Exception as error:  # whatever a module of others does while it is imported
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module_name}.".startswith(f"{error.name}."):
            why = f"{platform.node()} has no module {error.name}: install it there, or put its folder on PYTHONPATH"
        else:
            why = f"importing {module_name} ends in {type(error).__name__}: {error}"
        raise UserError(f"{setting}={name}: {why}") from error
    for part in path.split("."):
        if not hasattr(thing, part):
            near = difflib.get_close_matches(part, dir(thing), n=2)
            raise UserError(f"{setting}={name}: {module_name} has no {part}" + (f"; nearest: {', '.join(near)}" if near else ""))
        thing = getattr(thing, part)
    if not callable(thing):
        raise UserError(f"{setting}={name}: expected something to call, found {type(thing).__name__}")
    return thing
