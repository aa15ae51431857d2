"""A command's own arguments: checked by one parser for all commands."""

from __future__ import annotations

import pytest

from data.config.arguments import Args
from data.errors import UserError


def test_defaults_give_way() -> None:
    """Prevents: a default in place of what was given."""
    args = Args.of(["k=3", "k=4"], required=("k",), optional={"width": "160"})
    assert args == {"k": "4", "width": "160"} and args.number("k", least=1) == 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["kk=3"], "unknown key kk; nearest: k"),
        ([], r"missing k=\.\.\.; optional: width"),
        (["k"], "expected key=value, got 'k'"),
    ],
)
def test_keys_are_checked(given: list[str], message: str) -> None:
    """Prevents: a misspelt argument that is passed over."""
    with pytest.raises(UserError, match=message):
        Args.of(given, required=("k",), optional={"width": "160"})


@pytest.mark.parametrize("value", ["", "-1", "1.5", "nan", "inf", "1e400", "x"])
def test_values_are_checked(value: str) -> None:
    """Prevents: a traceback, or a depth of nothing, out of a value that is no number."""
    args = Args({"k": value})
    with pytest.raises(UserError, match=r"^k=.*: expected a whole number"):
        args.number("k")
    with pytest.raises(UserError, match=r"^k=.*: expected cpu or cuda"):
        args.one_of("k", "cpu", "cuda")
    if value != "1.5":
        with pytest.raises(UserError, match=r"^k=.*: expected a number above 0"):
            args.positive("k")
