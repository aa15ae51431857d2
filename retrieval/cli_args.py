"""The `key=value` arguments of a `retrieve` command, checked before any work."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar

from data.config import fields as config
from data.config.fields import Section, parse_arguments, unknown_key
from data.errors import UserError
from data.files.outputs import Kind as FileKind
from data.files.paths import expanded
from data.remote.cache import local_file, local_table, local_table_or_file, output_file, output_table
from retrieval.table_kinds import Kind, checked_table

SectionType = TypeVar("SectionType", bound=Section)

NOT_GIVEN = "\0"  # an empty value is one that a user may mean: student.query_prefix=


class Args(dict[str, str]):
    """A command's own arguments: required ones are there, no unknown one is. Paths may be on an object store (see `data.remote.cache`)."""

    @staticmethod
    def of(given: list[str] | None, *, required: tuple[str, ...], optional: dict[str, str]) -> Args:
        """The arguments over the defaults of `optional`. Raises UserError: an unknown one, a missing one, no `key=value`."""
        values = parse_arguments(given or [])
        valid = [*required, *optional]
        for key in values:
            if key not in valid:
                raise unknown_key(key, valid=valid)
        missing = [key for key in required if key not in values]
        if missing:
            raise UserError(f"missing {', '.join(f'{key}=...' for key in missing)}; optional: {', '.join(optional) or 'nothing'}")
        return Args({**optional, **values})

    def _path(self, key: str) -> str:
        return expanded(self[key], key=key)

    def file(self, key: str) -> Path:
        """The value as a local file."""
        return local_file(self._path(key))

    def table(self, key: str, kind: Kind) -> Path:
        """The value as the local folder of a stored table of this kind."""
        return checked_table(local_table(self._path(key)), kind, key=key)

    def table_or_file(self, key: str) -> Path:
        """The value as the local folder of a stored table, or a single file."""
        return local_table_or_file(self._path(key))

    def output_file(self, key: str, kind: FileKind) -> AbstractContextManager[Path]:
        """A local path to write; it is put where the value says when the block ends well. A file of another kind is not overwritten."""
        return output_file(self._path(key), option=key, kind=kind)

    def output_table(self, key: str) -> AbstractContextManager[Path]:
        """A local folder to write; it is put where the value says when the block ends well."""
        return output_table(self._path(key), option=key)

    def number(self, key: str, *, least: int = 0) -> int:
        """The value as a whole number of at least `least`."""
        if not self[key].isdecimal():
            raise UserError(f"{key}={self[key]}: expected a whole number")
        if int(self[key]) < least:
            raise UserError(f"{key}={self[key]}: expected at least {least}")
        return int(self[key])

    def positive(self, key: str) -> float:
        """The value as a number above 0."""
        try:
            value = float(self[key])
        except ValueError:
            value = 0.0
        if not 0 < value < math.inf:
            raise UserError(f"{key}={self[key]}: expected a number above 0")
        return value

    def one_of(self, key: str, *valid: str) -> str:
        """The value, one of `valid`."""
        if self[key] not in valid:
            raise UserError(f"{key}={self[key]}: expected {' or '.join(valid)}")
        return self[key]

    def section(self, model: type[SectionType], **known: str) -> SectionType:
        """A section of settings from the arguments that bear its fields' names and are given. `known` values give way to them."""
        named = {name: self[name] for name in model.model_fields if self.get(name, NOT_GIVEN) != NOT_GIVEN}
        return config.build(model, config.expanded_paths(model, {**known, **named}))


def settings_of(model: type[Section], *names: str) -> dict[str, str]:
    """Optional arguments for some fields of a section (all but `model` where no names are given), none of them given."""
    return dict.fromkeys(names or [name for name in model.model_fields if name != "model"], NOT_GIVEN)


def text_among(given: list[str] | None) -> list[str]:
    """The arguments with those that are no `key=value` put together as one `text=...`: a query can stand as it is, in quotes or not."""
    settings = [arg for arg in given or [] if arg.partition("=")[1] and arg.partition("=")[0].isidentifier()]
    text = [arg for arg in given or [] if arg not in settings]
    if text and any(arg.startswith("text=") for arg in settings):
        raise UserError(f"two queries: {' '.join(text)!r} and text=; leave out one")
    return [*settings, *([f"text={' '.join(text)}"] if text else [])]
