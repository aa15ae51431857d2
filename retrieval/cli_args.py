"""The `key=value` words of a `retrieve` command, checked before any work."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from dataclasses import dataclass
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

DEVICES = ("cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Words:
    """A command's own words: required ones are there, no unknown one is."""

    values: dict[str, str]

    @staticmethod
    def of(given: list[str] | None, *, required: tuple[str, ...], optional: dict[str, str]) -> Words:
        """The words, with the defaults of `optional` filled in. Raises UserError: an unknown word, a missing one, no `key=value`."""
        values = parse_arguments(given or [])
        valid = [*required, *optional]
        for key in values:
            if key not in valid:
                raise unknown_key(key, valid=valid)
        missing = [key for key in required if key not in values]
        if missing:
            raise UserError(f"missing {', '.join(f'{key}=...' for key in missing)}; optional: {', '.join(optional) or 'nothing'}")
        return Words({**optional, **values})

    def __getitem__(self, key: str) -> str:
        return self.values[key]

    def file(self, key: str) -> Path:
        """The value as a local file; one on an object store is copied."""
        return local_file(self._path(key))

    def _path(self, key: str) -> str:
        return expanded(self.values[key], key=key)

    def table(self, key: str, kind: Kind) -> Path:
        """The value as the local folder of a stored table of this kind; one on an object store is copied."""
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
        if not self.values[key].isdecimal():
            raise UserError(f"{key}={self.values[key]}: expected a whole number")
        if int(self.values[key]) < least:
            raise UserError(f"{key}={self.values[key]}: expected at least {least}")
        return int(self.values[key])

    def positive(self, key: str) -> float:
        """The value as a number above 0."""
        try:
            value = float(self.values[key])
        except ValueError:
            value = 0.0
        if not 0 < value < math.inf:
            raise UserError(f"{key}={self.values[key]}: expected a number above 0")
        return value

    def one_of(self, key: str, valid: tuple[str, ...]) -> str:
        """The value, one of `valid`."""
        if self.values[key] not in valid:
            raise UserError(f"{key}={self.values[key]}: expected {' or '.join(valid)}")
        return self.values[key]

    def section(self, model: type[SectionType], **known: str) -> SectionType:
        """A section of settings from those words that bear its fields' names and are given. `known` values give way to words."""
        named = {name: self.values[name] for name in model.model_fields if self.values.get(name, NOT_GIVEN) != NOT_GIVEN}
        return config.build(model, config.expanded_paths(model, {**known, **named}))


NOT_GIVEN = "\0"  # an empty value is one that a user may mean: student.query_prefix=


def settings_of(model: type[Section], *, leave_out: tuple[str, ...]) -> dict[str, str]:
    """Optional words for the fields of a section, none of them given."""
    return {name: NOT_GIVEN for name in model.model_fields if name not in leave_out}


def text_among(given: list[str] | None) -> list[str]:
    """The words with those that are no `key=value` put together as one `text=...`: a query can stand as it is, in quotes or not."""
    settings = [word for word in given or [] if word.partition("=")[1] and word.partition("=")[0].isidentifier()]
    text = [word for word in given or [] if word not in settings]
    if text and any(word.startswith("text=") for word in settings):
        raise UserError(f"two queries: {' '.join(text)!r} and text=; leave out one")
    return [*settings, *([f"text={' '.join(text)}"] if text else [])]
