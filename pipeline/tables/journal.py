"""What each finished task cost here: a line beside the shards, since it differs between runs. No byte of a table depends on it.

On an object store, where nothing is appended to, each line is an object, journal/<task>.json, and a task that is done again replaces it.
"""

from __future__ import annotations

import contextlib
import json
import time
import urllib.parse
from dataclasses import astuple
from pathlib import Path
from typing import Any

from data.store import mirror
from data.tables.manifest import JOURNAL_NAME, ShardRecord
from data.tables.shards import atomic_write, stamp_of
from pipeline.executors.tasks import TaskResult

_OBJECTS = "journal"


def write_journal(folder: Path, done: TaskResult, *, wall: float) -> None:
    """A line for a finished task; `wall` are the seconds of its job since the table was begun."""
    line = {"shards": done.task.shards, "seconds": round(done.seconds, 3), "wall": round(wall, 3), "host": done.host, **done.figures}
    if done.task.piece is not None:
        line = {**line, "shards": [], "piece": done.task.piece.name}
    if done.records:
        line["files"] = [[*astuple(record), stamp] for record, stamp in zip(done.records, done.stamps, strict=True)]
    if mirror.is_mirrored(folder):
        line = {"at": time.time(), **line}
        atomic_write(folder / _OBJECTS / f"{urllib.parse.quote(done.task.unit, safe='')}.json", json.dumps(line).encode())
        return
    with open(folder / JOURNAL_NAME, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The journal's lines; one that was cut by a kill, or is none, is left out: no byte of a table depends on it."""
    lines = []
    for content in _written_lines(folder):
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            line = json.loads(content)
            figures = [line["seconds"], line["wall"], *(line.get(name, 0) for name in ("pairs", "cached", "scored"))]
            if all(isinstance(figure, int | float) for figure in figures) and isinstance(line.get("namespace", ""), str):
                lines.append(line)
    return sorted(lines, key=lambda line: line.get("at", 0.0))  # those of objects: in the order of their writing


def _written_lines(folder: Path) -> list[str]:
    if mirror.is_mirrored(folder):
        return [path.read_text(encoding="utf-8", errors="replace") for path in mirror.present_all(mirror.files(folder / _OBJECTS, ".json"))]
    try:
        return (folder / JOURNAL_NAME).read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []


def known_records(folder: Path) -> dict[str, ShardRecord]:
    """Shards whose digest a worker took when it had built them, by name, as far as the files were not written again since."""
    known: dict[str, ShardRecord] = {}
    stamps: dict[str, str] = {}
    for line in read_journal(folder):
        with contextlib.suppress(ValueError, TypeError):
            for name, rows, size, digest, stamp in line.get("files", ()):
                known[name], stamps[name] = ShardRecord(str(name), int(rows), int(size), str(digest)), str(stamp)
    return {name: record for name, record in known.items() if _stamp(folder / name) == stamps[name]}


def _stamp(path: Path) -> str | None:
    try:
        return stamp_of(path)
    except OSError:
        return None
