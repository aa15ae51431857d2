"""The corpus in a worker: lookups that cannot err, in arrays that are small."""

from __future__ import annotations

import gc
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.tables import schemas
from data.tables.manifest import Manifest, ShardRecord
from data.tables.shards import describe, open_shard, shard_name
from pipeline.negatives import passage_index
from pipeline.negatives.corpus import Corpus
from pipeline.stage import Stored

IDS = [f"p{number}" for number in range(0, 900, 3)]


def stored_corpus(folder: Path, passages: list[tuple[str, str, int]], *, shards: int = 2) -> Stored:
    """A stored corpus of (doc_id, text, text_hash)."""
    records = []
    for shard in range(shards):
        path = folder / shard_name(shard, shards)
        rows = passages[len(passages) * shard // shards : len(passages) * (shard + 1) // shards]
        with open_shard(path, schemas.CORPUS, {}) as writer:
            for start in range(0, len(rows), 4096):
                writer.write(pa.table(list(zip(*rows[start : start + 4096], strict=True)), schema=schemas.CORPUS))
        records.append(ShardRecord(path.name, *describe(path)))
    return Stored(folder, Manifest("ingest", "corpus", "", {}, records, {}))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return stored_corpus(tmp_path_factory.mktemp("corpus"), [(doc_id, f"text of {doc_id}", len(doc_id)) for doc_id in IDS])


@pytest.mark.parametrize("bits", [64, 3, 0])
def test_ids_are_found_and_no_others(small: Stored, monkeypatch: pytest.MonkeyPatch, bits: int) -> None:
    """Prevents: an unknown id taken for the passage that shares its hash, or a passage lost behind another of the same hash."""
    exact = passage_index.hash_ids
    monkeypatch.setattr(passage_index, "hash_ids", lambda ids: exact(ids) & np.uint64((1 << bits) - 1))
    corpus = Corpus(small)
    asked = [f"p{number}" for number in random.Random(0).sample(range(900), 400)]
    expected = [IDS.index(doc_id) if doc_id in IDS else -1 for doc_id in asked]
    assert corpus.rows_of(pa.array(asked)).tolist() == expected
    assert len(corpus.rows_of(pa.array([], pa.string()))) == 0


@given(st.lists(st.integers(0, len(IDS) - 1), max_size=40))
def test_ids_and_texts_of_rows(small: Stored, rows: list[int]) -> None:
    """Prevents: texts in the order of the corpus, not of the question; a repeated row left out."""
    corpus = Corpus(small)
    places = np.array(rows, dtype=np.int64)
    assert corpus.ids_of(places).to_pylist() == [IDS[row] for row in rows]
    assert corpus.texts_of(places).to_pylist() == [f"text of {IDS[row]}" for row in rows]


@pytest.mark.medium
def test_a_million_passages_are_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a list or dict of all ids (250 bytes a passage), of which a worker on a corpus of ten million dies."""
    monkeypatch.setattr(passage_index, "_SHARED_FROM", 1 << 40)
    count = 1_000_000
    numbers = np.arange(count)
    with open_shard(tmp_path / "part.parquet", schemas.CORPUS, {}) as writer:
        for start in range(0, count, 4096):
            part = numbers[start : start + 4096]
            ids = [f"msmarco_passage_{number}" for number in part]
            writer.write(pa.table([ids, [""] * len(part), part], schema=schemas.CORPUS))
    stored = Stored(tmp_path, Manifest("", "", "", {}, [ShardRecord("part.parquet", *describe(tmp_path / "part.parquet"))], {}))
    gc.collect()
    arrow_before = pa.total_allocated_bytes()
    tracemalloc.start()
    corpus = Corpus(stored)
    found = corpus.rows_of(pa.array(["msmarco_passage_77", "elsewhere"]))
    gc.collect()
    held = tracemalloc.get_traced_memory()[0] + pa.total_allocated_bytes() - arrow_before
    tracemalloc.stop()
    assert found.tolist() == [77, -1]
    assert 0 < held < 60 * count + (8 << 20)
