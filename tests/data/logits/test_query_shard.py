"""Segments of one shard of queries: read by its lookups alone, merged when the shard is scored."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.logits.query_shard import QueryShard, may_hold, shard_in
from data.logits.segment import Keys, Scores, Segment
from data.logits.store import LogitStore


def keys_of(count: int, seed: int = 0) -> Keys:
    return np.random.default_rng(seed).integers(0, 2**64, size=(count, 2), dtype=np.uint64)


def scores_of(logits: object) -> Scores:
    values = np.asarray(logits, np.float32)
    return Scores(values, np.arange(len(values), dtype=np.int32), values > 1)


@given(count=st.integers(1, 12), other=st.integers(1, 12), data=st.data())
def test_two_shards_share_a_query_where_one_lies_in_both(count: int, other: int, data: st.DataObject) -> None:
    """Prevents: logits that were paid for and are not found, since another number of shards wrote them."""
    mine = QueryShard(data.draw(st.integers(0, count - 1)), count)
    its = QueryShard(data.draw(st.integers(0, other - 1)), other)
    both = any(query % count == mine.number and query % other == its.number for query in range(count * other))
    assert mine.may_share(its) == its.may_share(mine) == both
    assert may_hold(f"{its.prefix}0a1b.parquet", [mine]) == both


def test_names_without_a_shard_may_hold_any_pair() -> None:
    """Prevents: imported logits, and those of earlier versions, that no lookup reads any more."""
    mine = QueryShard(3, 64)
    assert shard_in(f"{mine.prefix}ffff.parquet") == mine
    for name in ("0a1b2c.parquet", "q3of0-1.parquet", "q3-1.parquet", "xq3of64-1.parquet"):
        assert shard_in(name) is None and may_hold(name, [mine])
    assert may_hold(f"{mine.prefix}ffff.parquet", [])


def test_a_lookup_opens_the_segments_of_its_shard_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: every shard that reads the logits of all others: shards x segments."""
    store, keys = LogitStore(tmp_path, "n"), keys_of(800)
    for number in range(8):  # 40 segments of shards, and one of any
        for start in range(number * 100, number * 100 + 95, 19):
            store.append(keys[start : start + 19], scores_of(np.arange(start, start + 19)), of=QueryShard(number, 8))
    loose = [row for number in range(8) for row in range(number * 100 + 95, number * 100 + 100)]
    store.append(keys[loose], scores_of(loose))
    opened: list[str] = []
    plain = Segment.open
    monkeypatch.setattr(Segment, "open", staticmethod(lambda path: (opened.append(path.name), plain(path))[1]))
    for number in range(8):
        rows = np.arange(number * 100, number * 100 + 100)
        assert (store.lookup(keys[rows], of=[QueryShard(number, 8)]).logits == rows).all()
    assert len(opened) == 40 + 8
    opened.clear()
    assert (store.lookup(keys).logits == np.arange(800)).all() and len(opened) == 41
    opened.clear()
    assert (store.lookup(keys[200:300], of=[QueryShard(2, 4), QueryShard(6, 16)]).logits == np.arange(200, 300)).all()
    assert len(opened) == 10 + 1, "shards 2 and 6 of 8"


def test_a_pile_of_a_shard_becomes_one_segment(tmp_path: Path) -> None:
    """Prevents: thousands of files of a few pairs each, for every later lookup and listing; pairs lost in the merging."""
    store, keys, mine = LogitStore(tmp_path, "n"), keys_of(60), QueryShard(1, 3)
    for row in range(40):
        store.append(keys[row : row + 1], scores_of([row]), of=mine)
    for row in range(40, 60):
        store.append(keys[row : row + 1], scores_of([row]), of=None if row % 2 else QueryShard(2, 3))
    assert store.merge_pile(mine, most=40) == 0 and len(store.segment_paths()) == 60
    assert store.merge_pile(mine) == 40
    assert [shard_in(path.name) for path in store.segment_paths()].count(mine) == 1 and len(store.segment_paths()) == 21
    assert store.merge_pile(None, most=5) == 10 and store.merge_pile(None, most=5) == 0
    assert store.size()[:2] == (60, 12) and store.rows() == 60
    assert store.compact() == (12, 3)
    assert (store.lookup(keys[:40], of=[mine]).logits == np.arange(40)).all() and (store.lookup(keys).logits == np.arange(60)).all()


@pytest.mark.parametrize("most", [1, 100, 1 << 20])
def test_merging_a_part_at_a_time_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Prevents: pairs at the bounds of the parts that are lost, doubled, or out of key order in a merged segment."""
    monkeypatch.setattr("data.logits.store._MERGED_ROWS", most)
    store, keys = LogitStore(tmp_path, "n"), keys_of(1000)
    for start in range(0, 1000, 125):
        store.append(keys[start : start + 125], scores_of(np.arange(start, start + 125)))
    store.append(keys[:10], scores_of(np.arange(10) + 1))  # scored twice: the smaller counts
    assert store.compact() == (9, 1) and store.rows() == 1000 and store.verify() == []
    assert (store.lookup(keys).logits == np.arange(1000)).all()


def test_two_compactions_at_once_store_no_pair_twice(tmp_path: Path) -> None:
    """Prevents: two jobs that end together, each of which leaves the same pairs in a segment of its own."""
    keys = keys_of(400)
    for number in range(5):
        store, start = LogitStore(tmp_path, str(number)), threading.Barrier(2)
        for row in range(0, 400, 20):
            store.append(keys[row : row + 20], scores_of(np.arange(row, row + 20)), of=QueryShard(0, 2))

        def merge(store: LogitStore = store, start: threading.Barrier = start) -> None:
            start.wait()
            store.merge_pile(QueryShard(0, 2), most=1)

        threads = [threading.Thread(target=merge) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (store.lookup(keys).logits == np.arange(400)).all() and store.rows() == 400
