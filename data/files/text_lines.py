"""The lines of a text file as other systems save it: plain or gzip, with or without a byte-order mark, ended by LF, CRLF or CR.

What a file is, its first bytes say, never its name. Lines are read one at a time and never held. Whatever cannot be lines of UTF-8 text
(another compression, UTF-16, a pointer in place of a file) is refused by name, with what makes a text file of it.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import io
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias, cast

from data.errors import UserError

MAX_LINE_BYTES = 16 << 20  # a file without newlines must not fill the memory
Buffered: TypeAlias = "io.BufferedReader[Any]"
_BUFFER = 1 << 16
_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_FOREIGN = (  # first bytes, what the file then is, and what to do
    (rb"\xff\xfe|\xfe\xff|[^\x00]\x00|\x00", "UTF-16 or binary", "save it as UTF-8 text, e.g. with iconv -f UTF-16 -t UTF-8"),
    (rb"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it (zstd -d), or compress it with gzip"),
    (rb"BZh[1-9]1AY&SY", "compressed with bzip2", "unpack it (bunzip2), or compress it with gzip"),
    (rb"\xfd7zXZ\x00", "compressed with xz", "unpack it (unxz), or compress it with gzip"),
    (rb"PK\x03\x04", "a zip archive", "unpack it"),
    (rb".{257}ustar", "a tar archive", "unpack it"),
    (rb"PAR1[\x00-\x1f]", "a Parquet file", "give a text file"),
    (rb"version https://git-lfs\.github\.com/spec/", "a git-lfs pointer, not the file itself", "fetch the file: git lfs pull"),
    (rb"\s*<(?i:!doctype html|html)", "an HTML page", "fetch the file itself"),
)


def numbered_lines(path: Path, *, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """(number from 1, line without its end) of every line. Of one longer than `MAX_LINE_BYTES` just the start, longer than that too.

    With `start` and `stop`, bytes that `line_ranges` gave, it is the lines of this range, numbered from 1 as well.

    Raises UserError: the file cannot be read, is a gzip that is cut short or damaged, or is no text.
    """
    limit = MAX_LINE_BYTES + len(b"\r\n")
    with _opened(path) as file:
        if start:
            file.seek(start)
        left = None if stop is None else stop - start
        for number, raw in enumerate(iter(functools.partial(file.readline, limit), b""), start=1):
            if left is not None and left <= 0:
                break
            rest = raw
            read = len(raw)
            while len(rest) == limit and not rest.endswith(b"\n"):
                rest = file.readline(limit)
                read += len(rest)
            if left is not None:
                left -= read
            if number == 1 and not start:
                raw = raw.removeprefix(_BYTE_ORDER_MARK)
            yield number, raw.removesuffix(b"\n").removesuffix(b"\r")


def line_ranges(path: Path, size: int) -> list[tuple[int, int | None]]:
    """(start, stop) of ranges of about `size` bytes, cut after ends of lines, that hold all lines of a file; one of it all is (0, None).

    Just a plain file whose lines end in LF can be cut. Raises UserError as `numbered_lines` does.
    """
    whole: list[tuple[int, int | None]] = [(0, None)]
    with _opened(path) as file:
        if not path.is_file() or not isinstance(file.raw, io.FileIO):
            return whole
        end = file.seek(0, io.SEEK_END)
        cuts = [0]
        while cuts[-1] + size < end:
            file.seek(cuts[-1] + size)
            while (read := file.readline(_BUFFER)) and not read.endswith(b"\n"):
                pass
            cuts.append(file.tell())
        stops = [cut for cut in cuts[1:] if cut < end] + [end]
    return list(zip([0, *stops[:-1]], stops, strict=True)) if len(stops) > 1 else whole


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Buffered]:
    try:
        with cast(Buffered, open(path, "rb", buffering=_BUFFER)) as plain:  # never sought in: a pipe is read like a file
            is_gzip = plain.peek(2).startswith(_GZIP)
            if path.suffix == ".gz" and not plain.peek(1):  # an empty file is no archive
                raise UserError(f"{path} is not a whole gzip file (0 bytes): it is cut short, fetch it again")
            unpacked = cast(io.RawIOBase, gzip.GzipFile(fileobj=plain))
            file: Buffered = io.BufferedReader(unpacked, _BUFFER) if is_gzip else plain
            head = file.peek(1)
            _refuse_foreign(path, head.removeprefix(_BYTE_ORDER_MARK))
            old_mac = b"\r" in head and b"\n" not in head
            yield io.BufferedReader(cast(io.RawIOBase, _CarriageReturns(file))) if old_mac else file
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}): it is cut short or damaged, fetch it again") from error
    except IsADirectoryError as error:
        raise UserError(f"{path} is a folder; a text file is expected") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


def _refuse_foreign(path: Path, head: bytes) -> None:
    for pattern, what, remedy in _FOREIGN:
        if re.match(pattern, head, re.DOTALL):
            raise UserError(f"{path} is {what}; expected lines of UTF-8 text, plain or gzip: {remedy}")


class _CarriageReturns(io.RawIOBase):
    """The bytes of a file whose lines end in CR alone, with LF in their place."""

    def __init__(self, source: Buffered) -> None:
        self._source = source

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        part = self._source.read(len(buffer)).replace(b"\r", b"\n")
        buffer[: len(part)] = part
        return len(part)
