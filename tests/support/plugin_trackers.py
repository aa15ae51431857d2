"""A tracker of someone outside the project, which writes what it is given into a file of the run's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class FileTracker:
    """`seen.jsonl`: a line a call. It cannot tell what it has."""

    version = 1

    def start(self, run: Any) -> None:
        self._path = Path(run.output) / "seen.jsonl"
        self._append({"start": [run.project, run.name, run.id, run.step], "config": run.config})

    def log(self, step: int, figures: dict[str, float]) -> None:
        self._append({"step": step, "figures": figures})

    def finish(self) -> None:
        self._append({"finish": True})

    def _append(self, content: dict[str, Any]) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps(content) + "\n")


def made_of_nothing() -> object:
    return object()


def needs_a_word(word: str) -> object:
    return word


not_a_class = 3
