"""Whole arrays as batches: to the number what padding each sequence by itself gives, and no question to the device."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from retrieval.batches.encoded import EncodedPairs, PairEncoding, ragged
from retrieval.batches.in_turn import OutOfMemory
from retrieval.batches.on_device import OnDevice
from retrieval.batches.padded import pad_pairs, pad_rows
from retrieval.compute import unpadded
from retrieval.teachers.cross_encoder import TorchCrossEncoder
from retrieval.teachers.pair_tokens import PairTokenizer
from retrieval.teachers.scoring import score_pairs

SEQUENCES = st.lists(st.lists(st.tuples(st.integers(0, 30_000), st.integers(0, 1)), min_size=1, max_size=12), min_size=1, max_size=9)


def encodings(sequences: list[list[tuple[int, int]]]) -> list[PairEncoding]:
    return [PairEncoding(*(np.array(column, np.int32) for column in zip(*one, strict=True)), truncated=len(one) > 5) for one in sequences]


def plainly(sequences: list[list[int]], length: int, value: int) -> list[list[int]]:
    return [one + [value] * (length - len(one)) for one in sequences]


@given(sequences=SEQUENCES, more=st.integers(0, 5), value=st.integers(0, 9), data=st.data())
def test_padded_rows_are_each_sequence_padded_alone(sequences: Any, more: int, value: int, data: st.DataObject) -> None:
    """Prevents: a token of the next pair in a batch, a segment id a place too far, or padding that is read as text."""
    rows = data.draw(st.permutations(range(len(sequences))).map(lambda order: order[: max(1, len(order) - 2)]))
    length = max(len(sequences[row]) for row in rows) + more
    ids, segments = ([[token[part] for token in sequences[row]] for row in rows] for part in (0, 1))
    expected = [plainly(ids, length, value), plainly([[1] * len(one) for one in ids], length, 0), plainly(segments, length, 0)]
    pairs = EncodedPairs.of(encodings(sequences))
    found = pad_pairs(pairs, rows, value=value, length=length)
    assert [part.tolist() for part in found] == expected and {part.dtype for part in found} == {np.dtype(np.int64)}
    assert [part.tolist() for part in pad_rows(pairs.ids, rows, value=value, length=length)] == expected[:2]

    given_to_model: list[Any] = []

    def forward(*parts: torch.Tensor) -> torch.Tensor:
        given_to_model.extend(parts)
        return parts[0].sum(1)

    device = OnDevice(forward, pairs.ids, segments=pairs.segments, pad_id=value, device="cpu")
    results = device.launch(device.assemble(rows, length))()
    assert [part.tolist() for part in given_to_model] == expected
    assert results.dtype == np.float32 and results.tolist() == [sum(one) for one in expected[0]]


def test_ids_of_any_whole_type() -> None:
    """Prevents: tokens from someone's arrays of int64, which a processor takes, that a GPU refuses."""
    tokens = ragged([np.array([5, 6], np.int64), np.array([7], np.int64)])
    batch = OnDevice(lambda *parts: parts[0], tokens, pad_id=9, device="cpu").assemble([1, 0], 2)
    assert batch.ids.tolist() == [[7, 9], [5, 6]] and batch.ids.dtype == torch.int32


@given(sequences=SEQUENCES)
def test_many_pairs_are_the_single_ones(sequences: Any) -> None:
    """Prevents: a pair that is cut at another's bounds when it is taken out again."""
    singles = encodings(sequences)
    pairs = EncodedPairs.of(singles)
    for found in (list(pairs), pairs[:], [pairs[number - len(singles)] for number in range(len(singles))]):
        assert [(one.ids.tolist(), one.segments.tolist(), one.truncated) for one in found] == [
            (one.ids.tolist(), one.segments.tolist(), one.truncated) for one in singles
        ]
    assert pairs[0].segments.dtype == np.int32 and EncodedPairs.of(pairs) is pairs
    lists = [one.ids.tolist() for one in singles]
    assert [part.tolist() for part in ragged(lists).part(0, len(lists))] == lists


class Calls(TorchDispatchMode):
    """Notes which operations are asked of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.masks = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.overloadpacket.__name__)
        if "index" in self.names[-1]:
            flat = torch.utils._pytree.tree_leaves(args)
            self.masks += any(isinstance(part, torch.Tensor) and part.dtype == torch.bool for part in flat[1:])
        return func(*args, **(kwargs or {}))


WAITS = {"nonzero", "_local_scalar_dense", "item", "masked_select", "is_nonzero"}
PAIRS = [("ha bo", "di " * n) for n in (1, 40, 7, 3, 22)]


def test_a_launch_asks_the_device_for_nothing(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a host that stops at each batch until the device has counted its own tokens."""
    teacher = TorchCrossEncoder(models.teacher, precision="fp32", device="cpu", unpad=True)
    assert teacher.packs
    monkeypatch.setattr(unpadded, "_sequence_by_sequence", lambda query, key, value, pack, scaling: value)  # the kernel's stand-in does
    pairs = PairTokenizer(models.teacher, max_tokens=64).encode(PAIRS)
    device = teacher.on_device(pairs)
    batch = device.assemble(range(len(pairs)), 64)
    with Calls() as calls:
        wait = device.launch(batch)
    assert wait().shape == (len(pairs),)
    assert len(calls.names) > 50 and not WAITS & set(calls.names) and not calls.masks
    with Calls() as calls:  # without the host's lengths
        teacher.logits(*pad_pairs(pairs, range(len(pairs)), value=0, length=64))
    assert WAITS & set(calls.names)


def test_a_refused_batch_lets_go_of_what_it_computed() -> None:
    """Prevents: a halved batch that does not fit either, since the error keeps the states of the one before it."""
    states: list[weakref.ref[torch.Tensor]] = []

    def forward(*parts: torch.Tensor) -> torch.Tensor:
        state = torch.zeros(3)
        states.append(weakref.ref(state))
        raise torch.OutOfMemoryError("full")

    device = OnDevice(forward, ragged([[1, 2]]), pad_id=0, device="cpu")
    gc.disable()  # what a cycle holds would go some time later
    try:
        with pytest.raises(OutOfMemory, match="full") as refused:
            device.launch(device.assemble([0], 2))
        assert refused.value.__context__ is None and states[0]() is None
    finally:
        gc.enable()


def test_scoring_on_a_device_is_scoring_at_once(models: Any) -> None:
    """Prevents: a pipeline whose logits differ from those of its batches computed one by one, to the bit."""
    pairs = PairTokenizer(models.teacher, max_tokens=64).encode(PAIRS * 5)
    teacher = TorchCrossEncoder(models.teacher, precision="fp32", device="cpu", unpad=True, batch_tokens=200)
    pipelined = score_pairs(teacher, pairs, pad_id=0)
    del teacher.on_device
    assert pipelined.tolist() == score_pairs(teacher, pairs, pad_id=0).tolist()
