"""Commands run in this process, for tests that look at what they print or patch what they call."""

from __future__ import annotations

import sys

import pytest

from retrieval import cli


def retrieve(*words: object) -> int:
    """`retrieve WORDS`; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["retrieve", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code or 0)
