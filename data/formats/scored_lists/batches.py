"""What every reader of scored lists gives: queries and their candidates, a bounded piece of the files at a time.

A batch holds whole lists in the order of the file. Its candidates lie in the order of their lists, which is kept. Texts are as they stand
in the file: who reads a batch strips them, joins titles, and makes ids where there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import pyarrow as pa

from data.errors import UserError
from data.formats.readers import Fault

BATCH_CANDIDATES = 1 << 15  # about so many candidates a batch: what is held as text

LIST_QUERIES = pa.schema(
    [
        ("line", pa.int64()),  # of the list's record in its file, from 1; of a Parquet or Arrow file its row
        ("query_id", pa.string()),  # null: the file gives none
        ("text", pa.string()),  # null: the file gives ids alone, whose texts are in a collection
    ]
)
LIST_CANDIDATES = pa.schema(
    [
        ("query", pa.int32()),  # row of the batch's queries
        ("doc_id", pa.string()),  # null as above
        ("title", pa.string()),  # null: none
        ("text", pa.string()),  # null as above
        ("relevance", pa.int32()),  # above 0: a positive; 0: a negative; null: the file does not say
        ("score", pa.float64()),  # null: missing, or NaN in the file
    ]
)
COMPANION_QUERIES = pa.schema([("query_id", pa.string()), ("text", pa.string())])
COMPANION_PASSAGES = pa.schema([("doc_id", pa.string()), ("title", pa.string()), ("text", pa.string())])  # title: null where there is none


@dataclass(frozen=True)
class ListBatch:
    """Some lists of one file."""

    file: str  # name relative to what was given
    queries: pa.Table  # schema LIST_QUERIES
    candidates: pa.Table  # schema LIST_CANDIDATES
    faults: list[Fault] = field(default_factory=list)  # records that are no list, with file, line and reason
    left_out: Mapping[str, int] = field(default_factory=dict)  # candidates that this layout cannot give as a list, by reason


@dataclass(frozen=True)
class Companions:
    """Files beside lists of ids, with their texts. Each call reads them from the start, a bounded piece at a time."""

    queries: Callable[[], Iterator[pa.Table]]  # schema COMPANION_QUERIES
    passages: Callable[[], Iterator[pa.Table]]  # schema COMPANION_PASSAGES


@dataclass(frozen=True)
class ReadOptions:
    """What a reader may be told."""

    columns: Mapping[str, str] = field(default_factory=dict)  # name of this layout -> name in the file
    score_file: Path | None = None  # scores that lie in a file of their own
    split: str = "train"  # of layouts that have several
    scratch: Path | None = None  # a folder for large temporary files; None: the system's

    def refuse_score_file(self, layout: str) -> None:
        """Raises UserError where scores of their own are given to a layout that has them in it, which would be passed over."""
        if self.score_file is not None:
            raise UserError(f"score_file={self.score_file}: format {layout} has its scores in the lists; leave score_file out")


class ListReader(Protocol):
    """Reads one layout."""

    name: str  # of the layout, as `format=` has it

    def recognises(self, path: Path) -> bool:
        """Whether the file or folder looks like this layout, by names and first records alone."""

    def files(self, path: Path, options: ReadOptions) -> list[Path]:
        """All files that `read` and the companions would open, in order: their content decides what is read."""

    def read(self, path: Path, options: ReadOptions) -> Iterator[ListBatch]:
        """All lists. Raises UserError for what concerns a whole file; a record that is no list is a fault of its batch."""

    def companions(self, path: Path, options: ReadOptions) -> Companions | None:
        """Texts of the ids, where the layout has files for them beside the lists; None: a collection has to be given."""
