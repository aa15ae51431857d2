"""The teacher-logit store: like a dictionary, whoever wrote it and in whatever order."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.digests import pair_key
from data.errors import DamagedShard
from data.logit_store import BUCKETS, LogitStore, bucket_of, namespaces


def append(store: LogitStore, logits: dict[bytes, float]) -> None:
    """Any keys: a segment a bucket."""
    for bucket in range(BUCKETS):
        keys = [key for key in logits if bucket_of(key) == bucket]
        if keys:
            store.append(keys, np.array([logits[key] for key in keys], dtype=np.float32))


def keys_of(count: int) -> list[bytes]:
    return [pair_key("query", str(number)) for number in range(count)]


def test_lookup_in_any_order_with_repeats(tmp_path: Path) -> None:
    """Prevents: logits joined back to the wrong pairs."""
    store, keys = LogitStore(tmp_path, "n"), keys_of(200)
    append(store, {key: float(number) for number, key in enumerate(keys)})
    wanted = [*range(199, -1, -3), 5, 5, 0]
    np.testing.assert_array_equal(store.lookup([keys[number] for number in wanted]), np.array(wanted, dtype=np.float32))
    assert len(store.lookup([])) == 0


def test_a_pair_never_scored_is_nan(tmp_path: Path) -> None:
    """Prevents: a missing logit that counts as 0."""
    store, keys = LogitStore(tmp_path, "n"), keys_of(40)
    assert np.isnan(store.lookup(keys)).all()
    append(store, {key: 0.0 for key in keys[::2]})
    found = store.lookup(keys)
    assert (found[::2] == 0).all() and np.isnan(found[1::2]).all()
    assert np.isnan(LogitStore(tmp_path, "another teacher").lookup(keys)).all()


@pytest.mark.parametrize("order", [(1.0, 2.0), (2.0, 1.0)])
def test_two_writers_of_one_pair(tmp_path: Path, order: tuple[float, float]) -> None:
    """Prevents: a pair that has one logit for one reader and another one for the next, by the random names of the segments."""
    key = keys_of(1)[0]
    for logit in order:
        append(LogitStore(tmp_path, "n"), {key: logit})
    assert LogitStore(tmp_path, "n").lookup([key]).tolist() == [1.0]


WRITES = st.lists(st.dictionaries(st.integers(0, 30), st.floats(-1e4, 1e4, width=32), max_size=6), max_size=5)


@settings(max_examples=25, deadline=None)
@given(writes=WRITES, asked=st.lists(st.integers(0, 40)))
def test_is_a_dictionary_of_the_smaller_logits(
    tmp_path_factory: pytest.TempPathFactory, writes: list[dict[int, float]], asked: list[int]
) -> None:
    """Prevents: any order of appends and repeats that loses or changes a logit."""
    store, expected, keys = LogitStore(tmp_path_factory.mktemp("store"), "n"), dict[int, float](), keys_of(41)
    for written in writes:
        append(store, {keys[number]: logit for number, logit in written.items()})
        for number, logit in written.items():
            expected[number] = min(logit, expected.get(number, logit))
    np.testing.assert_array_equal(
        store.lookup([keys[number] for number in asked]), np.array([expected.get(number, np.nan) for number in asked], dtype=np.float32)
    )


def test_many_writers_at_once(tmp_path: Path) -> None:
    """Prevents: appends that overwrite each other."""
    keys = keys_of(160)

    def write(part: int) -> None:
        append(LogitStore(tmp_path, "n"), {key: 1.0 for key in keys[part::4]})

    threads = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (LogitStore(tmp_path, "n").lookup(keys) == 1).all()


def test_faults_of_ours_are_refused(tmp_path: Path) -> None:
    """Prevents: a logit in a bucket where nobody looks, or NaN, which means absent."""
    store, keys = LogitStore(tmp_path, "n"), keys_of(100)
    one = [key for key in keys if bucket_of(key) == bucket_of(keys[0])][:2]
    other = next(key for key in keys if bucket_of(key) != bucket_of(keys[0]))
    with pytest.raises(AssertionError):
        store.append([one[0], other], np.zeros(2, dtype=np.float32))
    with pytest.raises(AssertionError):
        store.append(one, np.array([1, np.nan], dtype=np.float32))


def test_a_file_in_the_making_is_not_read(tmp_path: Path) -> None:
    """Prevents: a reader that stops, or reads half, while another job appends."""
    store, key = LogitStore(tmp_path, "n"), keys_of(1)[0]
    append(store, {key: 1.0})
    folder = store.folder / f"{bucket_of(key):x}"
    (folder / ".half.parquet.123.tmp").write_bytes(b"PAR1")
    (folder / ".half.parquet").write_bytes(b"PAR1")
    assert store.lookup([key]).tolist() == [1.0]


def test_a_damaged_segment_is_told(tmp_path: Path) -> None:
    """Prevents: paid logits that are lost, or changed, without a word."""
    store, key = LogitStore(tmp_path, "n"), keys_of(1)[0]
    append(store, {key: 1.0})
    (segment,) = store.folder.rglob("*.parquet")
    content = segment.read_bytes()
    segment.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedShard, match=segment.name):
        store.lookup([key])


def test_stats_count_distinct_pairs(tmp_path: Path) -> None:
    """Prevents: `prep cache stats` that counts a pair twice and so promises more than is there."""
    store = LogitStore(tmp_path, "n")
    store.describe(key={"weights": "x"}, name="a teacher")
    store.describe(key={"weights": "x"}, name="another name")
    for _ in range(2):
        append(store, dict.fromkeys(keys_of(10), 1.0))
    (found,) = namespaces(tmp_path)
    assert (found["namespace"], found["name"], found["pairs"]) == ("n", "a teacher", 10)
    assert found["segments"] == len(list(store.folder.rglob("*.parquet"))) and found["bytes"] > 0
    assert json.loads((store.folder / "namespace.json").read_text())["key"] == {"weights": "x"}
    assert list(namespaces(tmp_path / "elsewhere")) == []
