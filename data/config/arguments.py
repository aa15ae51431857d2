"""A command's own `key=value` arguments, checked before any work."""

from __future__ import annotations

import math
from typing import Self

from data.config.fields import parse_arguments, unknown_key
from data.errors import UserError


def path_among(given: list[str] | None) -> list[str]:
    """The arguments with `path=` before a first one that is no `key=value`: `prep import FILE out=FOLDER`."""
    first, *others = given or [""]
    is_path = first and "=" not in first.partition("/")[0]
    return [f"path={first}", *others] if is_path else list(given or [])


class Args(dict[str, str]):
    """Values by key. The methods raise UserError, naming key and value, where a value is not what they return."""

    @classmethod
    def of(cls, given: list[str] | None, *, required: tuple[str, ...], optional: dict[str, str]) -> Self:
        """The arguments over the defaults of `optional`. Raises UserError: an unknown one, a missing one, no `key=value`."""
        values = parse_arguments(given or [])
        valid = [*required, *optional]
        for key in values:
            if key not in valid:
                raise unknown_key(key, valid=valid)
        missing = [key for key in required if key not in values]
        if missing:
            raise UserError(f"missing {', '.join(f'{key}=...' for key in missing)}; optional: {', '.join(optional) or 'nothing'}")
        return cls({**optional, **values})

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
