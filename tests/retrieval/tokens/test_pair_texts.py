"""Pairs as columns are the same sequence of pairs."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from retrieval.tokens.pair_texts import PairTexts
from retrieval.tokens.seen_texts import SeenTexts

TEXT = st.sampled_from(["", "a", "b", "é c"])


@given(pairs=st.lists(st.tuples(TEXT, TEXT), max_size=9), before=st.integers(0, 2), data=st.data())
def test_columns_are_the_pairs(pairs: list[tuple[str, str]], before: int, data: st.DataObject) -> None:
    """Prevents: a candidate beside the query of another row, for teachers that read pairs one by one."""
    columns = (pa.array(["x"] * before + [pair[part] for pair in pairs], pa.string()).slice(before) for part in (0, 1))
    for found in (PairTexts.of_columns(*columns), PairTexts.of(pairs)):
        assert list(found) == pairs and len(found) == len(pairs) and PairTexts.of(found) is found
        assert [found[place] for place in range(len(pairs))] == pairs and len(set(found.queries)) == len(found.queries)
        part = slice(*sorted(data.draw(st.tuples(st.integers(0, 9), st.integers(0, 9)))))
        assert list(found[part]) == pairs[part]


CALLS = st.lists(st.lists(st.text(st.sampled_from("ab"), max_size=4), max_size=6), max_size=8)


@given(calls=CALLS, kept=st.integers(0, 12), first=st.booleans())
def test_what_was_seen_is_found_again(calls: list[list[str]], kept: int, first: bool) -> None:
    """Prevents: the ids of one text for another after others were forgotten or the arrays grew; memory that grows with a collection."""

    def tokenise(texts: list[str]) -> list[np.ndarray]:
        assert len(set(texts)) == len(texts)
        return [np.array([ord(letter) for letter in text], np.int32) for text in texts]

    seen = SeenTexts(tokenise, kept_tokens=kept, first=np.array([1, 2, 3], np.int32) if first else None)
    for texts in calls:
        found = seen.lists(texts)
        assert [ids.tolist() for ids in found] == [[ord(letter) for letter in text] for text in texts]
        assert len(seen.ids.values) <= kept + sum(map(len, texts)) + 3 * first
        if first:
            assert seen.ids.part(0, 1)[0].tolist() == [1, 2, 3]


@given(kept=st.integers(0, 9), lengths=st.lists(st.integers(1, 99), max_size=40), tokens=st.integers(0, 1))
def test_texts_of_few_tokens_are_forgotten_too(kept: int, lengths: list[int], tokens: int) -> None:
    """Prevents: a collection of long words, a token each or none, that stays in memory as a whole."""
    seen = SeenTexts(lambda texts: [np.ones(tokens, np.int32) for _ in texts], kept_tokens=kept)
    for number, length in enumerate(lengths):
        seen.numbers([f"{number:03}{'x' * length}"])
        assert sum(map(len, seen._numbers)) <= 16 * kept + length + 3
