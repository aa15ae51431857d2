"""From a collection's files to records: JSONL, TSV or Parquet, and qrels of any form. Which files: `data.formats.collection`.

Files are read a line, or a few rows, at a time and never held. A line or row that is no record becomes a `Fault`: file, line, reason, what
was found and expected. Only what concerns a whole file (missing, a gzip cut short, another kind of file) is an exception.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from data.errors import UserError
from data.files import text_lines
from data.formats.collection import Collection
from data.formats.parquet_rows import Names, as_json, group_ranges, is_parquet, read_rows
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK

RECORD_CHARS = 500  # of a broken record, kept to look at
SHOWN_CHARS = 80  # of what a message quotes
JUDGEMENT_FORM = "`query <tab> passage <tab> label` or TREC's `query 0 passage label`, the label a whole number"
_QUERY_HEADERS = ("query-id", "query_id", "queryid", "qid", "query", "topic", "topic_id")
_ID_HEADERS = ("id", "_id", "pid", "qid", "docid", "doc_id", "doc-id", "passage_id", "query_id", "query-id")
_TEXT_HEADERS = ("text", "passage", "contents", "content", "body", "query", "question", "title", "url")
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}(\.0*)?", re.ASCII)  # int() alone would take "1_0", and other scripts' digits
_INT32 = 1 << 31
# Columns of Parquet files and keys of JSON judgements, best first: as BEIR calls them, then as others do.
_PASSAGE_NAMES = {"_id": ("_id", "id", "doc_id", "docid", "corpus-id", "corpus_id"), "title": ("title",), "text": ("text",)}
_QUERY_NAMES = {"_id": ("_id", "id", "query_id", "qid", "query-id"), "text": ("text", "query")}
_LABEL_NAMES = {
    "query-id": ("query-id", "query_id", "qid"), "corpus-id": ("corpus-id", "corpus_id", "doc-id", "doc_id", "docid", "pid"),
    "score": ("score", "relevance", "label"),
}  # fmt: skip


class Passage(NamedTuple):
    """A passage; its title stands in front of the text."""

    doc_id: str
    text: str


class Query(NamedTuple):
    """A query of a collection; its id is what qrels name."""

    query_id: str
    text: str


class Judgement(NamedTuple):
    """A line of qrels."""

    split: str
    query_id: str
    doc_id: str
    relevance: int


class Fault(NamedTuple):
    """A line that could not be used. `line` counts from 1; `file` is relative to the collection's folder."""

    file: str
    line: int
    reason: str  # one of a few, to count by
    record: str
    detail: str = ""  # what was found and what was expected

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}" + (f": {self.detail}" if self.detail else "")


class Line(NamedTuple):
    """A line of a file, without its end."""

    file: str
    number: int
    raw: bytes

    def fault(self, reason: str, detail: str = "") -> Fault:
        """This line as a fault, its text cut to `RECORD_CHARS`."""
        start = self.raw[: 4 * RECORD_CHARS].decode("utf-8", "replace")  # a character has at most 4 bytes
        return Fault(self.file, self.number, reason, start[:RECORD_CHARS], detail)


class Row(NamedTuple):
    """A row of a Parquet file; `number` counts from 1."""

    file: str
    number: int
    fields: dict[str, Any]

    def fault(self, reason: str, detail: str = "") -> Fault:
        """This row as a fault, as JSON cut to `RECORD_CHARS`."""
        return Fault(self.file, self.number, reason, as_json(self.fields)[:RECORD_CHARS], detail)


_EMPTY_LINE = "empty line"
Record = TypeVar("Record")
Place = Line | Row


@dataclass(frozen=True)
class Range:
    """A part of a corpus file that can be read by itself. Lines and rows are numbered from 1 in each; of a whole file as in the file."""

    file: int  # place in `Collection.corpus`
    start: int = 0  # byte of a text file, row group of Parquet
    stop: int | None = None  # None: the whole file


@dataclass
class RangeEnd:
    """What is known of a range when it was read: `empty` lines at its end are no records if no other follow in the file."""

    lines: int = 0
    empty: int = 0


_WHOLE = Range(0)


class _Broken(Exception):
    """Why a line is no record: a short reason, and what was found and expected. Never leaves this module."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason, self.detail = reason, detail


def read_corpus(collection: Collection) -> Iterator[tuple[Place, Passage | Fault]]:
    """Every line or row of the corpus with its passage, or with what is wrong with it."""
    for path in collection.corpus:
        yield from _texts(path, collection, Passage, titled=True)


def corpus_ranges(collection: Collection, size: int) -> list[Range]:
    """The corpus in order, in ranges of about `size` bytes where its files can be cut. Raises UserError where one cannot be read."""
    cut = group_ranges if collection.format == "parquet" else text_lines.line_ranges
    return [Range(number, *bounds) for number, path in enumerate(collection.corpus) for bounds in cut(path, size)]


def read_range(collection: Collection, part: Range, end: RangeEnd) -> Iterator[tuple[Place, Passage | Fault]]:
    """As `read_corpus`, of a range. `end` is filled in as it is read."""
    yield from _texts(collection.corpus[part.file], collection, Passage, titled=True, part=part, end=end)


def places_of(collection: Collection, part: Range, numbers: Container[int]) -> Iterator[Place]:
    """The lines or rows of these numbers of a range: read again, and not parsed."""
    path = collection.corpus[part.file]
    name = collection.name(path)
    places: Iterator[Place] = _lines(path, name=name, part=part)
    if collection.format == "parquet":
        places = _rows(path, name=name, names=_PASSAGE_NAMES, optional=("title",), part=part)
    return (place for place in places if place.number in numbers)


def empty_line(name: str, number: int) -> Fault:
    """What an empty line is, where lines follow it."""
    return Line(name, number, b"").fault(_EMPTY_LINE)


def read_queries(collection: Collection) -> Iterator[tuple[Place, Query | Fault]]:
    """Every line or row of the query files, file after file."""
    for path in collection.queries:
        yield from _texts(path, collection, Query, titled=False)


def read_qrels(collection: Collection, *, split: str) -> Iterator[tuple[Place, Judgement | Fault]]:
    """Every line or row of a split's qrels but a header."""
    for path in collection.qrels[split]:
        yield from read_judgements(path, name=collection.name(path), split=split)


def read_judgements(path: Path, *, name: str, split: str) -> Iterator[tuple[Place, Judgement | Fault]]:
    """Every line of a file of qrels but its header, in BEIR's form, MS MARCO's or TREC's; every row of one in Parquet.

    `name` is what faults call the file. A Parquet file without a column of labels lists relevant passages alone: their label is 1.
    """
    if is_parquet(path):
        rows = _rows(path, name=name, names=_LABEL_NAMES, optional=("score",))
        return _parsed_rows(rows, parse=lambda fields: _judgement_of({"score": 1, **fields}, split=split))
    # Only a first line that looks like a header is left out: a file without one must not lose its first judgement.
    lines = (line for line in _lines(path, name=name) if line.number > 1 or not is_header(line.raw.decode("utf-8", "replace").split()))
    return _records(lines, parse=lambda text: _judgement(text, split=split))


def _texts(
    path: Path,
    collection: Collection,
    make: Callable[[str, str], Record],
    *,
    titled: bool,
    part: Range = _WHOLE,
    end: RangeEnd | None = None,
) -> Iterator[tuple[Place, Record | Fault]]:
    if collection.format == "parquet":
        names = _PASSAGE_NAMES if titled else _QUERY_NAMES
        rows = _rows(path, name=collection.name(path), names=names, optional=("title",), part=part, end=end)
        yield from _parsed_rows(rows, parse=lambda fields: make(*_text_of(fields, titled=titled)))
        return
    fields = functools.partial(_beir_fields, titled=titled) if collection.format == "beir" else _msmarco_fields
    lines = _lines(path, name=collection.name(path), part=part, end=end)
    for line, record in _records(lines, parse=lambda text: make(*fields(text))):
        yield line, (_first_line(path, line, collection.format) if line.number == 1 and not part.start else None) or record


def _first_line(path: Path, line: Line, format: str) -> Fault | None:
    """What the first line says of the whole file, where that is another one than expected."""
    if format == "beir":
        is_array = line.raw.lstrip().startswith(b"[")
        found = "the file is a JSON array; expected an object a line (JSONL), as jq -c '.[]' writes it"
        return line.fault("not a JSON object" if line.raw.rstrip().endswith(b"]") else "not JSON", found) if is_array else None
    cells = [cell.strip().strip('"').lower() for cell in line.raw.decode("utf-8", "replace").split("\t")]
    expected = "expected `id <tab> text` in every line, without header and quotes"
    if len(cells) > 1 and cells[0] in _ID_HEADERS and cells[1] in _TEXT_HEADERS:
        if len(cells) == 2:
            return line.fault("header line", expected)
        raise UserError(f"{path}:1: its first line is a header of {len(cells)} columns ({', '.join(cells)}); {expected}")
    if len(cells) == 4 and re.match("https?://", cells[1]):
        raise UserError(f"{path}:1: found 4 columns with an address in the second, as MS MARCO's documents have them; {expected}")
    return None


def _records(lines: Iterator[Line], *, parse: Callable[[str], Record]) -> Iterator[tuple[Line, Record | Fault]]:
    for line in lines:
        try:
            record = parse(_decoded(line.raw))
        except _Broken as broken:
            yield line, line.fault(broken.reason, broken.detail)
        else:
            yield line, record


def _parsed_rows(rows: Iterator[Row], *, parse: Callable[[dict[str, Any]], Record]) -> Iterator[tuple[Row, Record | Fault]]:
    for row in rows:
        try:
            record = parse({name: _utf8(value) for name, value in row.fields.items()})
        except _Broken as broken:
            yield row, row.fault(broken.reason, broken.detail)
        else:
            yield row, record


def _rows(
    path: Path, *, name: str, names: Names, optional: tuple[str, ...], part: Range = _WHOLE, end: RangeEnd | None = None
) -> Iterator[Row]:
    end = end or RangeEnd()
    for number, fields in read_rows(path, names, optional=optional, start=part.start, stop=part.stop):
        end.lines = number
        yield Row(name, number, fields)


def _lines(path: Path, *, name: str, part: Range = _WHOLE, end: RangeEnd | None = None) -> Iterator[Line]:
    """The file's lines, or those of a range, numbered from 1. Empty ones at the end are not records and are left out."""
    end = end or RangeEnd()
    empty = 0
    for number, raw in text_lines.numbered_lines(path, start=part.start, stop=part.stop):
        end.lines = number
        if raw.isspace() or not raw:
            end.empty = empty = empty + 1
            continue
        for before in range(number - empty, number):
            yield Line(name, before, b"")
        end.empty = empty = 0
        yield Line(name, number, raw)


def is_header(cells: list[str]) -> bool:
    """Whether the first line of qrels or of a run names its columns: the query's first, and no label at its end."""
    return bool(cells) and cells[0].strip('"#').lower() in _QUERY_HEADERS and not _INTEGER.fullmatch(cells[-1])


def _decoded(raw: bytes) -> str:
    if not raw:
        raise _Broken(_EMPTY_LINE)
    if len(raw) > text_lines.MAX_LINE_BYTES:
        raise _Broken("line too long", f"more than {text_lines.MAX_LINE_BYTES:,} bytes without an end of line")
    return str(_utf8(raw))


def _utf8(value: Any) -> Any:
    """Bytes as text, anything else as it is."""
    try:
        return value.decode("utf-8") if isinstance(value, bytes) else value
    except UnicodeDecodeError as error:
        byte = value[error.start]
        raise _Broken(
            "bad UTF-8", f"byte {byte:#x} at {error.start + 1}: save the file as UTF-8 (is it Latin-1 or Windows-1252?)"
        ) from None


def shown(value: object) -> str:
    """A value as a message quotes it: escaped, and cut."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return repr(text if len(text) <= SHOWN_CHARS else text[:SHOWN_CHARS] + "…")


def _beir_fields(line: str, *, titled: bool) -> tuple[str, str]:
    """(id, text) of a record; with `titled` its title, where it has one, stands in front of the text."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        raise _Broken("not JSON", f"expected {_OBJECT_FORM}, found {shown(line)}") from None
    if not isinstance(fields, dict):
        raise _Broken("not a JSON object", f"expected {_OBJECT_FORM}, found {shown(line)}")
    return _text_of(fields, titled=titled)


def _text_of(fields: dict[str, Any], *, titled: bool) -> tuple[str, str]:
    identifier = _identifier(fields, "_id")
    text = _string(fields, "text", name="text")
    if titled and fields.get("title") is not None:
        text = f"{_string(fields, 'title', name='title').strip()} {text.strip()}"
    return identifier, _checked(text, name="text")


_OBJECT_FORM = '{"_id": ..., "text": ...}'


def _identifier(fields: dict[str, Any], key: str) -> str:
    """An id, which may be a whole number."""
    is_number = isinstance(fields.get(key), int) and not isinstance(fields[key], bool)
    return _checked(str(fields[key]) if is_number else _string(fields, key, name="id"), name="id")


def _string(fields: dict[str, object], key: str, *, name: str) -> str:
    value = fields.get(key)
    if value is None:
        expected = "_id and text" if key in ("_id", "text", "title") else key
        raise _Broken(f"no {name}", f"it has {shown(', '.join(fields)) if fields else 'no key'}; expected {expected}")
    if not isinstance(value, str):  # a list would later be read as single characters, by anything that iterates over it
        expected = "; expected a string or a whole number" if name == "id" else ""
        raise _Broken(f"{name} is not a string", f"found {shown(value)}{expected}")
    return value


def _checked(value: str, *, name: str) -> str:
    """An id or a text without the space around it."""
    value = value.strip()
    if not value:
        raise _Broken(f"empty {name}")
    if name == "text" and (MASK_MARK in value or SEPARATOR_MARK in value):
        raise _Broken("reserved mark in text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:  # JSON can spell half a surrogate pair, which no file can hold as UTF-8
            raise _Broken("lone surrogate") from None
    return value


def _msmarco_fields(line: str) -> tuple[str, str]:
    identifier, tab, text = line.partition("\t")
    if not tab:
        raise _Broken("too few columns", f"expected `id <tab> text`, found {shown(line)}")
    return _checked(identifier, name="id"), _checked(text, name="text")


def _judgement(line: str, *, split: str) -> Judgement:
    """A judgement of (query, passage, label), or of TREC's four columns, whose second one says nothing.

    Columns are those between tabs, so that ids may hold spaces; where these are no judgement, those between any white space.
    """
    if line.startswith("{") and (fields := _json_judgement(line)) is not None:
        return _judgement_of(fields, split=split)
    cells = [cell.strip() for cell in line.split("\t")]
    while len(cells) > 3 and not cells[-1]:
        cells.pop()
    columns = line.split()
    if len(columns) in (3, 4) and (len(cells) not in (3, 4) or not _INTEGER.fullmatch(cells[-1])):
        cells = columns
    if len(cells) not in (3, 4):
        reason = "too few columns" if len(cells) < 3 and len(columns) < 3 else "too many columns"
        found = "a run, " if len(columns) == 6 else ""
        raise _Broken(reason, f"expected {JUDGEMENT_FORM}, found {found}{shown(line)}")
    query_id, *_, doc_id, label = cells
    try:
        query_id, doc_id = _checked(query_id, name="id"), _checked(doc_id, name="id")
        number = int(label.partition(".")[0]) if _INTEGER.fullmatch(label) else _INT32
        if not -_INT32 <= number < _INT32:
            raise _Broken("relevance is not an integer")
    except _Broken as broken:
        raise _Broken(broken.reason, f"expected {JUDGEMENT_FORM}, found {shown(line)}") from None
    return Judgement(split, query_id, doc_id, number)


def _json_judgement(line: str) -> dict[str, Any] | None:
    """The fields of `{"query-id": ..., "corpus-id": ..., "score": ...}`, as mteb writes judgements; None: the line is no such object."""
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict):
        return None
    found = {field: fields[name] for field, names in _LABEL_NAMES.items() for name in reversed(names) if name in fields}
    return {"score": None, **found} if {"query-id", "corpus-id"} <= found.keys() else None


def _judgement_of(fields: dict[str, Any], *, split: str) -> Judgement:
    """A judgement of a row, or of a JSON object."""
    query_id, doc_id = _identifier(fields, "query-id"), _identifier(fields, "corpus-id")
    return Judgement(split, query_id, doc_id, _label(fields["score"]))


def _label(value: Any) -> int:
    """A whole number of any type: 1, 1.0, true, "1"."""
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        value = int(value.strip().partition(".")[0])
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or not -_INT32 <= value < _INT32:
        raise _Broken("relevance is not an integer", f"found {shown(value)}; expected a whole number")
    return int(value)
