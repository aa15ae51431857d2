"""Scores of pairs in a pickle, {query id: {passage id: score}}, read without running anything in it and without holding it.

A pickle is a program. This reads the opcodes that build dicts of numbers and texts, those of protocols 2 to 5, and refuses every other.
The one exception are numbers of numpy, which name a function: they are known by its name, and it is not called. Opcodes: Python's
`pickletools`.

Source of the layout: data set sentence-transformers/msmarco-hard-negatives, cross-encoder-ms-marco-MiniLM-L-6-v2-scores.pkl.gz.
"""

from __future__ import annotations

import gzip
import io
import pickletools
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NoReturn, cast

from data.errors import UserError
from data.formats.readers import shown
from data.formats.scored_lists.readers import numpy_scalars

Id = int | str
QueryScores = tuple[Id, list[Id], list[float | None]]  # of one query: its passages and their scores
MAX_KEY_BYTES = 1 << 16  # of an id
_MAX_LONG_BYTES = 16
_NAMES = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
_CALLS = frozenset(b"cioR\x81\x92\x93b")  # GLOBAL, INST, OBJ, REDUCE, NEWOBJ, NEWOBJ_EX, STACK_GLOBAL, BUILD
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_MAX_NAME_BYTES = 256
_INTEGERS = {ord("J"): struct.Struct("<i"), ord("K"): struct.Struct("<B"), ord("M"): struct.Struct("<H")}
_STRINGS = {ord("X"): struct.Struct("<I"), 0x8C: struct.Struct("<B"), 0x8D: struct.Struct("<Q")}
_PUTS = {ord("q"): struct.Struct("<B"), ord("r"): struct.Struct("<I")}
_GETS = {ord("h"): struct.Struct("<B"), ord("j"): struct.Struct("<I")}
_FLOAT = struct.Struct(">d")
_MARK = object()


class _Scores:
    """An inner dict while it is built."""

    def __init__(self) -> None:
        self.ids: list[Id] = []
        self.scores: list[float | None] = []


def read_scores(path: Path) -> Iterator[QueryScores]:
    """The scores query by query, in the order of the file. What is held is that of about a thousand queries, and each id that is a text.

    Raises UserError with the place in the file: an opcode that builds no dict of numbers, a file cut short, or no such file.
    """
    try:
        with open(path, "rb") as plain:
            is_gzip = plain.read(2) == b"\x1f\x8b"
            plain.seek(0)
            file = cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, gzip.GzipFile(fileobj=plain)), 1 << 18)) if is_gzip else plain
            yield from _Machine(path, file).run()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} is not a whole gzip file ({error}): it is cut short or damaged, fetch it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error


class _Machine:
    """A stack, a memo, and the few opcodes. The outer dict is never filled: what is put into it is given away."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self._path, self._file = path, file
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}  # texts, names and kinds of numbers alone: dicts and numbers are many
        self._memoised = 0
        self._outer: object | None = None

    def run(self) -> Iterator[QueryScores]:
        read, stack = self._file.read, self._stack
        if read(1) != b"\x80" or not (protocol := read(1)) or not 2 <= protocol[0] <= 5:
            self._fail(
                "it is no pickle of protocol 2 to 5: expected {query id: {passage id: score}}, saved with pickle.dump(..., protocol=4)"
            )
        while True:
            code = read(1)
            if not code:
                self._fail("it is cut short")
            opcode = code[0]
            if opcode == 0x47:  # BINFLOAT: every second opcode of a large file
                stack.append(_FLOAT.unpack(self._take(8))[0])
            elif opcode in _INTEGERS:
                stack.append(self._unpacked(_INTEGERS[opcode]))
            elif opcode in b"su":
                yield from self._set_items(many=opcode == ord("u"))
            elif opcode == ord("."):
                if len(stack) != 1 or stack[0] is not self._outer:
                    self._fail("it holds something else than a dict of dicts")
                return
            else:
                self._other(opcode)

    def _other(self, opcode: int) -> None:
        stack = self._stack
        if opcode in _STRINGS:
            stack.append(self._text(self._unpacked(_STRINGS[opcode])))
        elif opcode == ord("("):
            stack.append(_MARK)
        elif opcode == ord("}"):
            stack.append(self._new_dict())
        elif opcode == 0x8A:  # LONG1
            size = self._take(1)[0]
            if size > _MAX_LONG_BYTES:
                self._fail(f"it has a number of {size} bytes")
            stack.append(int.from_bytes(self._take(size), "little", signed=True))
        elif opcode == ord("N"):
            stack.append(None)
        elif opcode == 0x94:  # MEMOIZE
            self._put(self._memoised)
        elif opcode in _PUTS:
            self._put(self._unpacked(_PUTS[opcode]))
        elif opcode in _GETS:
            self._get(self._unpacked(_GETS[opcode]))
        elif opcode in _TUPLES or opcode in b"t)":
            self._tuple(opcode)
        elif opcode in b"\x88\x89":
            stack.append(opcode == 0x88)
        elif opcode in b"CB":
            size = self._take(1)[0] if opcode == ord("C") else self._unpacked(_STRINGS[ord("X")])
            if size > _MAX_LONG_BYTES:
                self._fail(f"it has {size:,} bytes where a number is expected")
            stack.append(self._take(size))
        elif opcode in b"c\x93Rb":
            self._numpy(opcode)
        elif opcode == 0x95:  # FRAME: how many bytes follow, which says nothing here
            self._take(8)
        else:
            self._refuse(opcode)

    def _tuple(self, opcode: int) -> None:
        """TUPLE1 to TUPLE3, TUPLE down to the last mark, EMPTY_TUPLE."""
        stack = self._stack
        if opcode == ord("t"):
            start = self._last_mark()
            stack[start:] = [tuple(stack[start + 1 :])]
        elif size := _TUPLES.get(opcode, 0):
            if len(stack) < size:
                self._fail("it is damaged")
            stack[-size:] = [tuple(stack[-size:])]
        else:
            stack.append(())

    def _numpy(self, opcode: int) -> None:
        """GLOBAL, STACK_GLOBAL, REDUCE, BUILD: a number of numpy, or refused."""
        stack = self._stack
        try:
            if opcode == ord("c"):
                module, name = (self._file.readline(_MAX_NAME_BYTES).decode("latin1").rstrip("\n") for _ in range(2))
                stack.append(numpy_scalars.named(module, name))
                return
            if len(stack) < 2:
                self._fail("it is damaged")
            function = {0x93: numpy_scalars.named, ord("R"): numpy_scalars.called}.get(opcode, numpy_scalars.with_state)
            stack[-2:] = [function(stack[-2], stack[-1])]
        except ValueError as error:
            self._refuse(opcode, str(error))

    def _last_mark(self) -> int:
        """The place of the last mark on the stack."""
        for place in range(len(self._stack) - 1, -1, -1):
            if self._stack[place] is _MARK:
                return place
        self._fail("it is damaged")

    def _set_items(self, *, many: bool) -> Iterator[QueryScores]:
        """SETITEM, or SETITEMS down to the last mark."""
        stack = self._stack
        if many:
            start = self._last_mark()
            items = stack[start + 1 :]
            del stack[start:]
        else:
            items = stack[-2:]
            del stack[-2:]
        target = stack[-1] if stack else None
        if len(items) % 2 or target is None or any(item is _MARK for item in items):
            self._fail("it is damaged")
        keys: list[Any] = items[::2]
        values: list[Any] = items[1::2]
        if not {type(key) for key in keys} <= {int, str}:
            self._fail("a key is neither a whole number nor a text")
        if target is self._outer:
            for key, value in zip(keys, values, strict=True):
                if not isinstance(value, _Scores):
                    self._fail(f"query {key!r} has no dict of scores; expected {{query id: {{passage id: score}}}}")
                yield key, value.ids, value.scores
        elif isinstance(target, _Scores):
            if not {type(value) for value in values} <= {float, int, type(None)}:
                self._fail("a score is no number (or is true or false)")
            target.ids += keys
            target.scores += [None if value is None or value != value else float(value) for value in values]
        else:
            self._fail("it is damaged")

    def _new_dict(self) -> object:
        if self._outer is None:
            self._outer = object()
            return self._outer
        return _Scores()

    def _put(self, place: int) -> None:
        if not self._stack:
            self._fail("it is damaged")
        self._memoised += 1
        if isinstance(self._stack[-1], str | numpy_scalars.Name | numpy_scalars.Dtype):
            self._memo[place] = self._stack[-1]

    def _get(self, place: int) -> None:
        value = self._memo.get(place)
        if value is None:
            self._fail("one dict stands in it twice, or it is damaged")
        self._stack.append(value)

    def _text(self, size: int) -> str:
        if size > MAX_KEY_BYTES:
            self._fail(f"it has a text of {size:,} bytes where an id is expected")
        try:
            return self._take(size).decode("utf-8")
        except UnicodeDecodeError:
            self._fail("an id is not UTF-8")

    def _unpacked(self, form: struct.Struct) -> int:
        return int(form.unpack(self._take(form.size))[0])

    def _take(self, size: int) -> bytes:
        content = self._file.read(size)
        if len(content) != size:
            self._fail("it is cut short")
        return content

    def _refuse(self, opcode: int, what: str = "") -> NoReturn:
        name = _NAMES.get(opcode, f"{opcode:#x}")
        if opcode in _CALLS:
            why = f"this pickle would run code ({shown(what)})" if what else "this pickle would run code"
        else:
            why = "it holds something else than dicts of numbers"
        self._fail(f"opcode {name}: {why}. Save it as plain numbers: pickle.dump({{q: {{p: float(s) ...}} ...}}, file, protocol=4)")

    def _fail(self, why: str) -> NoReturn:
        raise UserError(f"{self._path}, byte {self._file.tell():,}: {why}")
