"""The setting that mixes sources: shares, ranks, and every bad word told."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.config.negative_sources import SOURCES, Source, canonical, parse_sources
from data.config.settings import HardNegatives


def parsed(text: str) -> tuple[Source, ...]:
    return parse_sources(text, first_rank=1, last_rank=100)


@given(st.lists(st.sampled_from(SOURCES), min_size=2, unique=True), st.lists(st.integers(1, 30), min_size=4, max_size=4), st.integers(1, 7))
def test_equal_shares_are_equal_settings(names: list[str], weights: list[int], factor: int) -> None:
    """Prevents: the same mixture spelt otherwise that makes everything stale; a share that rounding moves."""

    def written(scale: int) -> str:
        return ", ".join(f"{name}:{weight * scale}" for name, weight in zip(names, weights, strict=False))

    once = parsed(written(1))
    assert parsed(written(factor)) == once and canonical(parsed(canonical(once))) == canonical(once)
    assert all(a.weight * weights[1] == once[1].weight * weight for a, weight in zip(once, weights, strict=False))


def test_decimals_and_ranks() -> None:
    """Prevents: 0.3 taken for less than a third of 0.9, or the ranks of one source for those of all."""
    student, bm25 = parse_sources("student:0.9@20-50,bm25:0.3", first_rank=2, last_rank=9)
    assert (student, bm25) == (Source("student", 3, 20, 50), Source("bm25", 1, 2, 9))
    assert canonical(parsed("random:7@3-9")) == "random", "trainers know a single source by its name"


@pytest.mark.parametrize(
    ("text", "name", "weight", "ranks"),
    [("a.b:c", "a.b:c", 1, (1, 100)), ("a:c", "a:c", 1, (1, 100)), ("a:c:2", "a:c", 2, (1, 100)), ("a:C.d:1/2@3-9", "a:C.d", 1, (3, 9)),
     ("a:c@3-9", "a:c", 1, (3, 9))],
)  # fmt: skip
def test_an_import_path_stands_where_a_name_does(text: str, name: str, weight: int, ranks: tuple[int, int]) -> None:
    """Prevents: the object of a path taken for a weight, or the weight for a part of the path."""
    student, own = parsed(f"student:1,{text}")
    assert (own.name, (own.first_rank, own.last_rank)) == (name, ranks)
    assert own.weight / student.weight == (0.5 if "1/2" in text else weight)
    assert parsed(canonical((student, own)))[1].name == name


def test_numbers_on_disk() -> None:
    """Prevents: a pool whose numbers mean other sources when a built-in is added, or two plug-ins with one number."""
    named = parsed("a:b,random,student,a:c,bm25,run")
    assert [source.number for source in named] == [64, 3, 0, 65, 1, 2]


@pytest.mark.parametrize(
    ("text", "words"),
    [("studnt", "nearest: student"), ("student,bm52", "nearest: bm25"), ("student:0,bm25", "above 0"), ("student:-1", "above 0"),
     ("student:x", "above 0"), ("student,student", "twice"), ("", "NAME:WEIGHT"), ("student:1:2", "NAME:WEIGHT"), ("bm25@5", "NAME:WEIGHT"),
     ("a:b,student,a:b", "names a:b twice"), ("a:b:c", "above 0"), ("a:b:1:2", "NAME:WEIGHT"), ("a.b", "package.module:object"),
     ("student:nan", "above 0"), ("student:inf", "above 0"), ("student:1/0", "above 0")],
)  # fmt: skip
def test_bad_words_are_told(text: str, words: str) -> None:
    """Prevents: a misspelt source, or a weight of nothing, that silently leaves one out."""
    with pytest.raises(ValueError, match=words):
        parsed(text)


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"source": "student@1-200,bm25"}, "range_max <= depth"), ({"source": "student@0-5"}, "range_min"),
     ({"source": "bm25@9-5"}, "range_min"), ({"source": "student,run"}, "run_file"), ({"sampler": "top", "draws": 2}, "draws"),
     ({"sampler": "simans", "source": "student,bm25"}, "alone"), ({"sampler": "stratified", "draws": 2}, "draws"),
     ({"source": "bm25", "false_negatives": {"student_margin": 0.1}}, "student"),
     ({"false_negatives": {"teacher_percentile": 0}}, "greater"), ({"false_negatives": {"absolute_margin": "nan"}}, "finite")],
)  # fmt: skip
def test_settings_that_cannot_be_meant(settings: dict[str, object], words: str) -> None:
    """Prevents: a sampler or a rule that has no scores to go by, found out after the search."""
    with pytest.raises(ValueError, match=words):
        HardNegatives(**settings)  # type: ignore[arg-type]
