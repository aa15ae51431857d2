"""Which collections are evaluated: a folder with one, a folder of such folders, or several of either.

    collections=data/scifact                  one
    collections=data/beir                     all in a folder of collections
    collections=data/scifact,data/nano/*      some, by patterns too

The subforums in a folder `cqadupstack` count as one collection in a mean over collections, as BEIR has it.
"""

from __future__ import annotations

import contextlib
import glob
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from data.errors import RunFailed, UserError
from data.files.paths import expanded
from data.formats.collection import Collection, find_collection
from data.remote.cache import RemoteFolder
from data.remote.object_store import is_remote

_GROUPS = ("cqadupstack",)
# Names by which a folder wants to be a collection, whole or not.
_FILES = ("corpus.", "queries.", "collection.tsv", "qrels.")
_DATA_SET = "irds:"  # before the id of a data set, which is no folder
_FOLDERS = ("corpus/", "queries/", "qrels/")


@dataclass(frozen=True)
class Member:
    """A collection of a suite."""

    name: str  # of its folder; with that of the group before it
    collection: Collection
    split: str
    group: str = ""  # what it is averaged with before the mean


def find_suite(given: str, *, splits: str, note: Callable[[str], None] = lambda line: None) -> list[Member]:
    """The collections of the argument `collections=`, in its order. `splits` is `test`, or `test,msmarco:dev` for some by name.

    A collection with one split alone is evaluated on that. `note` gets a line on it, and on each folder that is passed over.

    Raises UserError: nothing there, a collection that lacks a file, two of one name, a split that is not there.
    """
    default, by_name = _splits(splits)
    found: list[tuple[str, str, Collection]] = []
    for address in _addresses(given):
        found += _collections(address, note=note)
    names = [name for name, _, _ in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"collections={given} has two collections called {twice}: rename the folder of one")
    if strangers := by_name.keys() - names:
        raise UserError(f"split={splits} names {', '.join(sorted(strangers))}; the collections are {', '.join(names)}")
    return [
        Member(name, collection, _split_of(name, collection, by_name.get(name, default), fixed=name in by_name, note=note), group)
        for name, group, collection in found
    ]


def _splits(given: str) -> tuple[str, dict[str, str]]:
    """(the split of most collections, those of some by their names)."""
    default, by_name = "test", dict[str, str]()
    for part in filter(None, map(str.strip, given.split(","))):
        name, colon, split = part.rpartition(":")
        if not split or (colon and not name):
            raise UserError(f"split={given}: expected a split, or COLLECTION:SPLIT, several with commas")
        if colon:
            by_name[name] = split
        else:
            default = split
    return default, by_name


def _split_of(name: str, collection: Collection, wanted: str, *, fixed: bool, note: Callable[[str], None]) -> str:
    if wanted in collection.qrels:
        return wanted
    there = list(collection.qrels)
    if fixed or len(there) != 1:
        raise UserError(f"{collection.folder} has no qrels of split {wanted}; it has {', '.join(there)}: say split={name}:{there[0]}")
    note(f"{name} has no split {wanted}; it is evaluated on its only one, {there[0]}")
    return there[0]


def _addresses(given: str) -> Iterator[str]:
    """Folders and addresses of the argument, patterns replaced by what they match, by name."""
    parts = [part.strip() for part in given.split(",") if part.strip()]
    if not parts:
        raise UserError("collections is empty: give a folder with a collection, or a folder of such folders")
    for part in parts:
        path = expanded(part, key="collections")
        if is_remote(path) or path.startswith(_DATA_SET) or os.path.exists(path) or not glob.has_magic(path):
            yield path
            continue
        matched = [found for found in sorted(glob.glob(path)) if os.path.isdir(found)]
        if not matched:
            raise UserError(f"collections={part} matches no folder")
        yield from matched


def _collections(address: str, *, note: Callable[[str], None]) -> list[tuple[str, str, Collection]]:
    """(name, group, collection) of what lies at an address."""
    name = _name(address)
    names = _names(address)
    if names is None and not address.startswith(_DATA_SET):
        raise UserError(f"collections={address}: no such folder; give one with a collection, or a folder of such folders")
    if names is None or _is_meant(names):
        return [(name, "", _found(address))]
    found: list[tuple[str, str, Collection]] = []
    is_group = name.lower() in _GROUPS
    for child in (one.rstrip("/") for one in names if one.endswith("/") and not one.startswith(".")):
        place = f"{address.rstrip('/')}/{child}"
        inner = _names(place) or []
        if _is_meant(inner):
            found.append((f"{name}/{child}" if is_group else child, name if is_group else "", _found(place)))
        elif child.lower() in _GROUPS:
            found += _collections(place, note=note)
        else:
            note(f"{place} is passed over: it holds no collection")
    if not found:
        raise UserError(
            f"collections={address} holds no collection (a folder with corpus.jsonl, queries.jsonl and qrels/), nor folders of some"
        )
    return found


def _found(address: str) -> Collection:
    try:
        return find_collection(address)
    except RunFailed:
        raise
    except UserError as error:
        raise UserError(f"collections={address}: {error}") from error


def _is_meant(names: list[str]) -> bool:
    """Whether a folder with these names holds a collection, or a part of one."""
    return any(name in _FOLDERS or (not name.endswith("/") and name.startswith(_FILES)) for name in names)


def _names(address: str) -> list[str] | None:
    """Names of what lies in a folder, those of folders with a slash; None where there is none."""
    if is_remote(address):
        return RemoteFolder(address).names()
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(entry.name + "/" * entry.is_dir() for entry in os.scandir(address))
    return None


def _name(address: str) -> str:
    if address.startswith(_DATA_SET):
        return address.removeprefix(_DATA_SET)
    name = address.rstrip("/").rsplit("/", 1)[-1] if is_remote(address) else os.path.basename(os.path.abspath(address))
    if not name:
        raise UserError(f"collections={address} has no name: give the folders in it")
    return name
