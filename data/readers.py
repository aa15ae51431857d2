"""From a collection's files (see `data.collection`) to records: JSONL and qrels TSV, or TSV and TREC qrels, plain or gzip.

Files are read a line at a time and never held. A line that is no record becomes a `Fault` with file, line and a short fixed
reason; only what concerns a whole file (missing, a gzip cut short) is an exception.
"""

from __future__ import annotations

import functools
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeVar, cast

from data.collection import Collection
from data.errors import UserError
from data.schemas import MASK_MARK, SEPARATOR_MARK

MAX_LINE_BYTES = 16 << 20  # a file without newlines must not fill the memory
RECORD_CHARS = 500  # of a broken record, kept to look at
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_BEIR_HEADERS = ("query-id", "query_id", "qid", "query")
_INTEGER = re.compile(r"[+-]?[0-9]{1,10}(\.0*)?", re.ASCII)  # int() alone would take "1_0", and other scripts' digits
_INT32 = 1 << 31


class Passage(NamedTuple):
    """A passage; its title stands in front of the text."""

    doc_id: str
    text: str


class Query(NamedTuple):
    """A query."""

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
    reason: str
    record: str


class Line(NamedTuple):
    """A line of a file, without its end."""

    file: str
    number: int
    raw: bytes

    def fault(self, reason: str) -> Fault:
        """This line as a fault, its text cut to `RECORD_CHARS`."""
        start = self.raw[: 4 * RECORD_CHARS].decode("utf-8", "replace")  # a character has at most 4 bytes
        return Fault(self.file, self.number, reason, start[:RECORD_CHARS])


Record = TypeVar("Record")


class _Broken(Exception):
    """The reason why a line is no record. Never leaves this module."""


def read_corpus(collection: Collection) -> Iterator[tuple[Line, Passage | Fault]]:
    """Every line of the corpus with its passage, or with what is wrong with it."""
    parse = _beir_passage if collection.format == "beir" else _msmarco_passage
    return _records(_lines(collection.corpus, name=collection.name(collection.corpus)), parse=parse)


def read_queries(collection: Collection) -> Iterator[tuple[Line, Query | Fault]]:
    """Every line of the query files, file after file."""
    parse = _beir_query if collection.format == "beir" else _msmarco_query
    for path in collection.queries:
        yield from _records(_lines(path, name=collection.name(path)), parse=parse)


def read_qrels(collection: Collection, *, split: str) -> Iterator[tuple[Line, Judgement | Fault]]:
    """Every line of a split's qrels, without the header of the BEIR format."""
    path = collection.qrels[split]
    lines = _lines(path, name=collection.name(path))
    if collection.format == "beir":
        return _records(_without_header(lines), parse=functools.partial(_beir_judgement, split=split))
    return _records(lines, parse=functools.partial(_msmarco_judgement, split=split))


def _records(lines: Iterator[Line], *, parse: Callable[[str], Record]) -> Iterator[tuple[Line, Record | Fault]]:
    for line in lines:
        try:
            record = parse(_decoded(line.raw))
        except _Broken as broken:
            yield line, line.fault(str(broken))
        else:
            yield line, record


def _lines(path: Path, *, name: str) -> Iterator[Line]:
    """The file's lines, numbered from 1. Empty ones at the end are not records and are left out."""
    empty = 0
    with _open(path) as file:
        try:
            for number, raw in enumerate(iter(functools.partial(_next_line, file), b""), start=1):
                if number == 1:
                    raw = raw.removeprefix(_BYTE_ORDER_MARK)
                if raw.isspace() or not raw:
                    empty += 1
                    continue
                for before in range(number - empty, number):
                    yield Line(name, before, b"")
                empty = 0
                yield Line(name, number, raw.removesuffix(b"\n").removesuffix(b"\r"))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise UserError(f"{path} is not a whole gzip file ({error}): it is cut short or damaged, fetch it again") from error
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _open(path: Path) -> BinaryIO:
    try:
        if path.suffix != ".gz":
            return open(path, "rb")
        if not path.stat().st_size:  # the gzip module takes an empty file for an empty archive
            raise UserError(f"{path} is not a whole gzip file (0 bytes): it is cut short, fetch it again")
        return cast(BinaryIO, io.BufferedReader(gzip.GzipFile(path, "rb"), 1 << 20))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _next_line(file: BinaryIO) -> bytes:
    """The next line with its end; of one longer than `MAX_LINE_BYTES` just the start, which is longer than that too."""
    limit = MAX_LINE_BYTES + len(b"\r\n")
    raw = rest = file.readline(limit)
    while len(rest) == limit and not rest.endswith(b"\n"):
        rest = file.readline(limit)
    return raw


def _without_header(lines: Iterator[Line]) -> Iterator[Line]:
    # Only a first line that looks like a header is left out: a file without one must not lose its first judgement.
    for line in lines:
        if line.number > 1 or line.raw.split(b"\t")[0].strip().lower().decode("latin-1") not in _BEIR_HEADERS:
            yield line


def _decoded(raw: bytes) -> str:
    if not raw:
        raise _Broken("empty line")
    if len(raw) > MAX_LINE_BYTES:
        raise _Broken("line too long")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise _Broken("bad UTF-8") from None


def _beir_passage(line: str) -> Passage:
    fields = _object(line)
    doc_id, text, title = _json_id(fields), _json_text(fields), fields.get("title")
    if title is None:
        return Passage(doc_id, _text(text))
    if not isinstance(title, str):
        raise _Broken("title is not a string")
    return Passage(doc_id, _text(f"{title.strip()} {text.strip()}"))


def _beir_query(line: str) -> Query:
    fields = _object(line)
    return Query(_json_id(fields), _text(_json_text(fields)))


def _object(line: str) -> dict[str, object]:
    try:
        fields = json.loads(line)
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        raise _Broken("not JSON") from None
    if not isinstance(fields, dict):
        raise _Broken("not a JSON object")
    return fields


def _json_id(fields: Mapping[str, object]) -> str:
    value = fields.get("_id")
    if value is None:
        raise _Broken("no id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise _Broken("id is not a string")
    return _id(value)


def _json_text(fields: Mapping[str, object]) -> str:
    # A list here would later be read as single characters, by anything that iterates over it.
    value = fields.get("text")
    if value is None:
        raise _Broken("no text")
    if not isinstance(value, str):
        raise _Broken("text is not a string")
    return value


def _id(value: str) -> str:
    identifier = value.strip()
    if not identifier:
        raise _Broken("empty id")
    return _encodable(identifier)


def _text(value: str) -> str:
    text = value.strip()
    if not text:
        raise _Broken("empty text")
    if MASK_MARK in text or SEPARATOR_MARK in text:
        raise _Broken("reserved mark in text")
    return _encodable(text)


def _encodable(text: str) -> str:
    # JSON can spell half a surrogate pair, which no file can hold as UTF-8.
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _Broken("lone surrogate") from None
    return text


def _msmarco_passage(line: str) -> Passage:
    return Passage(*_id_and_text(line))


def _msmarco_query(line: str) -> Query:
    return Query(*_id_and_text(line))


def _id_and_text(line: str) -> tuple[str, str]:
    identifier, tab, text = line.partition("\t")
    if not tab:
        raise _Broken("too few columns")
    return _id(identifier), _text(text)


def _beir_judgement(line: str, *, split: str) -> Judgement:
    return _judgement(line.split("\t"), split=split, columns=(3,))


def _msmarco_judgement(line: str, *, split: str) -> Judgement:
    return _judgement(line.split(), split=split, columns=(3, 4))


def _judgement(cells: list[str], *, split: str, columns: tuple[int, ...]) -> Judgement:
    """A judgement of (query, passage, relevance), or of TREC's four columns, whose second one says nothing."""
    if len(cells) not in columns:
        raise _Broken("too few columns" if len(cells) < columns[0] else "too many columns")
    query_id, *_, doc_id, relevance = cells
    return Judgement(split, _id(query_id), _id(doc_id), _relevance(relevance.strip()))


def _relevance(value: str) -> int:
    if not _INTEGER.fullmatch(value):
        raise _Broken("relevance is not an integer")
    number = int(value.partition(".")[0])
    if not -_INT32 <= number < _INT32:
        raise _Broken("relevance is not an integer")
    return number
