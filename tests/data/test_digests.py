"""Digests: the same on every machine and in every version, or every fingerprint and mask changes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.digests import (
    DigestCache,
    bytes_digest,
    canonical_json,
    file_digest,
    hash64,
    hash64_after,
    json_digest,
    pair_key,
    text_hash,
    uniforms,
)


def test_known_values() -> None:
    """Prevents: a change of the hash by which every cached logit, mask and fingerprint is lost without a word."""
    assert json_digest({"b": [1, 2.5, None], "a": "é"}) == "3276393bf8a5a8df0e5ddcb8f78302ef"
    assert hash64(0, "mask", "q1") == 12806361181363536533
    assert text_hash("a passage") == 7351730898639176157
    assert pair_key("query", "passage").hex() == "1127b80208a73f6cdf7cb9616a364f29"
    assert uniforms(3, 0, "mask").tolist() == [0.9250930525955173, 0.7550397771416147, 0.02400101308904834]


def test_canonical_json() -> None:
    """Prevents: two equal settings with two fingerprints, or NaN, which equals nothing."""
    assert canonical_json({"b": 1, "a": {"d": [1.5, "é"], "c": None}}) == '{"a":{"c":null,"d":[1.5,"é"]},"b":1}'
    assert canonical_json({"a": 1, "b": 2}) == canonical_json({"b": 2, "a": 1})
    with pytest.raises(ValueError):
        canonical_json({"a": math.nan})


PARTS = st.lists(st.text(max_size=8), min_size=1, max_size=4)


@given(PARTS, PARTS)
def test_parts_are_kept_apart(first: list[str], second: list[str]) -> None:
    """Prevents: ("ab", "c") and ("a", "bc") with one hash, and so one pair's logit given to another."""
    assert (hash64(*first) == hash64(*second)) == (first == second)
    assert (pair_key(first[0], first[-1]) == pair_key(second[0], second[-1])) == ((first[0], first[-1]) == (second[0], second[-1]))


@given(PARTS, st.lists(st.text(max_size=8), max_size=3))
def test_parts_hashed_once_give_the_same_numbers(parts: list[str], last: list[str]) -> None:
    """Prevents: other negatives than before; one call that leaves its mark on the next."""
    hashed = hash64_after(*parts)
    assert [hashed(part) for part in last] == [hash64(*parts, part) for part in last]


@given(st.text(min_size=1), st.integers(0, 8))
def test_moving_a_letter_across_the_border_changes_the_key(text: str, cut: int) -> None:
    """Prevents: the concatenation of query and passage as a key."""
    cut = min(cut, len(text) - 1)
    assert pair_key(text[:cut], text[cut:]) != pair_key(text[: cut + 1], text[cut + 1 :])


def test_uniforms_are_uniform_and_a_prefix_of_more() -> None:
    """Prevents: draws outside [0, 1), skewed ones, or ones that depend on how many are asked for."""
    many = uniforms(100_000, 1, "x")
    assert many.min() >= 0 and many.max() < 1 and abs(many.mean() - 0.5) < 0.005 and abs(many.var() - 1 / 12) < 0.002
    np.testing.assert_array_equal(uniforms(10, 1, "x"), many[:10])
    assert not np.array_equal(uniforms(10, 2, "x"), many[:10])
    assert len(uniforms(0, 1)) == 0


def test_digest_cache_sees_changed_content_of_the_same_size(tmp_path: Path) -> None:
    """Prevents: new weights under the old path, with size and mtime kept, that count as the old ones."""
    file = tmp_path / "weights"
    file.write_bytes(b"old weights")
    cache = DigestCache(tmp_path / "store" / "digests.json")  # (the file is fresh, so the cache must not trust its times yet)
    before, times = cache.file(file), os.stat(file)
    cache.save()
    file.write_bytes(b"new weights")
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    for again in (cache, DigestCache(tmp_path / "store" / "digests.json")):
        assert again.file(file) == file_digest(file) == bytes_digest(b"new weights") != before


def test_digest_cache_remembers_and_survives_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a plan that reads gigabytes each time, and a damaged cache file that stops every command."""
    monkeypatch.setattr("data.digests._RECENT_NS", -1)
    file, store = tmp_path / "weights", tmp_path / "digests.json"
    file.write_bytes(b"weights")
    cache = DigestCache(store)
    digest = cache.file(file)
    cache.save()
    with monkeypatch.context() as patch:
        patch.setattr("data.digests.file_digest", lambda path: pytest.fail("read again"))
        assert DigestCache(store).file(file) == digest
    known = json.loads(store.read_text())
    for damaged in ("{", "[]", "null", "\udcff", json.dumps(dict.fromkeys(known, 7))):
        store.write_text(damaged, errors="surrogateescape")
        assert DigestCache(store).file(file) == digest
