"""Texts that are gathered once for all shards of a table: the right ones, from few bytes, whatever became of the pieces."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.errors import DamagedShard
from data.tables import schemas
from data.tables.manifest import Manifest, ShardRecord
from data.tables.shards import describe, open_shard, shard_name
from pipeline.negatives import gathered_texts, pool_pairs
from pipeline.negatives.gathered_texts import GatheredTexts, TextReader, blocks_of
from pipeline.stage import Cutting, StageContext, Stored, Table, WorkerCache

Parts = list[list[list[str]]]  # of each shard, of each part: ids


def stored_corpus(folder: Path, texts: dict[str, str], *, shards: int) -> Stored:
    records = []
    ids = list(texts)
    for shard in range(shards):
        path = folder / shard_name(shard, shards)
        with open_shard(path, schemas.CORPUS, {}) as writer:
            for doc_id in ids[shard::shards]:
                writer.add((doc_id, texts[doc_id], len(doc_id)))
        records.append(ShardRecord(path.name, *describe(path)))
    return Stored(folder, Manifest("ingest", "corpus", "", {}, records, {}))


class Bench:
    """A table without a pipeline around it: what its parts want is given."""

    def __init__(self, folder: Path, corpus: Stored, parts: Parts) -> None:
        self.parts, self.asked = parts, 0
        self.texts = GatheredTexts("wanted", self._ids)
        self.inputs = {"ingest.corpus": corpus, "wanted": corpus}
        self.folder = folder
        self.cache = WorkerCache()
        table = Table(stage="t", version=1, reads=(), key=lambda *_: {}, build=lambda _: None)
        self.context = StageContext(
            SimpleNamespace(experiment=None), table, folder, "f", [0], len(parts), self.inputs, self.cache, lambda *_: None, print  # type: ignore[arg-type]
        )  # fmt: skip

    def _ids(self, _: Any, __: Stored, shard: int) -> Iterator[pa.Array]:
        self.asked += 1
        return (pa.array(ids, pa.string()) for ids in self.parts[shard])

    def gather(self) -> list[Path]:
        each = self.texts.round()
        pieces = each.cut(Cutting(None, self.inputs, range(len(self.parts)), self.folder, 0, 1))  # type: ignore[arg-type]
        for piece in pieces:
            each.build(self.context, piece)
        return [self.context.piece_path(piece.name) for piece in pieces]

    def read(self) -> list[list[list[str]]]:
        reader = TextReader(self.context)
        return [
            [reader.texts_of(pa.array(ids, pa.string()), shard=shard, part=part).to_pylist() for part, ids in enumerate(parts)]
            for shard, parts in enumerate(self.parts)
        ]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any corpus is worth gathering from, in blocks of about one shard."""
    monkeypatch.setattr(gathered_texts, "_WORTH_BYTES", 0)
    monkeypatch.setattr(gathered_texts, "_LEAST_BLOCK", 1)


TEXTS = {f"p{number}": f"text of p{number} " + "ä" * (number % 5) for number in range(120)}
ids_of_a_part = st.lists(st.sampled_from(list(TEXTS)), max_size=12)


@pytest.mark.medium
@pytest.mark.usefixtures("small_blocks")
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.lists(ids_of_a_part, max_size=3), min_size=2, max_size=5), shards=st.integers(1, 4), lost=st.sets(st.integers(0, 3)),
    bits=st.sampled_from([64, 5]),
)  # fmt: skip
def test_any_part_gets_the_texts_of_its_ids(
    tmp_path_factory: pytest.TempPathFactory, parts: Parts, shards: int, lost: set[int], bits: int
) -> None:
    """Prevents: a query trained with another passage's text: of another part, of a row beside it, or of a hash that two ids share."""
    folder = tmp_path_factory.mktemp("gathered")
    bench = Bench(folder / "table", stored_corpus(folder / "corpus", TEXTS, shards=shards), parts)
    exact = gathered_texts.hash_ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gathered_texts, "hash_ids", lambda ids: exact(ids) & ((1 << bits) - 1))
        paths = bench.gather()
    assert len(paths) == len(blocks_of(bench.inputs["ingest.corpus"].manifest)) == shards
    for number in lost & set(range(shards)):
        paths[number].unlink()
    assert bench.read() == [[[TEXTS[doc_id] for doc_id in ids] for ids in of_shard] for of_shard in parts]
    assert bench.asked == len(parts)  # once for all pieces of a worker
    shutil.rmtree(folder)


def bytes_read() -> int:
    found = re.search(r"rchar: (\d+)", Path("/proc/self/io").read_text())
    assert found
    return int(found[1])


@pytest.mark.medium
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts the bytes that a process reads as Linux has them")
@pytest.mark.parametrize("query_shards", [16, 64])
def test_the_corpus_is_read_once_for_all_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, query_shards: int) -> None:
    """Prevents: the whole corpus read for each of hundreds of shards, so that more nodes mean more bytes and no less time."""
    monkeypatch.setattr(gathered_texts, "_WORTH_BYTES", 0)
    monkeypatch.setattr(gathered_texts, "_LEAST_BLOCK", 1 << 20)
    chance = random.Random(0)
    texts = {f"p{number}": "".join(chance.choices("abcdefghij klmnop", k=160)) for number in range(30_000)}
    corpus = stored_corpus(tmp_path / "corpus", texts, shards=8)
    size = sum(record.bytes for record in corpus.manifest.shards)
    wanted = [[chance.sample(list(texts), 6_000 // query_shards)] for _ in range(query_shards)]  # in all 20 of 100 passages
    bench = Bench(tmp_path / "table", corpus, wanted)
    before = bytes_read()
    assert len(bench.gather()) > 1
    found = bench.read()
    assert bytes_read() - before < 1.5 * size
    assert found == [[[texts[doc_id] for doc_id in ids] for ids in parts] for parts in wanted]


def test_a_passage_that_is_not_there_is_told(tmp_path: Path) -> None:
    """Prevents: a list with the text of another passage, or none, where two tables do not belong together."""
    bench = Bench(tmp_path / "table", stored_corpus(tmp_path / "corpus", TEXTS, shards=2), [[["p1", "absent"]]])
    assert bench.gather() == []  # one shard reads the corpus once, in any way
    with pytest.raises(DamagedShard, match="has no passage 'absent'"):
        bench.read()


@pytest.mark.parametrize("windows", ["student:1,random:2", "student", "whole"])
def test_the_ids_of_parts_are_those_of_their_pools(windows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a part whose texts were gathered for other rows, or by other rank windows, than those that it asks for."""
    sources = [SimpleNamespace(number=0, first_rank=2, last_rank=4), SimpleNamespace(number=1, first_rank=1, last_rank=2)]
    experiment = SimpleNamespace(
        scores_whole_pools=windows == "whole", hard_negatives=SimpleNamespace(scored_sources=sources[: 1 + windows.count(",")])
    )
    chance = random.Random(1)
    rows = []
    for number in range(50):
        numbers = sorted(chance.choices([0, 1], k=chance.randrange(9)))
        ranked = [f"p{chance.randrange(99)}" for _ in numbers]
        rows.append((f"q{number}", ["p0"] * chance.randrange(1, 3), None, ranked, [0.0] * len(numbers), numbers, []))
    pools = pa.table([list(column) for column in zip(*rows, strict=True)], schema=schemas.POOLS)
    stored: Any = SimpleNamespace(shard_groups=lambda shard, columns=None: iter([pools.slice(0, 20), pools.slice(20)]))
    monkeypatch.setattr(pool_pairs, "_TEXTS_AT_ONCE", 7)
    of_parts = list(pool_pairs._requested_ids(experiment, stored, 0))  # type: ignore[arg-type]
    parts = [part.to_pylist() for part in pool_pairs._parts(stored, 0, experiment)]  # type: ignore[arg-type]
    assert [row["query_id"] for part in parts for row in part] == [f"q{number}" for number in range(50)] and len(parts) > 10
    for ids, part in zip(of_parts, parts, strict=True):
        expected = set()
        for row in part:
            expected |= set(row["positive_ids"])
            for source in experiment.hard_negatives.scored_sources:
                mine = [doc_id for doc_id, number in zip(row["ranked_ids"], row["ranked_sources"], strict=True) if number == source.number]
                expected |= set(row["ranked_ids"] if windows == "whole" else mine[source.first_rank - 1 : source.last_rank])
        assert set(ids.to_pylist()) == expected


@pytest.mark.medium
def test_tables_are_the_same_bytes_with_gathered_texts(
    tmp_path: Path,
    tiny_experiment: Callable[..., Path],
    prep_run: Callable[..., list[str]],
    parquet_files: Callable[[Path], dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Prevents: rows in another order, or of other texts, by how many shards or pieces a run happened to have."""
    stores = []
    for name, worth in (("direct", 1 << 60), ("gathered", 0)):
        monkeypatch.setattr(gathered_texts, "_WORTH_BYTES", worth)
        monkeypatch.setattr(gathered_texts, "_LEAST_BLOCK", 1)
        monkeypatch.setattr(pool_pairs, "_TEXTS_AT_ONCE", 40)
        config = tiny_experiment(tmp_path / name, **{"hard_negatives.score_pools": True})
        prep_run(config)
        stores.append(config.parent / "store")
        journals = [path.read_text() for path in stores[-1].glob("*/*/journal.jsonl") if path.parts[-3] in ("pools", "dark_examples")]
        assert sum("texts-" in text for text in journals) == (2 if worth == 0 else 0)
        assert not list(stores[-1].rglob("pieces"))
    direct, gathered = map(parquet_files, stores)
    assert direct == gathered and any("dark_examples" in path for path in direct)
