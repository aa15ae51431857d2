"""`part=K/N`: which shards are whose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from data.errors import EXIT_BAD_INPUT, UserError
from pipeline.cli import app
from pipeline.sharing.parts import Part


@given(st.sets(st.integers(0, 300)), st.integers(1, 20), st.booleans())
def test_parts_share_out_every_shard_once(shards: set[int], of: int, together: bool) -> None:
    """Prevents: a shard that belongs to no part, so that no array ever ends; or to two, which pay for it twice."""
    dealt = [shard for number in range(of) for shard in Part(number, of).of_shards(sorted(shards), together=together)]
    assert sorted(dealt) == sorted(shards)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("16/16", "parts are numbered from 0, so 16 parts are 0/16 to 15/16; an array that counts from 1"),
        ("3", "expected the number of this part, from 0 on"),
        ("/16", "part=$SLURM_ARRAY_TASK_ID/16"),
        ("-1/4", "from 0 on"),
        ("0/0", "numbered from 0"),
    ],
)
def test_other_words_are_refused(text: str, said: str) -> None:
    """Prevents: an array that counts from 1, whose first part nobody builds; and a variable that is not set there."""
    with pytest.raises(UserError, match="part=") as refused:
        Part.parse(text)
    assert said in str(refused.value)


def test_a_part_needs_claims(finished: object) -> None:
    """Prevents: parts that each do all that comes before the shards."""
    done = CliRunner().invoke(app, ["run", f"config={finished.config}", "part=0/2", "claims=off"])  # type: ignore[attr-defined]
    assert done.exit_code == EXIT_BAD_INPUT and "leave claims=off out" in done.output
    done = CliRunner().invoke(app, ["run", f"config={finished.config}", "claims=maybe"])  # type: ignore[attr-defined]
    assert done.exit_code == EXIT_BAD_INPUT and "expected on or off" in done.output
