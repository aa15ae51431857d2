"""The layouts by name, and which of them a file or folder has."""

from __future__ import annotations

import contextlib
import difflib
from pathlib import Path

from data.errors import UserError
from data.files.text_lines import numbered_lines
from data.files.what_lies import what_lies
from data.formats.scored_lists.batches import ListReader
from data.formats.scored_lists.readers.flagembedding import FlagEmbedding
from data.formats.scored_lists.readers.msmarco_hard_negatives import MsmarcoHardNegatives
from data.formats.scored_lists.readers.pylate import PyLate
from data.formats.scored_lists.readers.records.data_files import some_file
from data.formats.scored_lists.readers.records.rows import read_rows
from data.formats.scored_lists.readers.sentence_transformers import SentenceTransformers
from data.formats.scored_lists.readers.stored_lists import StoredLists
from data.formats.scored_lists.readers.table_layout import names_at
from data.formats.scored_lists.readers.tevatron import Tevatron
from data.formats.scored_lists.readers.text_lists import TextLists

FORMATS: dict[str, ListReader] = {
    reader.name: reader
    for reader in (
        SentenceTransformers(), MsmarcoHardNegatives(), FlagEmbedding(), Tevatron(), PyLate(), TextLists("trec"), TextLists("tsv"),
        StoredLists(),
    )
}  # fmt: skip

_LABELS, _TEXTS = {"query-id", "corpus-id"}, {"_id", "text"}  # columns of BEIR's files


def reader_of(name: str, path: Path) -> ListReader:
    """The reader of a layout; of `auto` that of the only layout that recognises the file or folder.

    Raises UserError: an unknown name with the nearest, nothing at the path, no layout or several, with what was found.
    """
    if name != "auto":
        if name not in FORMATS:
            near = difflib.get_close_matches(name, FORMATS, n=1, cutoff=0.3)
            raise UserError(f"format={name}: there are auto, {', '.join(FORMATS)}{f'; nearest: {near[0]}' if near else ''}")
        return FORMATS[name]
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    names = names_at(path)
    if _LABELS.issubset([*names, *_first_words(path)]) or (path.is_dir() and _TEXTS.issubset(names)):
        raise UserError(
            f"{path} is a collection, or its labels, which are no scores of a teacher: ingest.path=FOLDER reads a collection; where they "
            "are scores, say so, format=NAME"
        )
    found = [reader for reader in FORMATS.values() if reader.recognises(path)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{path} may be {' or '.join(reader.name for reader in found)}: say which, format=NAME")
    if not names and (file := some_file(path)) is not None:
        next(read_rows(file), None)  # raises what is the matter with a file that cannot be read
    what = f"its fields are {', '.join(names)}" if names else f"it is {what_lies(path)}"
    hint = "give format=NAME and columns=NAME:COLUMN if it is one of" if names else "expected one of"
    raise UserError(f"{path} is in no known format of scored lists: {what}; {hint} {', '.join(FORMATS)}")


def _first_words(path: Path) -> list[str]:
    """Of a file's first line, where it is text."""
    with contextlib.suppress(UserError):
        for _, raw in numbered_lines(path) if path.is_file() else ():
            return raw[:1000].decode("utf-8", "replace").split()
    return []
