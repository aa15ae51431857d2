"""Where a collection's files lie: a BEIR folder or an MS MARCO folder, on the local file system or on an object store.

BEIR                        MS MARCO
corpus.jsonl                collection.tsv                        a passage a line
queries.jsonl               queries.<split>.tsv, queries.tsv      a query a line
qrels/<split>.tsv           qrels.<split>.tsv, qrels.tsv          a judgement a line
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.errors import UserError
from data.remote.cache import RemoteFolder, is_remote

_SOME_NAMES = 12

Format = Literal["beir", "msmarco"]


@dataclass(frozen=True)
class Collection:
    """The files of a collection. `qrels` maps a split's name to its file, in order of names."""

    folder: Path
    format: Format
    corpus: Path
    queries: tuple[Path, ...]
    qrels: Mapping[str, Path]

    def name(self, path: Path) -> str:
        """A file's name relative to the folder: the same wherever the collection lies."""
        return path.relative_to(self.folder).as_posix()


def find_collection(path: str | Path, *, format: Literal["auto", "beir", "msmarco"] = "auto") -> Collection:
    """The collection in a folder. `x.gz` counts as `x`; where both are there, the plain file is read.

    `qrels.dev.small.tsv` is split `dev`, unless `qrels.dev.tsv` stands beside it: then it is `dev.small`. Of an address on an object
    store the files of the collection are copied, and no others: the collection is that of the copy.

    Raises UserError: no such folder, a file missing (with what was looked for and what is there), or both formats in one folder.
    """
    folder = RemoteFolder(str(path)) if is_remote(path) else _LocalFolder(Path(path))
    names = folder.names()
    if names is None:
        raise UserError(f"no collection folder at {path}: set ingest.path to a folder in BEIR or MS MARCO layout")
    found = _detect(path, names) if format == "auto" else format
    corpus, queries, qrels = _choose_beir(path, names, folder.names("qrels")) if found == "beir" else _choose_msmarco(path, names)
    root = folder.local([corpus, *queries, *qrels.values()])
    by_split = {split: root / name for split, name in sorted(qrels.items())}
    return Collection(root, found, root / corpus, tuple(root / name for name in queries), by_split)


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


_Chosen = tuple[str, tuple[str, ...], dict[str, str]]  # names of files in the folder: corpus, queries, qrels by split


def _present(names: Sequence[str] | None) -> dict[str, str]:
    """The names of files by their name without `.gz`."""
    present: dict[str, str] = {}
    for name in sorted(names or ()):  # sorted: the plain name comes before its .gz and wins
        if not name.endswith("/"):
            present.setdefault(name.removesuffix(".gz"), name)
    return present


def _detect(folder: str | Path, names: Sequence[str]) -> Format:
    files = _present(names)
    beir, msmarco = "corpus.jsonl" in files, "collection.tsv" in files
    if beir and msmarco:
        raise UserError(f"{folder} holds corpus.jsonl and collection.tsv: say which to read, ingest.format=beir or ingest.format=msmarco")
    if not beir and not msmarco:
        raise _missing(folder, names, "corpus.jsonl[.gz] (BEIR) or collection.tsv[.gz] (MS MARCO)")
    return "beir" if beir else "msmarco"


def _missing(folder: str | Path, names: Sequence[str] | None, expected: str) -> UserError:
    if names is None:
        there = "that folder does not exist"
    elif not names:
        there = "the folder is empty"
    else:
        rest = f" and {len(names) - _SOME_NAMES} more" if len(names) > _SOME_NAMES else ""
        there = f"it holds {', '.join(names[:_SOME_NAMES])}{rest}"
    return UserError(f"{folder}: looked for {expected}; {there}")


def _choose_beir(folder: str | Path, names: Sequence[str], below: Sequence[str] | None) -> _Chosen:
    files = _present(names)
    for expected in ("corpus.jsonl", "queries.jsonl"):
        if expected not in files:
            raise _missing(folder, names, f"{expected}[.gz]")
    qrels = {name.removesuffix(".tsv"): f"qrels/{file}" for name, file in _present(below).items() if name.endswith(".tsv")}
    if not qrels:
        raise _missing(f"{folder}/qrels", below, "<split>.tsv[.gz], for example train.tsv")
    return files["corpus.jsonl"], (files["queries.jsonl"],), qrels


def _choose_msmarco(folder: str | Path, names: Sequence[str]) -> _Chosen:
    files = _present(names)
    queries = tuple(_by_split(files, "queries").values())
    qrels = {split or "train": file for split, file in _by_split(files, "qrels").items()}
    if "collection.tsv" not in files:
        raise _missing(folder, names, "collection.tsv[.gz]")
    for kind, found in (("queries", queries), ("qrels", qrels)):
        if not found:
            raise _missing(folder, names, f"{kind}.<split>.tsv[.gz] or {kind}.tsv[.gz]")
    if "qrels.tsv" in files and "qrels.train.tsv" in files:
        raise UserError(f"{folder} holds qrels.tsv and qrels.train.tsv, both of split train: keep one of them")
    shortened = {split: split.removesuffix(".small") for split in qrels}
    by_split = {split if shortened[split] in qrels else shortened[split]: file for split, file in qrels.items()}
    return files["collection.tsv"], queries, by_split


def _by_split(files: Mapping[str, str], kind: str) -> dict[str, str]:
    """Files `kind.<split>.tsv` by split; `kind.tsv` has the empty one."""
    named = {name: name.split(".") for name in files}
    return {".".join(parts[1:-1]): files[name] for name, parts in named.items() if (parts[0], parts[-1]) == (kind, "tsv")}
