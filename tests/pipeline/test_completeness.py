"""What a plan opens: of thousands of shards those that were not seen before, and nothing that is bad is taken for good."""

from __future__ import annotations

import builtins
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.planned_store import fill_store

from data.config.settings import load
from data.tables.manifest import Manifest, ManifestCache, ShardRecord
from pipeline.plan import Planner, TablePlan, tables

pytestmark = pytest.mark.medium  # a store of some hundred shards is made


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Callable[..., Path]) -> Path:
    """The config file of a complete store of some hundred shards."""
    config = tiny_experiment(tmp_path_factory.mktemp("many"), **{"ingest.corpus_shards": 40, "ingest.query_shards": 20})
    assert fill_store(config) > 200
    return config


@pytest.fixture
def own(many: Path, tmp_path: Path, tiny_experiment: Callable[..., Path]) -> Path:
    """A copy of it."""
    config = tiny_experiment(tmp_path / "own", **{"ingest.corpus_shards": 40, "ingest.query_shards": 20})
    shutil.copytree(many.parent / "store", config.parent / "store")
    return config


def plans(config: Path) -> dict[str, TablePlan]:
    experiment = load({"config": str(config)})
    return {plan.table.label: plan for plan in Planner(experiment).plan_all(tables(experiment))}


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each shard is opened, by its path."""
    counts: Counter[str] = Counter()
    open_file = builtins.open

    def counted(file: Any, *args: Any, **words: Any) -> Any:
        counts[str(file)] += str(file).endswith(".parquet")
        return open_file(file, *args, **words)

    monkeypatch.setattr(builtins, "open", counted)
    return counts


def test_a_seen_shard_is_not_opened_again(own: Path, opened: Counter[str]) -> None:
    """Prevents: three opens of each of 12,000 shards on a network file system, for every command."""
    assert all(plan.complete for plan in plans(own).values())
    assert opened.total() == len(list(own.parent.glob("store/*/*/part-*"))) and max(opened.values()) == 1
    opened.clear()
    assert all(plan.complete for plan in plans(own).values())
    assert opened.total() == 0


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-30] ^= 1
    path.write_bytes(content)


def exchange(path: Path) -> None:
    """A shard of another table, of the same size and time."""
    other = path.with_name("other")
    (source,) = path.parents[2].glob(f"embed/corpus-*/{path.name}")
    shutil.copy2(source, other)
    other.write_bytes(other.read_bytes().ljust(path.stat().st_size, b"\0"))
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    os.replace(other, path)


BAD = {
    "cut": (cut, "cut short"),
    "flipped": (flip, "damaged"),
    "exchanged": (exchange, "damaged|other settings"),
    "gone": (Path.unlink, "missing"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_was_seen_good_and_is_bad_now_is_found(own: Path, opened: Counter[str], case: str) -> None:
    """Prevents: a damaged, foreign or lost shard that passes for complete, since it was complete once."""
    plans(own)
    (path,) = own.parent.glob("store/ingest/corpus-*/part-00007-*")
    spoil, said = BAD[case]
    spoil(path)
    opened.clear()
    plan = plans(own)["ingest.corpus"]
    assert list(plan.stale) == [7] and any(word in plan.stale[7] for word in said.split("|"))
    assert {name for name, count in opened.items() if count} == (set() if case == "gone" else {str(path)})


def test_a_file_of_this_moment_is_looked_at_again(own: Path, opened: Counter[str]) -> None:
    """Prevents: a second change within one tick of the clock that nobody sees."""
    (path,) = own.parent.glob("store/ingest/corpus-*/part-00007-*")
    os.utime(path)
    for _ in range(2):
        opened.clear()
        plans(own)
        assert opened[str(path)] == 1


@pytest.mark.parametrize("content", ["", "[]", "{", '{"ingest": 3}', "null"])
def test_a_spoiled_memory_costs_time_alone(own: Path, content: str) -> None:
    """Prevents: a store that cannot be planned for a file that nothing depends on."""
    (own.parent / "store" / "seen.json").write_text(content)
    assert all(plan.complete for plan in plans(own).values())
    assert json.loads((own.parent / "store" / "seen.json").read_text())


def test_a_manifest_is_parsed_once_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: half a megabyte of JSON parsed for each of thousands of tasks; or a rewritten manifest that is not read."""
    first, second = (Manifest("s", "t", "f", {}, [ShardRecord("p", 0, 0, "")] * number, {}) for number in (1, 2))
    cache, parsed = ManifestCache(), list[str]()
    assert cache.read(tmp_path) is None
    parse = Manifest.parse
    monkeypatch.setattr(Manifest, "parse", staticmethod(lambda content, *, place: (parsed.append(place), parse(content, place=place))[1]))
    for manifest in (first, second):
        manifest.write(tmp_path)
        assert [cache.read(tmp_path) for _ in range(3)] == [manifest] * 3
    assert len(parsed) == 2
