"""What `prep import` is asked for, checked before anything is read."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from data.config.arguments import Args
from data.config.settings import load, store_given
from data.errors import UserError
from data.files.outputs import not_writable
from data.files.paths import expanded
from data.formats.collection import Collection, find_collection
from data.formats.ir_datasets_copy import is_ir_datasets
from data.formats.scored_lists.batches import ListReader, ReadOptions
from data.logits.declared import DeclaredTeacher, ScoreKind
from data.remote.cache import RemoteFolder, local_file
from data.remote.object_store import is_remote
from data.store.paths import shown
from data.store.place import open_place
from data.tables.shards import kind_of

OPTIONAL = {
    "format": "auto", "teacher": "", "revision": "1", "scores": "logit", "score_file": "", "collection": "", "columns": "",
    "split": "train", "store": "", "config": "", "max_bad_fraction": "0.001", "unscored": "drop",
}  # fmt: skip
_SPLIT = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class ImportRequest:
    """Checked arguments."""

    given: str  # the path as it was given
    path: Path
    reader: ListReader
    options: ReadOptions
    out: Path
    kind: ScoreKind
    teacher: DeclaredTeacher | None
    store: Path | None
    collection: str | None
    max_bad_fraction: float
    drop_unscored: bool

    @staticmethod
    def of(given: list[str]) -> ImportRequest:
        """Raises UserError, see the checks below."""
        args = Args.of(given, required=("path", "out"), optional=OPTIONAL)
        kind = cast(ScoreKind, args.one_of("scores", "logit", "probability", "cosine"))
        split = args["split"]
        if not _SPLIT.fullmatch(split) or split.strip(".") == "":
            raise UserError(f"split={split!r}: expected the name of a split, as train; it becomes qrels/train.tsv")
        score_file = local_file(_input(args["score_file"], "score_file")) if args["score_file"] else None
        store = _store(args)
        if args["teacher"] and store is None:
            raise UserError(
                "teacher= names whose scores they are, which go into a store: give store=FOLDER, or config=FILE of an experiment"
            )
        if args["teacher"].strip() != args["teacher"] or not args["revision"].strip():
            raise UserError(f"teacher={args['teacher']!r} revision={args['revision']!r}: expected names without white space around them")
        path = _local(_input(args["path"], "path"), split)
        from data.formats.scored_lists.readers.formats import reader_of

        return ImportRequest(
            given=args["path"],
            path=path,
            reader=reader_of(args["format"], path),
            options=ReadOptions(_columns(args["columns"]), score_file, split),
            out=_out(args["out"]),
            kind=kind,
            teacher=DeclaredTeacher(args["teacher"], args["revision"], kind) if args["teacher"] else None,
            store=store,
            collection=_collection(args["collection"]) if args["collection"] else None,
            max_bad_fraction=_fraction(args),
            drop_unscored=args.one_of("unscored", "drop", "keep") == "drop",
        )

    @cached_property
    def texts(self) -> Collection | None:
        """The collection that is given. Raises UserError where there is none, or one without qrels of the split."""
        if self.collection is None:
            return None
        try:
            collection = find_collection(self.collection)
        except UserError as error:
            raise UserError(f"collection={error}") from error
        if self.options.split not in collection.qrels:
            raise UserError(
                f"collection={self.collection} has no qrels of split {self.options.split!r}; splits found: "
                f"{', '.join(collection.qrels)}; say which: split=NAME"
            )
        return collection

    def key(self) -> dict[str, Any]:
        """All that decides what comes out: arguments, and the content of what is read."""
        files = self.reader.files(self.path, self.options)
        if self.options.score_file is not None and self.options.score_file not in files:
            files = [*files, self.options.score_file]
        root = self.path if self.path.is_dir() else self.path.parent
        texts = self.texts
        of_texts = [*texts.corpus, *texts.queries, *texts.qrels[self.options.split]] if texts else []
        return {
            "format": self.reader.name,
            "files": _digests(files, root),
            "columns": dict(sorted(self.options.columns.items())),
            "split": self.options.split,
            "collection": texts and {"path": self.collection, "files": _digests(of_texts, texts.folder)},
            "teacher": self.teacher and {**self.teacher.key, "namespace": self.teacher.namespace},
            "store": self.store and shown(self.store.absolute()),
            "drop_unscored": self.drop_unscored,
        }


def _digests(files: list[Path], root: Path) -> list[dict[str, Any]]:
    """Of the content of files, as the hub names it: SHA-256 is twice as fast as BLAKE2b."""
    found = []
    for file in files:
        with open(file, "rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        found.append({"name": os.path.relpath(file, root), "sha256": digest, "bytes": file.stat().st_size})
    return found


def _input(path: str, name: str) -> str:
    return path if path.startswith("hf://") else expanded(path, key=name)


def _collection(given: str) -> str:
    """As `ingest.path` has it in a file of settings, which is read from any folder."""
    path = expanded(given, key="collection")
    return path if is_remote(path) or is_ir_datasets(path) else os.path.abspath(path)


def _local(path: str, split: str) -> Path:
    """The file or folder on this machine. Raises UserError where there is none."""
    if path.startswith("hf://"):
        from data.formats.scored_lists.hub import dataset_folder

        return dataset_folder(path, split=split)
    if is_remote(path):
        folder = RemoteFolder(path)
        names = folder.names()
        if not names:
            return local_file(path)
        below = [f"{name}{inner}" for name in names if name.endswith("/") for inner in folder.names(name.rstrip("/")) or []]
        return folder.local([name for name in [*names, *below] if not name.endswith("/")])
    if not os.path.exists(path):
        raise UserError(f"path={path}: there is no such file or folder")
    return Path(path)


def _store(args: Args) -> Path | None:
    if args["store"] and args["config"]:
        raise UserError("store= and config= both say which store: leave one of them out")
    if args["config"]:
        return _opened(load({"config": args["config"]}).store)
    if not args["store"]:
        return None
    if is_remote(args["store"]):
        return _opened(store_given(args["store"]))
    store = Path(expanded(args["store"], key="store"))
    if store.exists() and not store.is_dir():
        raise UserError(f"store={store} is {kind_of(store)}; give the folder of a store, or a new one")
    there = next(folder for folder in (store.absolute(), *store.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise not_writable(there, args["store"], PermissionError(13, "Permission denied", str(there)), option="store")
    return store


def _opened(store: str) -> Path:
    place = open_place(store)
    place.refresh()
    return place.root


def _out(given: str) -> Path:
    """A folder that can be made. What is there already is looked at later."""
    if is_remote(given):
        raise UserError(f"out={given}: an import is a folder of this machine; copy it to the object store when it is finished")
    out = Path(os.path.realpath(expanded(given, key="out")))
    if out.exists() and not out.is_dir():
        raise UserError(f"out={given} is {kind_of(out)}; give the name of a folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(out.parent, os.W_OK | os.X_OK):
            raise PermissionError(13, "Permission denied", str(out.parent))
    except OSError as error:
        raise not_writable(out.parent, given, error, option="out") from error
    return out


def _columns(given: str) -> dict[str, str]:
    columns: dict[str, str] = {}
    for part in filter(None, (part.strip() for part in given.split(","))):
        name, colon, own = (text.strip() for text in part.partition(":"))
        if not colon or not name or not own:
            raise UserError(
                f"columns={given}: expected name:column pairs between commas, as query:question,positive:answer; found {part!r}"
            )
        if name in columns:
            raise UserError(f"columns={given}: {name} stands there twice")
        columns[name] = own
    return columns


def _fraction(args: Args) -> float:
    try:
        value = float(args["max_bad_fraction"])
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise UserError(f"max_bad_fraction={args['max_bad_fraction']}: expected a share from 0 to 1")
    return value
