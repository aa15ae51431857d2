"""Lengths of teacher and student against each other, before anything is scored."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.config.settings import load
from data.tables.schemas import SEPARATOR_MARK
from pipeline.run import run
from pipeline.scoring.reading_lengths import Truncation, notes, truncation
from retrieval.models.resolved import ResolvedModels

Prep = Callable[..., list[str]]
SYLLABLES = ["ba", "be", "bi", "bo", "bu"]


def words(count: int) -> str:
    return " ".join(SYLLABLES[number % 5] for number in range(count))


def models_of(config: Path, **overrides: object) -> Any:
    return ResolvedModels(load({"config": str(config), **{key.replace("__", "."): str(value) for key, value in overrides.items()}}))


def test_what_a_teacher_cuts_of_what_the_student_reads(finished: Any) -> None:
    """Prevents: logits of p+ alone for a mixed passage of which the student reads both parts. Pairs have 3 special tokens, texts 2."""
    mixes = [
        f"{words(20)} {SEPARATOR_MARK} {words(25)}",
        f"{words(44)} {SEPARATOR_MARK} {words(1)}",
        f"{words(10)} {SEPARATOR_MARK} {words(9)}",
    ]
    queries = [words(10), words(12), words(10)]
    wide = models_of(finished.config, teacher__max_tokens=10 + 46 + 2 + 3, student__passage_tokens=48)
    assert truncation(wide, queries, mixes, mixed=True) == Truncation(3, 0, 0, 12 + 46 + 3)
    short = models_of(finished.config, teacher__max_tokens=58, student__passage_tokens=48)
    assert truncation(short, queries, mixes, mixed=True) == Truncation(3, 2, 1, 61)  # 45 and 43 of 46 tokens; 44 of the second are p+
    # The student reads no more than 30 tokens of a plain passage: a teacher that cuts beyond has read as much.
    plain = models_of(finished.config, teacher__max_tokens=43, student__passage_tokens=32)
    assert truncation(plain, [words(10)], [words(60)], mixed=False) == Truncation(1, 0, 0, 43)
    assert truncation(plain, [words(11)], [words(60)], mixed=False) == Truncation(1, 1, 0, 44)


def test_a_template_s_tokens_are_no_room_for_the_texts(finished: Any, tmp_path: Path) -> None:
    """Prevents: passages cut to a few tokens behind a long template, as if it took three, without a word."""
    template = tmp_path / "own.jinja"
    template.write_text("ba be {{ query }} bi {{ document }} bo")
    settings = {"teacher__template": template, "student__passage_tokens": 32}
    fits = models_of(finished.config, teacher__max_tokens=44, **settings)
    assert truncation(fits, [words(10)], [words(40)], mixed=False) == Truncation(1, 0, 0, 44)
    assert notes(fits.experiment, fits) == [
        "teacher.max_tokens=44: the teacher's template takes 4 of them, so 40 are left for query and passage, of which the student reads "
        "16 and 32; teacher.max_tokens=52 cuts nothing"
    ]
    short = models_of(finished.config, teacher__max_tokens=43, **settings)
    assert truncation(short, [words(10)], [words(40)], mixed=False) == Truncation(1, 1, 0, 44)
    wide = models_of(finished.config, teacher__max_tokens=52, **settings)
    assert not notes(wide.experiment, wide)
    prompted = models_of(finished.config, teacher__max_tokens=45, student__passage_tokens=32, teacher__template="rankllama")
    assert truncation(prompted, [words(9)], [words(40)], mixed=False).cut == 1  # "query:" takes two tokens, "document:" too


def test_tokens_are_those_of_each_reader(finished: Any, tmp_path: Path, models: Any) -> None:
    """Prevents: lengths of two tokenizers compared as if they were one's."""
    import shutil

    from transformers import BertTokenizerFast

    own = shutil.copytree(models.student, tmp_path / "letters")
    (own / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abeiou", *(f"##{x}" for x in "abeiou")]) + "\n"
    )
    (own / "tokenizer.json").unlink()
    BertTokenizerFast(vocab=str(own / "vocab.txt")).save_pretrained(own)
    settings = {"student__model": own, "student__passage_tokens": 34, "teacher__max_tokens": 43}
    # 40 words: 40 tokens of the teacher, which reads 30; 80 letters of the student, which reads 32 of them, 16 words.
    assert truncation(models_of(finished.config, **settings), [words(10)], [words(40)], mixed=False).cut == 0
    settings["student__passage_tokens"] = 66  # 64 letters, 32 words
    assert truncation(models_of(finished.config, **settings), [words(10)], [words(40)], mixed=False) == Truncation(1, 1, 0, 10 + 32 + 3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"dark_examples.mixed_tokens": 63},
            r"max_tokens=64 has no room .* 63 tokens \(dark_examples.mixed_tokens\).*teacher.max_tokens=79, or",
        ),
        (
            {"student.passage_tokens": 100},
            r"max_tokens=64 .* 100 tokens \(student.passage_tokens, of mixed passages too\).*or dark_examples.mixed_tokens=48",
        ),
        ({"student.passage_tokens": "null"}, r"max_tokens=64 .* 128 tokens \(student.passage_tokens"),
    ],
)
def test_lengths_that_fit_no_query_are_told_before_any_work(
    tmp_path: Path, tiny_experiment: Callable[..., Path], settings: dict[str, Any], said: str
) -> None:
    """Prevents: a whole collection embedded, mined and scored with mixed passages of which the teacher sees no p-, without a word; and a
    refusal of the same lengths where passages are short."""
    config = tiny_experiment(tmp_path, **settings)
    told: list[str] = []

    def stop(line: str) -> None:
        told.append(line)
        if "has no room" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(load({"config": str(config)}), stage="all", say=stop)
    assert re.search(f"^note: teacher.{said}", told[-1]) and not (tmp_path / "store" / "ingest").exists()
    for others in ({"dark_examples.reinforced": False}, {"teacher.max_tokens": 128, "dark_examples.mixed_tokens": 48}):
        models = ResolvedModels(load({"config": str(config), **{key: str(value) for key, value in others.items()}}))
        assert not notes(models.experiment, models)


@pytest.mark.medium
def test_the_share_is_told_before_scoring(
    tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, count_scored: list[int]
) -> None:
    """Prevents: hours of scoring whose logits are of less than the student reads, without a word; and words where all is well."""
    lengths = {"student.passage_tokens": 48, "teacher.max_tokens": 51}
    config = tiny_experiment(tmp_path, **lengths)
    for stage in ("ingest", "embed", "pools", "hard_negatives", "dark_examples"):
        prep_run(config, stage=stage)
    said: list[tuple[str, int]] = []
    run(load({"config": str(config)}), stage="teacher_scores", say=lambda line: said.append((line, sum(count_scored))))
    told = [(line, scored) for line, scored in said if "reads less than the student" in line]
    assert [scored for _, scored in told] == [0, 0] and "of 42 mixed passages" in told[0][0] and "would cut none" in told[0][0]
    assert sum(count_scored) > 0
    assert not any("reads less" in line for line in prep_run(config, **{"teacher.max_tokens": 80}))


def test_scoring_needs_no_student(tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep) -> None:
    """Prevents: a machine that only scores asked for the files of a student that it never reads."""
    config = tiny_experiment(tmp_path, **{"hard_negatives.source": "random", "dark_examples.mixed_tokens": 40, "student.model": "no/where"})
    for stage in ("ingest", "hard_negatives", "dark_examples", "teacher_scores"):
        lines = prep_run(config, stage=stage)
    assert any("built" in line for line in lines)
