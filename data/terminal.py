"""What reaches a terminal or a page: text of any collection, path or error, whatever its characters and the terminal's encoding."""

from __future__ import annotations

import codecs
import contextlib
import re
import sys

# Control characters move the cursor, clear the screen or set its title; the others turn the order of what follows round, or are half a
# surrogate pair, which no file can hold.
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_ERRORS = "adam-readable"


def printable(text: str) -> str:
    """The text with control characters but tab and newline escaped (`\\x1b`)."""
    return _CONTROL.sub(lambda found: _escaped(found.group()), text.replace("\r\n", "\n"))


def _escaped(character: str) -> str:
    return f"\\x{ord(character):02x}" if ord(character) < 0x100 else f"\\u{ord(character):04x}"


def _readable(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a file's name that are no text go out as they are; characters that the encoding lacks are escaped."""
    assert isinstance(error, UnicodeEncodeError)
    character = error.object[error.start]
    if "\udc80" <= character <= "\udcff":
        return character.encode("utf-8", "surrogateescape"), error.start + 1
    return character.encode("ascii", "backslashreplace"), error.start + 1


def take_any_text() -> None:
    """Let both output streams of this process take every character: a terminal's encoding is no reason to stop a run."""
    codecs.register_error(_ERRORS, _readable)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # closed, or another kind of stream
            stream.reconfigure(errors=_ERRORS)  # type: ignore[union-attr]
