"""BM25: the ranking follows the formula, ties go by id, and texts without words find nothing."""

from __future__ import annotations

import math
import random
from typing import get_args

import bm25s
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config.settings import StopWords
from retrieval.search.bm25 import STOP_WORDS, Bm25Index, words_of

Found = list[tuple[list[str], list[float]]]


def search(doc_ids: list[str], texts: list[str], queries: list[str], *, k: int, block: int = 7, **options: str) -> Found:
    """(ids, scores) of each query, over texts that come in blocks."""
    blocks = [texts[start : start + block] for start in range(0, len(texts), block)]
    rows, scores = Bm25Index(pa.array(doc_ids, pa.large_string()), blocks, **options).search(queries, k=k)
    assert rows.dtype == np.int64 and scores.dtype == np.float32 and ((rows < 0) == np.isneginf(scores)).all()
    listed = [[doc_ids[row] for row in of_query[of_query >= 0]] for of_query in rows]
    return [(ids, values[: len(ids)].tolist()) for ids, values in zip(listed, scores, strict=True)]


WORDS = ["flea", "tick", "dog", "cat", "vet", "bite"]


def lucene(texts: list[str], query: str, *, k1: float = 1.5, b: float = 0.75) -> list[float]:
    """Lucene's BM25 from its definition."""
    passages = [text.split() for text in texts]
    mean_length = sum(map(len, passages)) / len(passages)
    scores = [0.0] * len(passages)
    for word in query.split():
        having = sum(word in passage for passage in passages)
        for place, passage in enumerate(passages):
            count = passage.count(word)
            idf = math.log(1 + (len(passages) - having + 0.5) / (having + 0.5))
            scores[place] += idf * count / (count + k1 * (1 - b + b * len(passage) / mean_length))
    return scores


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), k=st.integers(1, 25), block=st.integers(1, 21))
def test_search_equals_the_formula_with_ties_by_id(seed: int, k: int, block: int) -> None:
    """Prevents: among equal scores at the cut, the kept passages are those that happen to lie first in memory; words that
    get another number in another block."""
    chance = random.Random(seed)
    texts = [" ".join(chance.choices(WORDS, k=chance.randint(1, 4))) for _ in range(20)]
    doc_ids = [f"d{number:02}" for number in range(20)]
    chance.shuffle(doc_ids)
    query = " ".join(chance.choices(WORDS, k=2))
    found_ids, found_scores = search(doc_ids, texts, [query], k=k, block=block)[0]
    scores = [round(score, 5) for score in lucene(texts, query)]
    expected = sorted((-score, doc_id) for score, doc_id in zip(scores, doc_ids, strict=True) if score > 0)[:k]
    assert found_scores == pytest.approx([-score for score, _ in expected], abs=1e-4)
    assert found_ids == [doc_id for _, doc_id in expected]


def test_queries_without_a_known_word_find_nothing() -> None:
    """Prevents: an error inside bm25s, or all empty passages found by the empty word that it gives them."""
    ids, texts = ["a", "b", "c"], ["the", "", "flea bite"]
    assert search(ids, texts, ["the", "", "unheard"], k=2) == [([], [])] * 3
    assert search(ids, texts, ["flea"], k=2)[0][0] == ["c"]


def test_a_corpus_without_words() -> None:
    """Prevents: bm25s's own error where a shard of passages has only stop words."""
    assert search(["a"], ["the"], ["flea"], k=1) == [([], [])]
    assert search([], [], ["flea"], k=1) == [([], [])]


def test_stop_words_can_be_kept() -> None:
    """Prevents: `the who` cannot be searched for, in a collection where stop words mean something."""
    assert search(["a", "b"], ["the", "flea"], ["the"], k=1, stop_words="none")[0][0] == ["a"]


@pytest.mark.parametrize("language", sorted(set(STOP_WORDS) - {"none"}))
def test_stop_words_of_a_language(language: str) -> None:
    """Prevents: a language that drops another one's words, or a name in the settings that the index does not know."""
    word = next(word for word in STOP_WORDS[language] if words_of(word) == [word])
    for chosen, found in ((language, []), ("none", ["a"])):
        assert search(["a"], [f"{word} flea"], [word], k=1, stop_words=chosen)[0][0] == found


def test_the_settings_name_the_same_languages() -> None:
    """Prevents: a language that the settings take and the index refuses hours later."""
    assert set(get_args(StopWords)) == set(STOP_WORDS)


@given(st.text(alphabet=st.characters(max_codepoint=0x77F), max_size=60) | st.text(alphabet="aB1 _-.éßжع가می\u200c\n'’", max_size=60))
def test_scripts_with_spaces_have_the_words_of_bm25s(text: str) -> None:
    """Prevents: pools of collections in scripts with spaces that move with the rule for the others."""
    assert words_of(text) == bm25s.tokenize([text], stopwords=None, return_ids=False, show_progress=False)[0]


def test_scripts_without_spaces_are_cut_into_pairs() -> None:
    """Prevents: a whole sentence as one word, which no query has; neighbours in other scripts lost or glued to it."""
    assert words_of("玫瑰冬天修剪。") == ["玫瑰", "瑰冬", "冬天", "天修", "修剪"]
    assert words_of("買iPhone手机 in 2024年, the ペン") == ["買", "iphone", "手机", "in", "2024", "年", "the", "ペン"]
    for texts, query in [
        (["เครื่องทำความร้อน", "ดอกกุหลาบในสวน"], "กุหลาบ"),  # Thai
        (["ດອກກຸຫຼາບໃນສວນ", "ເຄື່ອງຮ້ອນ"], "ກຸຫຼາບ"),  # Lao
        (["ផ្កាកុលាបក្នុងសួន", "ម៉ាស៊ីនកម្តៅ"], "កុលាប"),  # Khmer
        (["နှင်းဆီပန်းများ", "အပူပေးစက်"], "နှင်းဆီ"),  # Burmese
        (["冬の庭のバラを剪定する", "暖房の空気を抜く"], "バラの剪定"),  # Japanese
        (["玫瑰要在冬天修剪", "厨房水壶怎么除垢"], "冬天怎么修剪玫瑰"),  # Chinese
    ]:
        best = search(["a", "b"], texts, [query], k=2)[0][0][0]
        assert best == ("b" if query == "กุหลาบ" else "a")


def test_words_whose_vowels_are_marks_stay_whole() -> None:
    """Prevents: Hindi of which only the letters without a vowel sign are left, and no query finds anything."""
    assert words_of("गुलाब की छंटाई, सर्दियों में।") == ["गुलाब", "की", "छंटाई", "सर्दियों", "में"]
    for texts, query in [
        (["गुलाब की छंटाई", "हीटर से हवा"], "गुलाब"),  # Hindi
        (["রান্নাঘর পরিষ্কার", "গোলাপ ছাঁটাই"][::-1], "গোলাপ"),  # Bengali
        (["ரோஜா செடி", "சமையல் அறை"], "ரோஜா"),  # Tamil
        (["ދިވެހި ބަސް", "ފޮތް"], "ދިވެހި"),  # Dhivehi
    ]:
        assert search(["a", "b"], texts, [query], k=2)[0][0] == ["a"]
