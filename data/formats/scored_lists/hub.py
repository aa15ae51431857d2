"""Data sets on the hub: `hf://organisation/name[@revision][/configuration]` as a folder of this machine, in the cache of the hub's client.

Only files of records are copied, of the split that is asked for where names tell splits apart. What was copied once is there offline, too.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from data.errors import UserError, first_line
from data.formats.scored_lists.readers.records.data_files import kind_of, split_named

SCHEME = "hf://"
_FORM = "hf://organisation/name[@revision][/configuration]"
_ADDRESS = re.compile(
    r"(?:datasets/)?(?P<name>[\w.-]+/[\w.-]+)(?:@(?P<revision>refs/[\w.-]+/[\w.-]+|[\w.-]+))?(?:/(?P<inside>.+))?", re.ASCII
)
_NOTES = ("state.json", "dataset_info.json", "dataset_dict.json", "export.json")
_PATTERNS = ["*.parquet", "*.arrow", "*.jsonl", "*.jsonl.gz", "*.ndjson", "*.json", "*.json.gz", "*.tsv", "*.tsv.gz", "*.trec", "*.txt"]


class HubAddress(NamedTuple):
    """An address, taken apart."""

    name: str
    revision: str | None
    inside: str  # a configuration, or a folder or file of the data set; empty: all of it


def parse(address: str) -> HubAddress:
    """Raises UserError where it is no address of the form."""
    found = _ADDRESS.fullmatch(address.removeprefix(SCHEME).rstrip("/"))
    if not address.startswith(SCHEME) or found is None:
        raise UserError(f"{address}: expected {_FORM}")
    inside = found["inside"] or ""
    if ".." in PurePosixPath(inside).parts:
        raise UserError(f"{address}: expected {_FORM}")
    return HubAddress(found["name"], found["revision"], inside)


def dataset_folder(address: str, *, split: str = "train") -> Path:
    """The folder, or the file, that an address names.

    Raises UserError where it cannot be had: no such data set, revision or configuration, one that asks for consent, no network.
    """
    asked = parse(address)
    try:
        folder = _downloaded(address, asked, split)
    except UserError:
        raise
    except Exception as error:  # the hub's client raises many kinds
        raise UserError(f"{address}: {_why(error)}") from error
    place = folder / asked.inside
    if not place.exists() and asked.inside:
        raise UserError(f"{address}: there is no {asked.inside} in {asked.name}{_there(folder)}")
    return place


def _downloaded(address: str, asked: HubAddress, split: str) -> Path:
    from huggingface_hub import HfApi, snapshot_download

    try:
        names = HfApi().list_repo_files(asked.name, revision=asked.revision, repo_type="dataset")
    except Exception:  # without a network: what was copied before; its own error tells what is the matter
        return Path(snapshot_download(asked.name, revision=asked.revision, repo_type="dataset", allow_patterns=_PATTERNS))
    chosen = _chosen(names, asked.inside, split)
    if not chosen:
        held = ", ".join(sorted({name.split("/")[0] for name in names})[:12])
        where = f"{asked.inside} of {asked.name}" if asked.inside else asked.name
        raise UserError(f"{address}: no file of records in {where}; the data set holds {held}. A configuration is a folder: {_FORM}")
    patterns = [glob.escape(name) for name in chosen]
    return Path(snapshot_download(asked.name, revision=asked.revision, repo_type="dataset", allow_patterns=patterns))


def _chosen(names: list[str], inside: str, split: str) -> list[str]:
    """The files to copy: those of records inside, and of these those of the split, where some are named after it."""
    within = [name for name in names if not inside or name == inside or name.startswith(f"{inside}/")]
    records = [name for name in within if kind_of(Path(name)) or any(PurePosixPath(name).match(pattern) for pattern in _PATTERNS)]
    splits = {name: split_named(PurePosixPath(name), PurePosixPath()) for name in records}
    if split in splits.values():
        records = [name for name in records if splits[name] in (split, None) or PurePosixPath(name).name in _NOTES]
    return records


def _why(error: Exception) -> str:
    """What the client's error means, in words, and what to do."""
    kind = type(error).__name__
    names = {base.__name__ for base in type(error).__mro__}
    if "GatedRepoError" in names:
        return "its owner asks for consent: accept the terms on its page, then log in (hf auth login, or HF_TOKEN)"
    if "RevisionNotFoundError" in names:
        return "there is no such revision"
    if "RepositoryNotFoundError" in names:
        return "there is no such data set, or it is private: log in (hf auth login, or HF_TOKEN)"
    if names & {"LocalEntryNotFoundError", "OfflineModeIsEnabled", "ConnectError", "TimeoutException"}:
        return f"the hub cannot be reached, and not all of it was copied before ({kind}); fetch it where there is a network"
    return f"cannot be had from the hub ({kind}: {first_line(error)})"


def _there(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return f"; it holds {', '.join(names[:12])}" if names else ""
