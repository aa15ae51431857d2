"""CL-DRD's labels and pairs, against the table of its paper and plain counting."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.config.settings import Experiment, load
from data.errors import UserError
from data.tables.cl_drd_groups import PAPER_ITERATIONS, GroupSizes, labels_of, parse_sizes
from data.tables.schemas import CandidateKind

SIZES = st.tuples(st.integers(1, 12), st.integers(0, 12), st.integers(0, 12))


def kinds_of(sizes: tuple[int, int, int]) -> list[int]:
    return [int(CandidateKind.TOP)] * sizes[0] + [int(CandidateKind.NEAR)] * sizes[1] + [int(CandidateKind.FAR)] * sizes[2]


@given(SIZES)
def test_labels(sizes: tuple[int, int, int]) -> None:
    """Prevents: labels that are off by a place."""
    expected = [1 / place for place in range(1, sizes[0] + 1)] + [-0.25] * sizes[1] + [-0.5] * sizes[2]
    assert labels_of(kinds_of(sizes)).tolist() == expected


def test_lists_of_the_paper() -> None:
    """Prevents: another curriculum than the published one under its name."""
    assert [sum(parse_sizes(text)) for text in PAPER_ITERATIONS] == [30, 30, 30]


@pytest.mark.parametrize("text", ["", "5/12", "5/12/13/1", "0/1/2", "a/1/2", "-1/2/3", "5 12 13"])
def test_sizes_are_three_numbers(text: str) -> None:
    """Prevents: an iteration of other sizes than the file says."""
    with pytest.raises(ValueError, match="K/N_h/N_s"):
        parse_sizes(text)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "e.yaml"
    path.write_text(
        "store: s\ningest: {path: p}\nstudent: {model: m}\nteacher: {model: t}\n"
        "hard_negatives: {depth: 200}\ncurriculum: {enabled: true, iterations: [5/12/13, 30/0/0]}\n"
    )
    return path


def loaded(file: Path, **overrides: str) -> Experiment:
    return load({"config": str(file), **{key.replace("__", "."): value for key, value in overrides.items()}})


def test_the_settings(file: Path) -> None:
    """Prevents: another number of draws than there are iterations."""
    found = loaded(file)
    assert found.curriculum.sizes == (GroupSizes(5, 12, 13), GroupSizes(30, 0, 0))
    assert (found.draws, found.curriculum.near_rank, found.curriculum.retrieved, found.scores_whole_pools) == (2, 50, 200, True)
    assert loaded(file, curriculum__iterations="20/5/5").curriculum.sizes == (GroupSizes(20, 5, 5),)
    assert not loaded(file, curriculum__enabled="false").scores_whole_pools


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"hard_negatives.depth": "150"}, r"set hard_negatives\.depth=200"),
        ({"hard_negatives.source": "bm25"}, r"set hard_negatives\.source=student"),
        ({"hard_negatives.source": "student,bm25"}, r"set hard_negatives\.source=student"),
        ({"hard_negatives.false_negatives.absolute_margin": "1"}, "leave the rules"),
        ({"curriculum.iterations": "5/46/0"}, "iteration 5/46/0 does not fit"),
        ({"curriculum.iterations": "5/0/151"}, "iteration 5/0/151 does not fit"),
        ({"curriculum.near_rank": "200"}, "does not fit"),
        ({"curriculum.iterations": "[]"}, "1 to 100 iterations"),
        ({"train.draw": "2"}, r"train\.draw=2: curriculum\.iterations are draws 0 to 1"),
    ],
)
def test_what_cannot_be_drawn_is_refused(file: Path, overrides: dict[str, str], said: str) -> None:
    """Prevents: groups from a pool that has no such ranks: short lists, found after days of scoring."""
    with pytest.raises(UserError, match=said):
        loaded(file, **overrides)
