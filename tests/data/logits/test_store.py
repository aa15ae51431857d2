"""The teacher-logit store: like a dictionary, whoever wrote it and in whatever order."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.digests import pair_key
from data.errors import DamagedShard
from data.logits import segment as logit_segment
from data.logits.segment import BUCKETS, Keys, Scores, as_keys, buckets_of
from data.logits.store import LogitStore, namespace_note, namespaces
from data.tables.shards import read_footer, write_shard


def keys_of(count: int) -> Keys:
    return as_keys([pair_key("query", str(number)) for number in range(count)])


def scores_of(logits: object) -> Scores:
    """Logits with token counts and cuts that follow from them, so that a mix-up of columns or rows shows."""
    values = np.array(logits, dtype=np.float32)
    return Scores(values, (np.nan_to_num(np.abs(values)) % 100).astype(np.int32), values < 0)


def equal(found: Scores, expected: Scores) -> bool:
    known = ~np.isnan(expected.logits)
    return (
        bool(np.array_equal(found.logits, expected.logits, equal_nan=True))
        and bool((found.token_counts[known] == expected.token_counts[known]).all())
        and bool((found.truncated[known] == expected.truncated[known]).all())
    )


def damage(path: Path) -> None:
    """Flip a bit of the first logits."""
    column = pq.read_metadata(path).row_group(0).column(1)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 3] ^= 1
    path.write_bytes(content)


def test_lookup_in_any_order_with_repeats(tmp_path: Path) -> None:
    """Prevents: logits joined back to the wrong pairs."""
    store, keys = LogitStore(tmp_path, "n"), keys_of(200)
    store.append(keys, scores_of(np.arange(200) - 100))
    wanted = np.array([*range(199, -1, -3), 5, 5, 0])
    assert equal(store.lookup(keys[wanted]), scores_of(wanted - 100))
    assert len(store.lookup(keys[:0]).logits) == 0


def test_a_pair_never_scored_is_nan(tmp_path: Path) -> None:
    """Prevents: a missing logit that counts as 0."""
    store, keys = LogitStore(tmp_path, "n"), keys_of(40)
    assert np.isnan(store.lookup(keys).logits).all()
    store.append(keys[::2], scores_of(np.zeros(20)))
    found = store.lookup(keys).logits
    assert (found[::2] == 0).all() and np.isnan(found[1::2]).all()
    assert np.isnan(LogitStore(tmp_path, "another teacher").lookup(keys).logits).all()


@pytest.mark.parametrize("order", [(1.0, 2.0), (2.0, 1.0)])
@pytest.mark.parametrize("compact", [False, True])
def test_two_writers_of_one_pair(tmp_path: Path, order: tuple[float, float], compact: bool) -> None:
    """Prevents: a pair that has one logit for one reader and another one for the next, by the random names of the segments."""
    for logit in order:
        LogitStore(tmp_path, "n").append(keys_of(1), scores_of([logit]))
    if compact:
        assert LogitStore(tmp_path, "n").compact() == (2, 1)
    assert LogitStore(tmp_path, "n").lookup(keys_of(1)).logits.tolist() == [1.0]


# Keys of which many share their first half: the lookup must tell them apart by the second.
HALVES = st.sampled_from([0, 1, 2**60 - 1, 2**60, 2**63, 2**64 - 1])
GROUPS = st.sampled_from([1, 5, 4096])
WRITES = st.lists(st.dictionaries(st.tuples(HALVES, HALVES), st.floats(-1e4, 1e4, width=32), min_size=1, max_size=12), max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    writes=WRITES, asked=st.lists(st.tuples(HALVES, HALVES), min_size=1), compact=st.booleans(), group_rows=st.sampled_from([1, 5, 4096])
)
def test_is_a_dictionary_of_the_smaller_logits(
    tmp_path_factory: pytest.TempPathFactory,
    writes: list[dict[tuple[int, int], float]],
    asked: list[tuple[int, int]],
    compact: bool,
    group_rows: int,
) -> None:
    """Prevents: any order of appends, repeats and compactions that loses or changes a logit, whole segments at once or bucket by bucket."""
    store, expected = LogitStore(tmp_path_factory.mktemp("store"), "n"), dict[tuple[int, int], float]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logit_segment, "_GROUP_ROWS", group_rows)
        for written in writes:
            store.append(np.array(list(written), dtype=np.uint64), scores_of(list(written.values())))
            for key, logit in written.items():
                expected[key] = min(logit, expected.get(key, logit))
        if compact:
            store.compact()
        found = store.lookup(np.array(asked, dtype=np.uint64))
    np.testing.assert_array_equal(found.logits, np.array([expected.get(key, np.nan) for key in asked], dtype=np.float32))
    assert store.size()[0] == len(expected) and store.verify() == []


@pytest.mark.parametrize(("group_rows", "groups"), [(1, BUCKETS), (100, 4), (4096, 1)])
def test_segments_hold_their_buckets_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group_rows: int, groups: int) -> None:
    """Prevents: a lookup of one bucket that must read all of a large segment, or small ones of a row group a bucket."""
    monkeypatch.setattr(logit_segment, "_GROUP_ROWS", group_rows)
    store, keys = LogitStore(tmp_path, "n"), keys_of(500)
    path = store.append(keys, scores_of(np.arange(500)))
    assert read_footer(path) == {"bucket_rows": np.bincount(buckets_of(keys).astype(int), minlength=BUCKETS).tolist()}
    assert abs(pq.read_metadata(path).num_row_groups - groups) <= 1
    assert all(store.lookup(keys[n : n + 1]).logits.tolist() == [n] for n in range(0, 500, 7))


def test_many_writers_readers_and_a_compaction_at_once(tmp_path: Path) -> None:
    """Prevents: appends that overwrite each other, or a pair that is missing while its segment is merged."""
    keys, lost = keys_of(1600), []
    LogitStore(tmp_path, "n").append(keys[:800], scores_of(np.ones(800)))
    stop = threading.Event()

    def write(part: int) -> None:
        for start in range(0, 200, 20):
            LogitStore(tmp_path, "n").append(keys[800 + part * 200 :][start : start + 20], scores_of(np.ones(20)))

    def read() -> None:
        while not stop.is_set():
            lost.append(int(np.isnan(LogitStore(tmp_path, "n").lookup(keys[:800]).logits).sum()))

    def compact() -> None:
        while not stop.is_set():
            LogitStore(tmp_path, "n").compact()

    writers = [threading.Thread(target=write, args=(part,)) for part in range(4)]
    others = [threading.Thread(target=read), threading.Thread(target=compact), threading.Thread(target=compact)]
    for thread in [*others, *writers]:
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    for thread in others:
        thread.join()
    assert lost and not any(lost)
    assert (LogitStore(tmp_path, "n").lookup(keys).logits == 1).all()


def test_compaction_leaves_large_segments_alone(tmp_path: Path) -> None:
    """Prevents: hours of copying for a few new pairs."""
    store, keys = LogitStore(tmp_path, "n"), keys_of(400)
    large = store.append(keys[:200], scores_of(np.zeros(200)))
    for start in range(200, 400, 20):
        store.append(keys[start : start + 20], scores_of(np.zeros(20)))
    assert store.compact(segment_rows=100) == (11, 3)
    assert large in store.segment_paths() and (store.lookup(keys).logits == 0).all()
    assert store.compact(segment_rows=100)[1] == 3


def test_faults_of_ours_are_refused(tmp_path: Path) -> None:
    """Prevents: a stored NaN, which means absent."""
    with pytest.raises(AssertionError):
        LogitStore(tmp_path, "n").append(keys_of(2), scores_of([1, np.nan]))


def test_a_file_in_the_making_is_not_read(tmp_path: Path) -> None:
    """Prevents: a reader that stops, or reads half, while another job appends."""
    store = LogitStore(tmp_path, "n")
    store.append(keys_of(1), scores_of([1.0]))
    (store.folder / ".half.parquet.123.tmp").write_bytes(b"PAR1")
    (store.folder / ".half.parquet").write_bytes(b"PAR1")
    assert store.lookup(keys_of(1)).logits.tolist() == [1.0]


@pytest.mark.parametrize("short", [False, True])
def test_a_damaged_segment_is_set_aside(tmp_path: Path, short: bool) -> None:
    """Prevents: paid logits that change without a word; one bad segment that stops all; pairs of whole segments scored again."""
    warnings: list[str] = []
    store, keys = LogitStore(tmp_path, "n", warn=warnings.append), keys_of(40)
    hit = store.append(keys[:20], scores_of(np.ones(20)))
    store.append(keys[20:], scores_of(np.ones(20)))
    if short:
        hit.write_bytes(hit.read_bytes()[:-30])
    else:
        damage(hit)
    found = store.lookup(keys).logits
    assert np.isnan(found[:20]).all() and (found[20:] == 1).all()
    assert len(warnings) == 1 and hit.name in warnings[0] and hit.with_name(f"{hit.name}.damaged").exists()


FOREIGN_FOOTERS: list[tuple[str, dict[str, object] | None]] = [
    *(("of a segment", footer) for footer in (None, {}, {"bucket_rows": 3}, {"bucket_rows": [2, 1]}, {"bucket_rows": [2] + [0] * 15})),
    ("of a segment", {"bucket_rows": ["3"] + [0] * 15}),
    ("of another table", {"bucket_rows": [3] + [0] * 15}),
]


@pytest.mark.parametrize(("columns", "footer"), FOREIGN_FOOTERS, ids=str)
def test_a_file_from_elsewhere_is_set_aside(tmp_path: Path, columns: str, footer: dict[str, object] | None) -> None:
    """Prevents: one Parquet file copied into the store by mistake that stops every job, or whose rows are taken for logits."""
    warnings: list[str] = []
    store, keys = LogitStore(tmp_path, "n", warn=warnings.append), keys_of(20)
    pairs = pq.read_table(store.append(keys, scores_of(np.ones(20)))).replace_schema_metadata(None)
    table = pairs.slice(0, 3) if columns == "of a segment" else pa.table({"x": [1, 2, 3]})
    foreign = store.folder / "foreign.parquet"
    if footer is None:
        pq.write_table(table, foreign)
    else:
        write_shard(foreign, table, footer)
    assert (store.lookup(keys).logits == 1).all() and store.size()[:2] == (20, 1)
    assert len(warnings) == 1 and foreign.name in warnings[0] and foreign.with_name(f"{foreign.name}.damaged").exists()


def test_verify_names_the_damaged_segment(tmp_path: Path) -> None:
    """Prevents: a check that reads footers only, or that does not say which file it was."""
    store, keys = LogitStore(tmp_path, "n"), keys_of(40)
    hit = store.append(keys[:20], scores_of(np.ones(20)))
    store.append(keys[20:], scores_of(np.ones(20)))
    assert store.verify() == []
    damage(hit)
    (fault,) = store.verify()
    assert hit.name in fault and len(store.segment_paths()) == 1 and store.verify() == []


def test_a_disk_that_cannot_be_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a network file system's hiccup that throws paid logits away."""
    store = LogitStore(tmp_path, "n")
    path = store.append(keys_of(5), scores_of(np.ones(5)))

    def fails(*unused: object, **more: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("pyarrow.parquet.ParquetFile", fails)
    with pytest.raises(DamagedShard, match="Input/output"):
        store.lookup(keys_of(5))
    assert path.exists()


def test_sizes_and_notes(tmp_path: Path) -> None:
    """Prevents: `prep cache stats` that counts a pair twice and so promises more than is there."""
    store = LogitStore(tmp_path, "n")
    store.describe(key={"weights": "x"}, name="a teacher")
    store.describe(key={"weights": "x"}, name="another name")
    for _ in range(2):
        store.append(keys_of(10), scores_of(np.ones(10)))
    assert namespaces(tmp_path) == ["n"] and store.size()[:2] == (10, 2) and store.size()[2] > 0
    assert namespace_note(tmp_path, "n") == {"name": "a teacher", "key": {"weights": "x"}}
    assert json.loads((store.folder / "namespace.json").read_text())["key"] == {"weights": "x"}
    for damaged in (b"", b"[1]", b'{"name": "x"}', b'{"name": "x", "key": 3}', b"\xff"):
        (tmp_path / "teacher_logits" / "n" / "namespace.json").write_bytes(damaged)
        assert namespace_note(tmp_path, "n") == {"name": "?", "key": {}}
    assert namespaces(tmp_path / "elsewhere") == []
    store.delete()
    assert namespaces(tmp_path) == [] and not list((tmp_path / "teacher_logits").iterdir())


@pytest.mark.parametrize("bits", [0, 1, 4, 5, 9])
def test_pieces_are_all_pairs_in_key_order(tmp_path: Path, bits: int) -> None:
    """Prevents: a pair that is lost or doubled at the bounds of pieces, with pieces of several buckets and buckets of several pieces."""
    store, keys = LogitStore(tmp_path, "n"), keys_of(300)
    edges = np.array([[0, 0], [0, 1], [2**64 - 1, 2**64 - 1], [2**60, 0], [2**60 - 1, 2**64 - 1], [2**63, 5]], dtype=np.uint64)
    everything = np.concatenate([keys, edges])
    store.append(everything, scores_of(np.arange(306)))
    store.append(everything[100:200], scores_of(np.arange(100, 200) + 1))
    pieces = list(store.pieces(bits))
    assert len(pieces) == 2**bits
    found = np.concatenate([keys for keys, _ in pieces])
    order = np.lexsort((everything[:, 1], everything[:, 0]))
    assert (found == everything[order]).all()
    assert equal(Scores.concatenated([scores for _, scores in pieces]), scores_of(np.arange(306)[order]))


def test_pieces_while_others_compact_and_damage(tmp_path: Path) -> None:
    """Prevents: an export that ends, or lacks pairs, where another job merges segments under it."""
    told: list[str] = []
    store, keys = LogitStore(tmp_path, "n", warn=told.append), keys_of(3000)
    for start in range(0, 3000, 500):
        store.append(keys[start : start + 500], scores_of(np.arange(start, start + 500)))
    pieces = store.pieces(4)
    found = [next(pieces)[0]]
    assert store.compact() == (6, 1)
    found += [next(pieces)[0] for _ in range(5)]
    store.append(keys_of(3001)[3000:], scores_of([1.0]))
    (tmp_path / "teacher_logits" / "n" / "odd.parquet").write_bytes(b"none")
    found += [keys for keys, _ in pieces]
    assert {key.tobytes() for key in np.concatenate(found)} >= {key.tobytes() for key in keys}
