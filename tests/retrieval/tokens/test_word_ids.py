"""Ids of texts from those of their words: to the id what the tokenizer gives for the whole text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from retrieval.models.tokenizer import Tokenizer
from retrieval.tokens.word_ids import WordIds, parts_at_spaces

# Spaces of all kinds, marks that join what is before them, signs that BERT's normaliser drops or puts spaces around, special tokens.
PIECES = [
    " ", "  ", "\n", "\t", "\r", "\u00a0", "\u2003", "\u3000", "\u200b", "\u0000", "\u001c", "\ufffd", "\u0301", "e\u0301", "İ", "ß", "Σς",
    "漢字", "かな", "😀", "👩‍👩‍👧", "[SEP]", "[MASK]", "[sep]", "##a", "ha", "bo", "1.5%", "naïve", "don't",
    "x" * 120, "ﬁ", "ﷺ", "각", "ᄀ", "ᅡ",
]  # fmt: skip
TEXTS = st.one_of(st.lists(st.sampled_from(PIECES), max_size=12).map("".join), st.text(max_size=30))


def whole(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.backend.encode_batch(texts, add_special_tokens=False)]


@pytest.fixture(scope="module")
def tokenizers(models: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """The toy's, and the same with what BERT's settings can be else."""
    from tokenizers import normalizers

    found = {"plain": Tokenizer(models.teacher), "lower case before": Tokenizer(models.teacher, lower_case=True)}
    for name, options in (
        ("cased", {"lowercase": False}),
        ("accents", {"lowercase": True, "strip_accents": False}),
        ("unclean", {"clean_text": False, "handle_chinese_chars": False}),
    ):
        found[name] = Tokenizer(models.teacher)
        found[name].backend.normalizer = normalizers.BertNormalizer(**options)
    return found


@pytest.mark.medium
@pytest.mark.parametrize("name", ["plain", "lower case before", "cased", "accents", "unclean"])
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5))
@example(texts=["", " ", "  a  b ", "a\u001cb c\u0301 \u0301d"])
@example(texts=[])
def test_words_give_the_ids_of_the_text(tokenizers: dict[str, Tokenizer], name: str, texts: list[str]) -> None:
    """Prevents: a token more or less where a word ends, which moves every logit of a text a little and shows nowhere."""
    tokenizer = tokenizers[name]
    assert tokenizer._words is not None
    assert [ids.tolist() for ids in tokenizer.bare_ids(texts)] == whole(tokenizer, texts)


@pytest.mark.medium
@settings(max_examples=60, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5), max_tokens=st.integers(1, 20))
def test_texts_alone_are_cut_as_the_tokenizer_cuts_them(tokenizers: dict[str, Tokenizer], texts: list[str], max_tokens: int) -> None:
    """Prevents: a student that reads a token more or less of a long text, or none of the special ones."""
    tokenizer = tokenizers["plain"]
    assert tokenizer._around is not None
    if max_tokens >= 2:  # else there is no room for the special tokens
        assert tokenizer.encode(texts, max_tokens=max_tokens) == tokenizer._encoded(texts, max_tokens)


def test_a_word_is_tokenised_once(models: Any) -> None:
    """Prevents: a collection tokenised word by word, again and again; ids of a word that was forgotten meanwhile."""
    tokenizer = Tokenizer(models.teacher)
    asked: list[str] = []

    def tokenise(texts: list[str]) -> Any:
        asked.extend(texts)
        return tokenizer._tokenised(texts)

    words = WordIds.of(tokenizer.backend, tokenise)
    assert words is not None
    asked.clear()
    for texts in (["ha bo ha", "bo ha bo"], ["ha bo", "di ha"], [], [""]):
        assert [ids.tolist() for ids in words.lists(texts)] == whole(tokenizer, texts)
    assert sorted(asked) == ["bo", "bo ", "di ", "ha", "ha "]
    words._seen._kept_tokens = 2
    for texts in (["ha bo ha"], ["di di ha"], ["ha bo fo"]):
        assert [ids.tolist() for ids in words.lists(texts)] == whole(tokenizer, texts)


def test_more_texts_than_are_looked_up_at_once(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: texts of a later part with the ids of an earlier one."""
    monkeypatch.setattr("retrieval.tokens.word_ids._TEXTS_AT_ONCE", 3)
    tokenizer = Tokenizer(models.teacher)
    texts = [f"ha {'bo ' * (number % 4)}{number}" for number in range(10)]
    assert [ids.tolist() for ids in tokenizer.bare_ids(texts)] == whole(tokenizer, texts)


def test_large_texts_are_looked_up_a_few_at_a_time(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a batch of books that ends in an error, since its bytes are more than an Arrow array of strings counts."""
    monkeypatch.setattr("retrieval.tokens.word_ids._CHARACTERS_AT_ONCE", 20)
    tokenizer = Tokenizer(models.teacher)
    words, sizes = tokenizer._words, []
    assert words is not None
    look_up = words._ids
    monkeypatch.setattr(words, "_ids", lambda texts: (sizes.append(sum(map(len, texts))), look_up(texts))[1])
    texts = ["", "ha", "ha bo " * 9, "bo", "", "di " * 5, "ha bo", "x" * 40]
    assert [ids.tolist() for ids in tokenizer.bare_ids(texts)] == whole(tokenizer, texts)
    assert sum(sizes) == sum(map(len, texts)) and [size for size in sizes if size > 20] == [54, 40]


def test_other_tokenizers_are_asked_for_whole_texts(models: Any, tmp_path: Path) -> None:
    """Prevents: a tokenizer that reads across spaces taken apart at them."""
    from tokenizers import AddedToken, normalizers, pre_tokenizers
    from tokenizers import models as kinds

    def changed(**parts: Any) -> bool:
        backend = Tokenizer(models.teacher).backend
        for name, part in parts.items():
            setattr(backend, name, part)
        return parts_at_spaces(backend)

    assert changed()
    assert changed(normalizer=None)
    assert not changed(normalizer=normalizers.Sequence([normalizers.NFKC(), normalizers.BertNormalizer()]))
    assert not changed(normalizer=normalizers.Replace(" ", "_"))
    assert not changed(pre_tokenizer=None)
    assert not changed(pre_tokenizer=pre_tokenizers.ByteLevel())
    assert not changed(pre_tokenizer=pre_tokenizers.Metaspace())
    assert not changed(model=kinds.BPE())
    backend = Tokenizer(models.teacher).backend
    backend.add_tokens([AddedToken("two words", normalized=False)])
    assert not parts_at_spaces(backend)

    class Odd:
        def normalize(self, text: Any) -> None: ...

    assert not changed(normalizer=normalizers.Normalizer.custom(Odd()))


def test_words_that_give_other_ids_are_not_used(models: Any) -> None:
    """Prevents: a kind of tokenizer that looks as if a space parted it, and is not so."""
    tokenizer = Tokenizer(models.teacher)
    plain = tokenizer._tokenised
    assert WordIds.of(tokenizer.backend, lambda texts: [np.append(ids, np.int32(7)) for ids in plain(texts)]) is None
