"""What W&B's files of an offline run have: it writes them every 15 s, so a kill takes the last steps back, and nobody else can tell."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

_HEADER, _BLOCK, _CHUNK = 7, 32768, 7
_WHOLE, _LAST = 1, 4  # kinds of chunks that end a record


def last_step(output: Path, run_id: str) -> int | None:
    """The last step of a run in the files of its earlier starts, 0 where they have none; None where there are no files."""
    files = list(output.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    return max((step for file in files for step in _steps(file)), default=0) if files else None


def _steps(file: Path) -> Iterator[int]:
    from wandb.proto.wandb_internal_pb2 import Record

    for content in _records(file.read_bytes()):
        record = Record.FromString(content)
        if record.HasField("history"):
            yield record.history.step.num


def _records(content: bytes) -> Iterator[bytes]:
    """The whole records of a log of LevelDB's format: blocks of chunks, each with checksum (4 bytes), length (2) and kind (1)."""
    place, record = _HEADER, b""
    while place + _CHUNK <= len(content):
        if _BLOCK - place % _BLOCK < _CHUNK:  # no room for another chunk: zeros up to the next block
            place += _BLOCK - place % _BLOCK
            continue
        length, kind = int.from_bytes(content[place + 4 : place + 6], "little"), content[place + 6]
        place += _CHUNK + length
        if not kind or place > len(content):  # cut short by a kill
            return
        record += content[place - length : place]
        if kind in (_WHOLE, _LAST):
            yield record
            record = b""
