"""Which files of a folder are a collection in Parquet, as data sets of the hub lie there (mteb, BeIR, NanoBEIR) and as others write it.

corpus/corpus-00000-of-00001.parquet      corpus/train-00000-of-00001.parquet    corpus/corpus/0000.parquet    corpus.parquet
queries/queries-00000-of-00001.parquet    queries/train-00000-of-00001.parquet   queries/queries/0000.parquet  queries.parquet
default/test-00000-of-00001.parquet       qrels/train-00000-of-00001.parquet     default/test/0000.parquet     qrels/test.parquet

All files of `corpus` are one corpus, those of `queries` one set of queries. A file of judgements, or the folder that it lies in, is named
after its split. Judgements are those of `qrels`, else of `default`, else of `data`; a `qrels.parquet` alone is of split train.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from data.errors import UserError

_JUDGEMENTS = ("qrels", "default", "data")
_END = ".parquet"
_NUMBERED = re.compile(r"(?P<name>.+?)-[0-9]{5}-of-[0-9]{5}(-[0-9a-f]{16})?")


class Folder(Protocol):
    """Lists what lies in it, see `data.remote.cache.RemoteFolder`."""

    def names(self, below: str = "") -> list[str] | None:
        """Names of what lies in the folder, or in its folder `below`; those of folders end in a slash."""


def holds_parquet(folder: Folder, names: Sequence[str], part: str) -> bool:
    """Whether a part of a collection lies there in Parquet."""
    return any(True for _ in _files_of(folder, names, part))


def parquet_files(place: str | Path, folder: Folder, names: Sequence[str]) -> tuple[list[str], list[str], dict[str, Sequence[str]]]:
    """Names of the files of corpus, queries, and judgements by split; what is not there is empty.

    Raises UserError where a part lies there twice, as a file and as a folder.
    """
    corpus, queries = ([name for name, _ in _only_one_place(place, folder, names, part)] for part in ("corpus", "queries"))
    for part in _JUDGEMENTS:
        if found := list(_only_one_place(place, folder, names, part)):
            qrels: dict[str, Sequence[str]] = {}
            for name, split in found:
                qrels[split] = [*qrels.get(split, ()), name]
            return corpus, queries, qrels
    return corpus, queries, {}


def _only_one_place(place: str | Path, folder: Folder, names: Sequence[str], part: str) -> list[tuple[str, str]]:
    found = list(_files_of(folder, names, part))
    if len({"/" in name for name, _ in found}) > 1:
        raise UserError(f"{place} holds {found[0][0]} and {found[-1][0]}, which are both its {part}: keep one of them")
    return found


def _files_of(folder: Folder, names: Sequence[str], part: str) -> Iterator[tuple[str, str]]:
    """(name of a file, split that it is of) of a part, in order: beside each other, then in a folder, then in folders below that."""
    for name in _visible(names):
        if name.endswith(_END) and _split(name) == part:
            yield name, "train"
    if f"{part}/" not in names:
        return
    below = _visible(folder.names(part) or ())
    yield from ((f"{part}/{name}", _split(name)) for name in below if name.endswith(_END))
    for inner in (name for name in below if name.endswith("/")):
        files = _visible(folder.names(f"{part}/{inner.rstrip('/')}") or ())
        yield from ((f"{part}/{inner}{name}", inner.rstrip("/")) for name in files if name.endswith(_END))


def _visible(names: Sequence[str]) -> list[str]:
    return [name for name in names if not name.startswith((".", "_"))]


def _split(name: str) -> str:
    """`test` of `test.parquet`, and of `test-00000-of-00002.parquet`."""
    stem = name.removesuffix(_END)
    numbered = _NUMBERED.fullmatch(stem)
    return numbered["name"] if numbered else stem
