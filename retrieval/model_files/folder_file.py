"""One JSON file of a checkpoint folder: values by type, and refusals that name file, key and value."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from data.errors import UserError
from retrieval.model_files.files import read_json

_NO_LIMIT = 1e9


@dataclass(frozen=True)
class FolderFile:
    """A file, or a section of one. A key that is null is as good as not there."""

    path: Path
    content: dict[str, Any]
    option: str  # of the configuration, which named the folder
    section: str = ""  # of the file, dotted, with a dot at its end

    @classmethod
    def read(cls, path: Path, *, option: str) -> FolderFile:
        """A file; an empty one where there is none."""
        return cls(path, read_json(path), option)

    def refusal(self, key: str, why: str) -> UserError:
        """What to raise for a key's value; `why` goes on from "says key=value"."""
        return UserError(f"{self.option}: {self.path} says {self.section}{key}={json.dumps(self.content.get(key))}, {why}")

    def of_type(self, key: str, kind: type | tuple[type, ...], what: str) -> Any:
        """A key's value, None where there is none. Raises UserError for one of another type."""
        value = self.content.get(key)
        if value is None or isinstance(value, kind):
            return value
        raise self.refusal(key, f"but {what} is expected there")

    def count(self, key: str) -> int | None:
        """A number of tokens or dimensions; None for the 1e30 that stands for no limit."""
        number = self.of_type(key, (int, float), "a number")
        if number is None or number >= _NO_LIMIT:
            return None
        if isinstance(number, bool) or not number >= 1 or number != int(number):
            raise self.refusal(key, "but a whole number above 0 is expected there")
        return int(number)

    def text(self, key: str) -> str | None:
        """A string."""
        return cast("str | None", self.of_type(key, str, "a text"))

    def part(self, key: str) -> FolderFile:
        """An object within, empty where there is none."""
        return FolderFile(self.path, self.of_type(key, dict, "an object") or {}, self.option, f"{self.section}{key}.")

    def refuse_others(self, known: Iterable[str]) -> None:
        """Raises UserError for the first key that has a value and is none of these."""
        for key in sorted(self.content.keys() - set(known)):
            if self.content[key] is not None:
                raise self.refusal(key, "a key that is not known here; take it out of a copy of the folder if it means nothing")
