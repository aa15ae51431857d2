"""What reaches a terminal: any text on any encoding, and no text that is obeyed."""

from __future__ import annotations

import io
import sys

import pytest

from data.command import exit_codes
from data.errors import UserError
from data.terminal import printable, take_any_text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone\x1b]0;title\x07", "\\x1b[2Jgone\\x1b]0;title\\x07"),
        ("a\tb\nc\r\nd\re", "a\tb\nc\nd\\x0de"),
        ("\x9b31mred", "\\x9b31mred"),
        ("abc\u202edcba", "abc\\u202edcba"),
        ("a\udcff", "a\\udcff"),
        ("日本 é \U0001f642 [b]", "日本 é \U0001f642 [b]"),
    ],
)
def test_control_characters_are_shown(text: str, shown: str) -> None:
    """Prevents: a passage that clears the screen, or that is read from its end."""
    assert printable(text) == shown


@pytest.mark.parametrize(
    ("encoding", "written"),
    [("ascii", b"\\xe9 \\u65e5 \xff"), ("cp1252", b"\xe9 \\u65e5 \xff"), ("utf-8", "é 日 ".encode() + b"\xff")],
)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_no_encoding_stops_a_command(monkeypatch: pytest.MonkeyPatch, encoding: str, written: bytes, stream: str) -> None:
    """Prevents: a finished search whose last line is a traceback, since an id is not of the terminal's encoding."""
    raw = io.BytesIO()
    monkeypatch.setattr(sys, stream, io.TextIOWrapper(raw, encoding=encoding))
    take_any_text()
    print("é 日 \udcff", file=getattr(sys, stream), end="", flush=True)
    assert raw.getvalue() == written


@pytest.mark.parametrize("stream", [None, io.StringIO()])
def test_a_stream_of_another_kind_is_left_alone(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO | None) -> None:
    """Prevents: a traceback where the output stream is closed."""
    monkeypatch.setattr(sys, "stdout", stream)
    take_any_text()


def test_errors_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: an id in an error's words that the terminal obeys."""
    with pytest.raises(SystemExit), exit_codes():
        raise UserError("no query \x1b[2J")
    assert capsys.readouterr().err == "error: no query \\x1b[2J\n"
