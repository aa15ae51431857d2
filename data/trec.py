"""TREC run files: `query_id Q0 doc_id rank score tag`, best first, equal scores by doc_id."""

from __future__ import annotations

from pathlib import Path

from data.errors import UserError
from data.shards import atomic_write

Run = dict[str, list[tuple[str, float]]]  # query_id -> (doc_id, score), best first


def read_run(path: Path) -> Run:
    """A run. Raises UserError with file and line where a line is not six fields with a number as the fifth."""
    run: Run = {}
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                fields = line.split()
                if not fields:
                    continue
                try:
                    query_id, _, doc_id, _, score, _ = fields
                    run.setdefault(query_id, []).append((doc_id, float(score)))
                except ValueError:
                    raise UserError(f"{path}:{number}: expected `query_id Q0 doc_id rank score tag`, got {line.strip()[:80]!r}") from None
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such run file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text, so it is no TREC run") from error
    for entries in run.values():
        entries.sort(key=lambda entry: (-entry[1], entry[0]))
    return run


def write_run(path: Path, run: Run, *, tag: str) -> None:
    """Write a run, whole or not at all."""
    lines = [
        f"{query_id} Q0 {doc_id} {rank} {score:.6f} {tag}\n"
        for query_id, entries in sorted(run.items())
        for rank, (doc_id, score) in enumerate(entries, 1)
    ]
    atomic_write(path, "".join(lines).encode())
