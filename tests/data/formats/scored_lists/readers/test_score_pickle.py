"""Pickles of scores: read as data, never run."""

from __future__ import annotations

import contextlib
import gzip
import io
import os
import pickle
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import UserError
from data.formats.scored_lists.readers.score_pickle import read_scores

SCORES: dict[Any, dict[Any, Any]] = {867436: {5238393: 9.25, 12: -3.5, 70000: 0}, 3: {300: 1e-300}}
PROTOCOLS = pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))


def write(folder: Path, content: bytes) -> Path:
    path = folder / "scores.pkl"
    path.write_bytes(content)
    return path


def items(path: Path) -> list[tuple[Any, list[Any], list[Any]]]:
    return list(read_scores(path))


def plain(scores: dict[Any, dict[Any, Any]]) -> list[tuple[Any, list[Any], list[Any]]]:
    return [(query, list(own), list(own.values())) for query, own in scores.items()]


@PROTOCOLS
def test_protocols_and_gzip(tmp_path: Path, protocol: int) -> None:
    """Prevents: scores of one protocol alone, or of an unpacked file alone."""
    content = pickle.dumps(SCORES, protocol)
    assert items(write(tmp_path, content)) == items(write(tmp_path, gzip.compress(content))) == plain(SCORES)


IDS = st.one_of(st.integers(-(1 << 70), 1 << 70), st.text(max_size=8))
NUMBERS = st.one_of(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(1 << 60), 1 << 60), st.none())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(scores=st.dictionaries(IDS, st.dictionaries(IDS, NUMBERS, max_size=5), max_size=6), protocol=st.integers(2, 5))
def test_what_pickle_itself_reads(tmp_path: Path, scores: dict[Any, dict[Any, Any]], protocol: int) -> None:
    """Prevents: an opcode of numbers, texts or memo that gives another value than Python's own reader."""
    content = pickle.dumps(scores, protocol)
    expected = [
        (query, ids, [None if score is None else float(score) for score in own]) for query, ids, own in plain(pickle.loads(content))
    ]
    assert items(write(tmp_path, content)) == expected


@PROTOCOLS
def test_numbers_of_numpy(tmp_path: Path, protocol: int) -> None:
    """Prevents: scores as a model gives them, in fp32, refused; another byte order; numpy called by what a file says."""
    kinds = [np.float32(1.1), np.float64(-2.5), np.float16(0.25), np.array(3.5, ">f4")[()], np.int64(-7), np.uint8(200)]
    scores = {np.int64(8): {np.int32(place): kind for place, kind in enumerate(kinds)}, 9: {"a": np.float32("nan"), "b": np.float32(1.1)}}
    content = pickle.dumps(scores, protocol)
    expected = [(8, list(range(6)), [float(kind) for kind in kinds]), (9, ["a", "b"], [None, float(np.float32(1.1))])]
    assert items(write(tmp_path, content)) == expected
    if protocol < 4:  # names are lines there: that of numpy 1 is put in
        assert b"numpy._core" in content
        assert items(write(tmp_path, content.replace(b"numpy._core", b"numpy.core"))) == expected


@PROTOCOLS
def test_many_entries(tmp_path: Path, protocol: int) -> None:
    """Prevents: entries lost between the thousands in which pickle writes a dict; texts that are met again through the memo."""
    scores: dict[Any, Any] = {
        f"q{query}": {f"d{place}": query + place / 8 for place in range(2500 if query == 3 else 2)} for query in range(1500)
    }
    assert items(write(tmp_path, pickle.dumps(scores, protocol))) == plain(scores)


class Hostile:
    """Runs a command where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self._path}",)


@PROTOCOLS
def test_nothing_is_run(tmp_path: Path, protocol: int) -> None:
    """Prevents: a file from the hub that runs what it likes."""
    trace = tmp_path / "was_here"
    for thing in (Hostile(trace), {1: Hostile(trace)}, {1: {2: Hostile(trace)}}, {Hostile(trace): {}}, [Hostile(trace)]):
        with pytest.raises(UserError, match=r"scores\.pkl, byte \d+: opcode \w+: (this pickle would run code|it holds something else)"):
            items(write(tmp_path, pickle.dumps(thing, protocol)))
    pickle.loads(pickle.dumps(Hostile(trace)))
    assert trace.exists(), "the pickle was no threat, so nothing was tested"


CALLS = [b"cos\nsystem\n.", b"(S'x'\nios\nsystem\n.", b"\x8c\x02os\x8c\x06system\x93.", b"}(K\x01}R", b"}b.", b"\x82\x01.", b"P1\n."]


@pytest.mark.parametrize("body", CALLS)
def test_opcodes_that_call(tmp_path: Path, body: bytes) -> None:
    """Prevents: a way to code that Python's own writer does not take."""
    with pytest.raises(UserError, match="opcode"):
        items(write(tmp_path, b"\x80\x04" + body))


@pytest.mark.parametrize(
    "thing, why",
    [
        ({1: {2: np.complex64(1.5)}}, "would run code"),
        ({1: {2: np.array([1.5])}}, "would run code"),
        ({np.str_("q"): {2: 1.5}}, "would run code"),
        ({1: {2: (1.5,)}}, "a score is no number"),
        (OrderedDict({1: {2: 1.5}}), "would run code"),
        ({1: {2: True}}, "true or false"),
        ({1: {2: "1.5"}}, "a score is no number"),
        ({1: {2: {3: 1.0}}}, "a score is no number"),
        ({1: {(2, 3): 1.0}}, "a key is neither"),
        ({1: {None: 1.0}}, "a key is neither"),
        ({1: 2.5}, "query 1 has no dict of scores"),
        ({1: [2.5]}, "something else than dicts of numbers"),
        ([1], "something else than dicts of numbers"),
        (3, "something else than a dict of dicts"),
    ],
)
def test_other_things_are_told(tmp_path: Path, thing: Any, why: str) -> None:
    """Prevents: a pickle of another form that is read in part, or ends in a traceback."""
    with pytest.raises(UserError, match=why):
        items(write(tmp_path, pickle.dumps(thing, 4)))


def test_text_protocols_and_other_files(tmp_path: Path) -> None:
    """Prevents: a traceback on what is no binary pickle."""
    for content in (pickle.dumps(SCORES, 0), pickle.dumps(SCORES, 1), b"", b"{}", b"\x80", b"\x80\x09."):
        with pytest.raises(UserError, match="no pickle of protocol 2 to 5"):
            items(write(tmp_path, content))
    with pytest.raises(UserError, match="cannot be read: No such file"):
        items(tmp_path / "none.pkl")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.integers(0, 120), flip=st.integers(0, 120), value=st.integers(0, 255), protocol=st.sampled_from([2, 4]))
def test_damage_is_told(tmp_path: Path, cut: int, flip: int, value: int, protocol: int) -> None:
    """Prevents: a traceback, or an endless loop, on a file that is cut short or damaged."""
    content = bytearray(pickle.dumps({"a": {"b": 1.5, "c": 2.0}, "d": {"b": 0.5, 7: 3}}, protocol))
    short = write(tmp_path, bytes(content[: min(cut, len(content) - 1)]))
    with pytest.raises(UserError):
        items(short)
    content[flip % len(content)] = value
    with contextlib.suppress(UserError):
        items(write(tmp_path, bytes(content)))


def test_a_gzip_cut_short(tmp_path: Path) -> None:
    """Prevents: the first part of a file taken for all of it."""
    with pytest.raises(UserError, match="cut short"):
        items(write(tmp_path, gzip.compress(pickle.dumps(SCORES, 4))[:-12]))


def test_a_dict_that_stands_twice(tmp_path: Path) -> None:
    """Prevents: scores of a shared dict that go to one of its queries only."""
    own = {1: 0.5}
    with pytest.raises(UserError, match="stands in it twice"):
        items(write(tmp_path, pickle.dumps({1: own, 2: own}, 4)))


@pytest.mark.medium
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Prevents: 160 million pairs held as Python objects."""

    def peak(queries: int) -> int:
        buffer = io.BytesIO()
        pickle.dump({query: {1000 + place: float(place) for place in range(8)} for query in range(queries)}, buffer, 4)
        path = write(tmp_path, buffer.getvalue())
        del buffer
        tracemalloc.start()
        count = sum(len(ids) for _, ids, _ in read_scores(path))
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert count == 8 * queries
        return held

    assert peak(4_000) < 1.1 * peak(2_000)
