"""Where a collection's files lie: a folder of BEIR, of MS MARCO or of Parquet, on the local file system or on an object store.

BEIR                        MS MARCO
corpus.jsonl                collection.tsv                        a passage a line
queries.jsonl               queries.<split>.tsv, queries.tsv      a query a line
qrels/<split>.tsv           qrels.<split>.tsv, qrels.tsv          a judgement a line

BEIR's judgements may be `qrels/<split>.jsonl`, or Parquet, where no `.tsv` is there. Parquet: `data.formats.parquet_layout`. Instead of
a folder, `irds:ID` names a data set of ir_datasets: `data.formats.ir_datasets_copy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.errors import UserError
from data.formats.ir_datasets_copy import is_ir_datasets, local_copy
from data.formats.parquet_layout import holds_parquet, parquet_files
from data.remote.cache import RemoteFolder, is_remote

_SOME_NAMES = 12

Format = Literal["beir", "msmarco", "parquet"]


@dataclass(frozen=True)
class Collection:
    """The files of a collection. `qrels` maps a split's name to its files, in order of names. Of Parquet a part may have several."""

    folder: Path
    format: Format
    corpus: tuple[Path, ...]
    queries: tuple[Path, ...]
    qrels: Mapping[str, tuple[Path, ...]]

    def name(self, path: Path) -> str:
        """A file's name relative to the folder: the same wherever the collection lies."""
        return path.relative_to(self.folder).as_posix()


def numbered_files(name: str, files: Sequence[Path]) -> dict[str, Path]:
    """Files under names for a key: the only one has the name as it is."""
    return {f"{name}/{place}" if place else name: file for place, file in enumerate(files)}


def listed_files(files: Sequence[Path]) -> str:
    """Files as a message names them."""
    return ", ".join(map(str, files))


def find_collection(path: str | Path, *, format: Literal["auto", "beir", "msmarco", "parquet"] = "auto") -> Collection:
    """The collection in a folder. `x.gz` counts as `x`; where both are there, the plain file is read.

    `qrels.dev.small.tsv` is split `dev`, unless `qrels.dev.tsv` stands beside it: then it is `dev.small`. Of an address on an object
    store the files of the collection are copied, and no others: the collection is that of the copy. So it is with `irds:ID`.

    Raises UserError: no such folder, a file missing (with what was looked for and what is there), or several formats in one folder.
    """
    if is_ir_datasets(path):
        if format not in ("auto", "beir"):
            raise UserError(f"ingest.format={format}: {path} is read by ir_datasets; leave ingest.format out")
        path = local_copy(str(path))
    folder = RemoteFolder(str(path)) if is_remote(path) else _LocalFolder(Path(path))
    names = folder.names()
    if names is None:
        raise UserError(f"no collection folder at {path}: set ingest.path to a folder in BEIR, MS MARCO or Parquet layout")
    found = _detect(path, folder, names) if format == "auto" else format
    corpus, queries, qrels = _CHOOSE[found](path, folder, names)
    root = folder.local([*corpus, *queries, *(name for files in qrels.values() for name in files)])

    def paths(files: Sequence[str]) -> tuple[Path, ...]:
        return tuple(root / name for name in files)

    return Collection(root, found, paths(corpus), paths(queries), {split: paths(files) for split, files in sorted(qrels.items())})


class _LocalFolder:
    """A local folder, with the methods of `RemoteFolder`."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def names(self, below: str = "") -> list[str] | None:
        """Names of what lies in it, or in its folder `below`; those of folders end in a slash. None: no such folder."""
        folder = self._path / below
        return sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir()) if folder.is_dir() else None

    def local(self, names: Sequence[str]) -> Path:
        """The folder as it is."""
        return self._path


_Folder = RemoteFolder | _LocalFolder
_Chosen = tuple[Sequence[str], Sequence[str], dict[str, Sequence[str]]]  # names of files in the folder: corpus, queries, qrels by split


def _present(names: Sequence[str] | None) -> dict[str, str]:
    """The names of files by their name without `.gz`."""
    present: dict[str, str] = {}
    for name in sorted(names or ()):  # sorted: the plain name comes before its .gz and wins
        if not name.endswith("/"):
            present.setdefault(name.removesuffix(".gz"), name)
    return present


_SIGNS: dict[Format, str] = {"beir": "corpus.jsonl", "msmarco": "collection.tsv", "parquet": "its corpus as Parquet"}


def _detect(place: str | Path, folder: _Folder, names: Sequence[str]) -> Format:
    files = _present(names)
    is_there: dict[Format, bool] = {
        "beir": "corpus.jsonl" in files,
        "msmarco": "collection.tsv" in files,
        "parquet": holds_parquet(folder, names, "corpus"),
    }
    found = [format for format, there in is_there.items() if there]
    if len(found) > 1:
        both, options = (" and ".join(_SIGNS[one] for one in found), " or ".join(f"ingest.format={one}" for one in found))
        raise UserError(f"{place} holds {both}: say which to read, {options}")
    if not found:
        raise _missing(place, names, "corpus.jsonl[.gz] (BEIR), collection.tsv[.gz] (MS MARCO), or corpus.parquet or corpus/*.parquet")
    return found[0]


def _missing(folder: str | Path, names: Sequence[str] | None, expected: str) -> UserError:
    if names is None:
        there = "that folder does not exist"
    elif not names:
        there = "the folder is empty"
    else:
        rest = f" and {len(names) - _SOME_NAMES} more" if len(names) > _SOME_NAMES else ""
        there = f"it holds {', '.join(names[:_SOME_NAMES])}{rest}"
    return UserError(f"{folder}: looked for {expected}; {there}")


def _choose_beir(place: str | Path, folder: _Folder, names: Sequence[str]) -> _Chosen:
    files, below = _present(names), folder.names("qrels")
    for expected in ("corpus.jsonl", "queries.jsonl"):
        if expected not in files:
            raise _missing(place, names, f"{expected}[.gz]")
    qrels = _judgement_files(below, ".tsv") or _judgement_files(below, ".jsonl") or parquet_files(place, folder, names)[2]
    if not qrels:
        raise _missing(f"{place}/qrels", below, "<split>.tsv[.gz], for example train.tsv")
    return [files["corpus.jsonl"]], [files["queries.jsonl"]], qrels


def _judgement_files(below: Sequence[str] | None, end: str) -> dict[str, Sequence[str]]:
    """The text files of a folder `qrels` by split."""
    return {name.removesuffix(end): [f"qrels/{file}"] for name, file in _present(below).items() if name.endswith(end)}


def _choose_parquet(place: str | Path, folder: _Folder, names: Sequence[str]) -> _Chosen:
    corpus, queries, qrels = parquet_files(place, folder, names)
    for part, found in (("corpus", corpus), ("queries", queries)):
        if not found:
            raise _missing(place, names, f"{part}.parquet, or a folder {part} with files *.parquet")
    text_files = {**_judgement_files(folder.names("qrels"), ".jsonl"), **_judgement_files(folder.names("qrels"), ".tsv")}
    qrels = {**text_files, **qrels}  # as the hub has them, beside each other and with the same judgements
    if not qrels:
        raise _missing(
            place, names, "judgements: qrels/<split>.parquet, default/<split>-*.parquet, data/<split>-*.parquet or qrels/<split>.tsv"
        )
    return corpus, queries, qrels


def _choose_msmarco(place: str | Path, folder: _Folder, names: Sequence[str]) -> _Chosen:
    files = _present(names)
    queries = tuple(_by_split(files, "queries").values())
    qrels = {split or "train": file for split, file in _by_split(files, "qrels").items()}
    if "collection.tsv" not in files:
        raise _missing(place, names, "collection.tsv[.gz]")
    for kind, found in (("queries", queries), ("qrels", qrels)):
        if not found:
            raise _missing(place, names, f"{kind}.<split>.tsv[.gz] or {kind}.tsv[.gz]")
    if "qrels.tsv" in files and "qrels.train.tsv" in files:
        raise UserError(f"{place} holds qrels.tsv and qrels.train.tsv, both of split train: keep one of them")
    shortened = {split: split.removesuffix(".small") for split in qrels}
    by_split: dict[str, Sequence[str]] = {split if shortened[split] in qrels else shortened[split]: [file] for split, file in qrels.items()}
    return [files["collection.tsv"]], queries, by_split


_CHOOSE: dict[Format, Callable[[str | Path, _Folder, Sequence[str]], _Chosen]] = {
    "beir": _choose_beir, "msmarco": _choose_msmarco, "parquet": _choose_parquet,
}  # fmt: skip


def _by_split(files: Mapping[str, str], kind: str) -> dict[str, str]:
    """Files `kind.<split>.tsv` by split; `kind.tsv` has the empty one."""
    named = {name: name.split(".") for name in files}
    return {".".join(parts[1:-1]): files[name] for name, parts in named.items() if (parts[0], parts[-1]) == (kind, "tsv")}
