"""Which files a path stands for: one file, a folder of them, or what `datasets` writes, of one split.

    FOLDER/dataset_dict.json, FOLDER/SPLIT/state.json, data-00000-of-00002.arrow     `DatasetDict.save_to_disk`, `Dataset.save_to_disk`
    FOLDER/[data/|CONFIG/]SPLIT-00000-of-00002[-0123456789abcdef].parquet            as the hub lays a data set out
    FOLDER/SPLIT/*.parquet, FOLDER/SPLIT.jsonl, FOLDER/*.jsonl.gz                    by hand

A data set of several configurations has a folder of each, or files of their names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Literal

from data.errors import UserError, first_line

Kind = Literal["parquet", "arrow", "json"]
_KINDS: dict[str, Kind] = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".json": "json", ".ndjson": "json"}
_PACKED = (".gz", ".zst")  # what cannot be unpacked is refused by whoever opens it, with words
_NOTES = ("dataset_info.json", "state.json", "dataset_dict.json", "export.json", "dataset_infos.json", "config.json")
_SHARD = re.compile(r"(?P<stem>.+?)[-_.](?P<index>\d{1,6})(?:-of-\d{1,6})?(?:-[0-9a-f]{16})?")
_SPLITS = ("train", "validation", "valid", "val", "dev", "test", "eval")
_PLAIN = ("part", "data", "shard", "chunk", "file", "000000", "default")  # stems of files that are all of one split
_SHOWN = 12


@dataclass(frozen=True)
class DataFile:
    """A file with records."""

    path: Path
    name: str  # relative to what was given
    kind: Kind


def kind_of(path: Path) -> Kind | None:
    """What a file's name says that it holds; None: no records."""
    name = path.name
    for packed in _PACKED:
        name = name.removesuffix(packed)
    return None if path.name in _NOTES else _KINDS.get(Path(name).suffix.lower())


def data_files(path: Path, *, split: str, root: Path | None = None, any_split: bool = False) -> list[DataFile]:
    """The files of a split, in order; of a single file, that file. With `any_split` the only split there is will do, too.

    `root` is what their names are relative to. Raises UserError: nothing there, no such split (with those that there are).
    """
    root = root or (path if path.is_dir() else path.parent)
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    if not path.is_dir():
        return [_data_file(path, root)]
    if (path / "dataset_dict.json").is_file():
        return data_files(_saved_split(path, split), split=split, root=root)
    if (path / "state.json").is_file():
        return [_data_file(path / name, root) for name in _saved_names(path)]
    found = _record_files(path)
    if not found:
        raise UserError(f"{path} holds no file of records (.parquet, .arrow, .jsonl, .jsonl.gz){_there(path)}")
    return [_data_file(file, root) for file in _of_split(path, found, split=split, any_split=any_split)]


def some_file(path: Path) -> DataFile | None:
    """A file that tells what records a path has: of split train where there is one, else the first of any split."""
    try:
        return data_files(path, split="train", any_split=True)[0]
    except UserError:
        files = _record_files(path) if path.is_dir() else []
    return _data_file(files[0], path) if files else None


def _record_files(folder: Path) -> list[Path]:
    files = (file for file in sorted(folder.rglob("*")) if kind_of(file) and file.is_file())
    return [file for file in files if not any(part.startswith((".", "_")) for part in file.relative_to(folder).parts)]


def split_named(file: PurePath, folder: PurePath) -> str | None:
    """The split that the name of a file, or that of a folder below `folder`, is the name of; None where neither is."""
    stem = _stem(file)
    inside = file.relative_to(folder).parts[:-1]
    if stem in _SPLITS:
        return stem
    for part in reversed(inside):
        if part in _SPLITS:
            return part
    is_shard = "-of-" in file.name
    return stem if is_shard and stem.lower() not in _PLAIN and stem not in (*inside, folder.name) else None


def part_of(folder: Path, names: Sequence[str]) -> Path | list[Path] | None:
    """The configuration of one of these names: a folder, or the files of that name. The first name that is there wins."""
    for name in names:
        if (folder / name).is_dir():
            return folder / name
        files = [file for file in sorted(folder.iterdir()) if file.is_file() and kind_of(file) and _stem(file) == name]
        if files:
            return files
    return None


def files_of(part: Path | list[Path], *, split: str, root: Path, any_split: bool = False) -> list[DataFile]:
    """The files of a configuration, see `part_of`."""
    if isinstance(part, list):
        return [_data_file(file, root) for file in part]
    return data_files(part, split=split, root=root, any_split=any_split)


def _data_file(path: Path, root: Path) -> DataFile:
    kind = kind_of(path)
    if kind is None:
        raise UserError(f"{path}: expected a file of records by its name (.parquet, .arrow, .jsonl, .json, or .jsonl.gz)")
    if not path.is_file():
        raise UserError(f"{path} is not there, or is no file")
    return DataFile(path, path.relative_to(root).as_posix(), kind)


def _stem(path: PurePath) -> str:
    """`train` of train-00000-of-00003.parquet and of train.jsonl.gz."""
    name = path.name
    for suffix in _PACKED:
        name = name.removesuffix(suffix)
    name = name.removesuffix(Path(name).suffix)
    shard = _SHARD.fullmatch(name)
    return shard["stem"] if shard else name


def _of_split(folder: Path, files: list[Path], *, split: str, any_split: bool) -> list[Path]:
    splits = {file: split_named(file, folder) for file in files}
    named = sorted({found for found in splits.values() if found is not None})
    if split in named:
        chosen = [file for file in files if splits[file] == split]
    elif plain := [file for file in files if splits[file] is None]:
        chosen = plain  # their names tell no split: all that there is
    elif any_split and len(named) == 1:
        chosen = files
    else:
        there = f"there {'is' if len(named) == 1 else 'are'} {', '.join(named[:_SHOWN])}"
        raise UserError(f"{folder} has no split {split!r}; {there}: set split=")
    return _of_configuration(folder, chosen)


def _of_configuration(folder: Path, files: list[Path]) -> list[Path]:
    """The files of the only configuration, or of the one that is called data or default, or of none at all."""
    configurations: dict[str, list[Path]] = {}
    for file in files:
        top, *below = file.relative_to(folder).parts
        configurations.setdefault(top if below and top not in _SPLITS else "", []).append(file)
    if len(configurations) == 1:
        return files
    for name in ("data", "default", ""):
        if name in configurations:
            return configurations[name]
    raise UserError(f"{folder} has several configurations, {', '.join(list(configurations)[:_SHOWN])}: give the path of one of them")


def _saved_split(folder: Path, split: str) -> Path:
    splits = _json_of(folder / "dataset_dict.json").get("splits")
    names = [name for name in splits if isinstance(name, str)] if isinstance(splits, list) else []
    if split not in names:
        raise UserError(f"{folder} has no split {split!r}; there are {', '.join(names) or 'none'}: set split=")
    return folder / split


def _saved_names(folder: Path) -> list[str]:
    files = _json_of(folder / "state.json").get("_data_files")
    names = [file.get("filename") if isinstance(file, dict) else None for file in files] if isinstance(files, list) else [None]
    if any(not isinstance(name, str) or Path(name).name != name for name in names):
        raise UserError(f"{folder}/state.json does not name its files as `save_to_disk` of datasets does: save the data set again")
    return [str(name) for name in names]


def _json_of(path: Path) -> dict[str, object]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error
    return content if isinstance(content, dict) else {}


def _there(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"; it holds {', '.join(names[:_SHOWN])}{rest}" if names else "; it is empty"
