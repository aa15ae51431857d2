"""Choices of execution that are made once for a table and kept beside its shards, so that a run that goes on rounds as it began."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from data.tables.shards import atomic_write

_NAME = "execution.json"


@dataclass(frozen=True)
class Choices:
    """How the shards of a table are computed."""

    compiled: bool  # by torch.compile
    why: str


def read_choices(folder: Path) -> Choices | None:
    """The choices made for the table in a folder; None where there are none, or the file cannot be understood."""
    try:
        return Choices(**json.loads((folder / _NAME).read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def write_choices(folder: Path, choices: Choices) -> None:
    """Keep choices."""
    atomic_write(folder / _NAME, json.dumps(asdict(choices), indent=1).encode())
