"""Search on devices, which are the CPU here: the bits of the processor's search, whatever the devices keep and however many there are."""

from __future__ import annotations

import threading
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retrieval.search.devices import engine as engines
from retrieval.search.devices import rescoring
from retrieval.search.devices.corpus import DeviceBlock, DeviceCorpus, InMemory
from retrieval.search.devices.engine import DeviceEngine, device_engines
from retrieval.search.devices.rescoring import ExactQueries, rescored
from retrieval.search.devices.tf32 import tf32_products
from retrieval.search.exact import exact_search
from retrieval.search.matmul import norms_of


def draw(rows: int, size: int, *, seed: int) -> NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((rows, size)).astype(np.float16)


def same(found: tuple[NDArray, NDArray], expected: tuple[NDArray, NDArray]) -> bool:
    return np.array_equal(found[0], expected[0]) and np.array_equal(found[1], expected[1])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks and tiles of a small search."""
    monkeypatch.setattr("retrieval.search.devices.corpus.BLOCK_ROWS", 512)
    monkeypatch.setattr(engines, "_TILE_QUERIES", 16)
    monkeypatch.setattr(rescoring, "_AT_ONCE", 1 << 14)


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("rows", [2, 700, 6000])
@pytest.mark.parametrize("devices", [1, 3])
@pytest.mark.parametrize("kept", [0, 40_000, 1 << 40])
def test_devices_find_what_a_processor_finds(rows: int, devices: int, kept: int) -> None:
    """Prevents: other passages or scores from GPUs, a range of rows left out or searched twice, another result where blocks are read again
    or kept. Twins lie at the cut."""
    corpus, queries = draw(rows, 12, seed=2), draw(40, 12, seed=3)
    corpus[rows // 2 :: 3] = corpus[rows // 2]
    expected = exact_search(queries, [(0, corpus)], k=30)
    on_devices = DeviceCorpus(InMemory(corpus), ["cpu"] * devices, room=lambda device: kept)
    for _ in range(2):
        assert same(exact_search(queries, on_devices, k=30, engines=device_engines(on_devices, 30)), expected)
    assert np.array_equal(np.concatenate([vectors for _, vectors in on_devices]), corpus)
    wanted = np.random.default_rng(0).integers(0, rows, 50)
    assert np.array_equal(on_devices.vectors_of(wanted), corpus[wanted])
    assert sum(block.vectors.nbytes for share in on_devices.shares for block in share.kept) <= devices * kept


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1), size=st.sampled_from([3, 16, 100]), scale=st.sampled_from([1e-3, 1.0, 30.0, 200.0]), fp16=st.booleans()
)  # fmt: skip
def test_scores_of_a_device_have_the_processors_bits(seed: int, size: int, scale: float, fp16: bool) -> None:
    """Prevents: a float64 sum in a device's order that rounds to another fp32 number, and with it ties in another order."""
    generator = np.random.default_rng(seed)
    vectors = (scale * generator.standard_normal((200, size))).astype(np.float16)
    queries = generator.standard_normal((7, size)).astype(np.float16 if fp16 else np.float32)
    corpus = DeviceCorpus(InMemory(vectors), ["cpu"])
    found = DeviceEngine(corpus)(queries, corpus, 50)
    assert found.scores is not None
    scores, rows = exact_search(queries, [(0, vectors)], k=200)
    by_row = np.take_along_axis(scores, np.argsort(rows, axis=1), axis=1)
    assert np.array_equal(found.scores, np.take_along_axis(by_row, found.rows, axis=1))


def exactly(query: NDArray[np.float16], passage: NDArray[np.float16]) -> Fraction:
    return sum((Fraction(float(a)) * Fraction(float(b)) for a, b in zip(query, passage, strict=True)), Fraction())


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32 - 1), size=st.integers(1, 300), spread=st.integers(0, 24))
def test_sums_of_fp16_vectors_of_moderate_length_are_exact(seed: int, size: int, spread: int) -> None:
    """Prevents: the claim that such a sum has one value in every order, where it has not: then devices would differ and nobody look."""
    generator = np.random.default_rng(seed)
    two = generator.standard_normal((2, size)) * 2.0 ** -generator.integers(0, spread + 1, (2, size))
    query, passage = (5.6 * two / np.maximum(1e-30, np.linalg.norm(two, axis=1, keepdims=True))).astype(np.float16)
    assert float(norms_of(query[None])[0] * norms_of(passage[None])[0]) < 32
    expected = exactly(query, passage)
    for order in (np.arange(size), generator.permutation(size)):
        products = query[order].astype(np.float64) * passage[order].astype(np.float64)
        assert Fraction(float(np.cumsum(products)[-1])) == expected == Fraction(float(torch.from_numpy(products).sum()))


def test_only_sums_that_may_round_otherwise_go_to_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: sums close to a rounding's edge trusted to the device; and all of them sent back, which would make it idle."""
    vectors, queries = draw(400, 64, seed=0) * np.float16(20), draw(8, 64, seed=1).astype(np.float32) * 1.0001
    exact = ExactQueries(torch.from_numpy(queries.astype(np.float64)), norms_of(queries), is_fp16=False)
    block = DeviceBlock(0, torch.from_numpy(vectors), largest_norm=1.001 * float(norms_of(vectors).max()))
    of_query, columns = torch.arange(8).repeat_interleave(400), torch.arange(400).repeat(8)
    sent: list[int] = []
    again = rescoring.sampled_products

    def counted(queries: torch.Tensor, vectors: NDArray, of_query: NDArray, columns: NDArray) -> NDArray:
        sent.append(len(columns))
        return again(queries, vectors, of_query, columns)

    monkeypatch.setattr(rescoring, "sampled_products", counted)
    expected = (queries.astype(np.float64) @ vectors.astype(np.float64).T).astype(np.float32).reshape(-1)
    assert np.array_equal(rescored(exact, exact.host, block, of_query, columns).numpy(), expected)
    assert sum(sent) < 32
    monkeypatch.setattr(rescoring, "_OFF", 1e-9)  # as if a device were so far off: more lie near an edge
    assert np.array_equal(rescored(exact, exact.host, block, of_query, columns).numpy(), expected)
    assert sum(sent) > 32


def test_queries_that_fp16_cannot_hold_are_proved_on_a_device_too() -> None:
    """Prevents: a query's rounding to fp16, which stored ones do not have, taken for nothing in the proof."""
    vectors = (1 + 0.001 * np.random.default_rng(0).standard_normal((4000, 24))).astype(np.float16)
    queries = (1 + 0.0003 * np.random.default_rng(1).standard_normal((20, 24))).astype(np.float32)
    corpus = DeviceCorpus(InMemory(vectors), ["cpu"])
    found = exact_search(queries, corpus, k=10, engines=[(DeviceEngine(corpus), 11)])
    assert same(found, exact_search(queries, [(0, vectors)], k=10))


def test_what_a_device_cannot_search_is_refused() -> None:
    """Prevents: vectors in fp32 that TF32 rounds behind the proof's back; an error out of the device where sizes differ."""
    corpus = DeviceCorpus(InMemory(draw(9, 4, seed=0)), ["cpu"])
    with pytest.raises(ValueError, match="3 dimensions, the corpus has 4"):
        DeviceEngine(corpus)(draw(2, 3, seed=1), corpus, 2)
    single = DeviceCorpus(InMemory(draw(9, 4, seed=0).astype(np.float32)), ["cpu"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="fp16, and these are float32"):
        DeviceEngine(single)(draw(2, 4, seed=1), single, 2)


@pytest.mark.parametrize("legacy", [None, True, False])
@pytest.mark.parametrize("new", [None, "tf32", "ieee"])
def test_the_callers_tf32_setting_is_restored(legacy: bool | None, new: str | None) -> None:
    """Prevents: a search that leaves fp32 products of a training in TF32, or the two settings at odds, so that reading one raises."""
    products = torch.backends.cuda.matmul
    try:
        if legacy is not None:
            products.allow_tf32 = legacy
        if new is not None:
            products.fp32_precision = new
        before = products.fp32_precision
        readable = legacy is None or new is None or legacy == (new == "tf32")
        with pytest.raises(KeyError), tf32_products():
            assert products.fp32_precision == "tf32"
            raise KeyError
        assert products.fp32_precision == before
        if readable and (legacy is not None or new != "tf32"):
            assert products.allow_tf32 == (before == "tf32")
    finally:
        products.allow_tf32 = False
        products.fp32_precision = "none"


@pytest.mark.usefixtures("small_blocks")
def test_a_device_that_fails_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a GPU without memory whose error is lost, or beside which a thread goes on reading, pinned memory in its hands."""
    corpus = draw(6000, 12, seed=2)
    offer = engines._Best.offer

    def fails(best: engines._Best, block: DeviceBlock) -> None:
        if block.first_row == 3512:  # the second block of the last device
            raise torch.OutOfMemoryError("full")
        offer(best, block)

    monkeypatch.setattr(engines._Best, "offer", fails)
    on_devices = DeviceCorpus(InMemory(corpus), ["cpu"] * 2, room=lambda device: 0)
    before = threading.active_count()
    with pytest.raises(torch.OutOfMemoryError, match="full") as raised:
        exact_search(corpus[:5], on_devices, k=30, engines=device_engines(on_devices, 30))
    assert threading.active_count() == before and raised.value  # the error is held still
