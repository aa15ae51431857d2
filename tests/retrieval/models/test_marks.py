"""What stands for [MASK] and [SEP] where a tokenizer has no such token."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import save_sentencepiece, save_tokenizer
from support.model_files import without_marks

from data.config.settings import DarkExamples
from data.errors import UserError
from data.tables.schemas import MASK_MARK, SEPARATOR_MARK
from retrieval.model_files.files import has_tokens_of_spaces
from retrieval.models.marks import Marks, marks_of
from retrieval.models.tokenizer import Tokenizer

ASKED = DarkExamples(mask_ratios=(0.3,))


def test_tokens_of_the_tokenizer_s_own_are_left_to_it(models: Any) -> None:
    """Prevents: stores of BERT teachers whose pairs get other keys."""
    marks = marks_of(models.teacher, ASKED, option="teacher.model")
    text = f"ba {MASK_MARK} {SEPARATOR_MARK}"
    assert (marks, marks.key, marks.read(text), marks.notes(ASKED, option="teacher.model")) == (Marks(), {}, text, [])


def test_a_token_of_the_tokenizer_s_class_is_found(models: Any, tmp_path: Path) -> None:
    """Prevents: BERT folders that leave [MASK] and [SEP] to the defaults of BertTokenizer, and get texts in their place."""
    folder = tmp_path / "model"
    shutil.copytree(models.teacher, folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    assert marks_of(folder, ASKED, option="teacher.model") == Marks()


def test_the_default_is_a_text_of_which_the_tokenizer_makes_tokens(models: Any, tmp_path: Path) -> None:
    """Prevents: a line break for a tokenizer that reads it as a space: mixed passages without anything between their parts."""
    found = {
        "byte level": marks_of(save_tokenizer(tmp_path / "qwen", "qwen"), ASKED, option="o"),
        "sentencepiece": marks_of(save_sentencepiece(tmp_path / "gemma"), ASKED, option="o"),
        "white space": marks_of(without_marks(models.teacher, tmp_path / "bert"), ASKED, option="o"),
    }
    assert {name: dict(marks.texts) for name, marks in found.items()} == {
        "byte level": {MASK_MARK: "...", SEPARATOR_MARK: "\n"},
        "sentencepiece": {MASK_MARK: "...", SEPARATOR_MARK: "\n"},
        "white space": {MASK_MARK: "...", SEPARATOR_MARK: "---"},
    }
    marks = found["byte level"]
    assert marks.read(f"a {MASK_MARK}{MASK_MARK} {SEPARATOR_MARK} b") == "a ...... \n b"
    assert marks.key == {"marks": dict(marks.texts)} and marks.separator == "\n"
    assert marks.notes(ASKED, option="student.model") == [
        "student.model: its tokenizer has no mask_token: dark examples hold '...' for it (dark_examples.mask_text)",
        "student.model: its tokenizer has no sep_token: dark examples hold '\\n' for it (dark_examples.separator)",
    ]


def test_only_what_is_asked_for_is_looked_at(tmp_path: Path) -> None:
    """Prevents: keys that differ by marks that no dark example has."""
    folder = save_tokenizer(tmp_path / "qwen", "qwen")
    given = DarkExamples(reinforced=False, mask_ratios=(), separator="|", mask_text="_")
    assert marks_of(folder, given, option="o") == Marks() == marks_of(None, given, option="o")
    assert dict(marks_of(folder, DarkExamples(mask_ratios=()), option="o").texts) == {SEPARATOR_MARK: "\n"}
    assert dict(marks_of(folder, DarkExamples(reinforced=False), option="o").texts) == {MASK_MARK: "..."}


def test_a_text_that_is_given_stands_for_tokens_too(models: Any) -> None:
    """Prevents: a setting that is taken and does nothing."""
    given = DarkExamples(separator=r" \n ", mask_text="ba")
    for folder in (models.teacher, None):
        if folder is None:
            assert dict(marks_of(folder, given, option="o").texts) == {MASK_MARK: "ba", SEPARATOR_MARK: " \n "}
            continue
        with pytest.raises(UserError, match=r"makes no token of dark_examples\.separator=' \\n '"):
            marks_of(folder, given, option="o")
        mine = marks_of(folder, DarkExamples(separator="ce", mask_text="ba"), option="o")
        assert mine.read(f"{MASK_MARK} {SEPARATOR_MARK}") == "ba ce" and mine.notes(given, option="o") == []


def test_words_of_a_tokenizer_that_does_not_split_are_those_between_spaces(tmp_path: Path) -> None:
    """Prevents: one word a text, of which all or nothing is masked."""
    for split in (False, True):
        tokenizer = Tokenizer(save_sentencepiece(tmp_path / str(split), split=split))
        text = "baca  ca bab\ncab "
        assert not tokenizer.splits_words
        assert [text[start:end] for start, end in tokenizer.words(text)] == ["baca", "  ca", " bab", "\ncab"]
    whole = Tokenizer(save_tokenizer(tmp_path / "qwen", "qwen"))
    assert whole.splits_words and [" ba ce"[start:end].strip() for start, end in whole.words(" ba ce")] == ["ba", "ce"]


def test_tokenizers_with_spaces_are_known_by_their_files(models: Any, tmp_path: Path) -> None:
    """Prevents: passages of WordPiece stores that get other bytes, or others above their budget."""
    assert has_tokens_of_spaces(save_tokenizer(tmp_path / "qwen", "qwen"))
    assert has_tokens_of_spaces(save_sentencepiece(tmp_path / "gemma")) and not has_tokens_of_spaces(models.teacher)
