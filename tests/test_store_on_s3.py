"""A store on an object store: the same tables under the same names, whatever lies in a machine's mirror of it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data.config.settings import load
from data.errors import DamagedShard, UserError
from data.remote.object_store import Entry, RemotePath
from data.store import mirror
from data.store.paths import store_root
from pipeline.cli import app
from pipeline.plan import Planner
from pipeline.run import run as run_stages
from pipeline.stage import Stored
from pipeline.stages import ingest_tables
from pipeline.tables.journal import read_journal
from pipeline.tables.sealing import sealed_by_others

OWN = ("digests.json", "seen.json")  # of a machine, not of the store


def prep(*words: object) -> tuple[int, str]:
    """(exit code, all output) of the command."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def tables(files: dict[str, bytes]) -> dict[str, bytes]:
    """The tables of a store by their names; not the logits, whose segments have random names."""
    return {name: content for name, content in files.items() if name.endswith(".parquet") and not name.startswith("teacher_logits/")}


def flipped(content: bytes) -> bytes:
    """The same with one bit changed in its middle."""
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 8]) + content[place + 1 :]


@pytest.fixture
def empty(bucket: Any, tmp_path: Path, tiny_experiment: Any) -> Path:
    """The tiny experiment whose store is an address with nothing at it."""
    return tiny_experiment(tmp_path / "far", store=f"{bucket}/runs/one")


@pytest.fixture
def far(bucket: Any, empty: Path, finished: Any, contents: Any) -> Path:
    """The same with the finished store's files at the address, as another machine may have put them."""
    for name, content in contents(finished.store).items():
        if name not in OWN:
            bucket.put(f"runs/one/{name}", content)
    return empty


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`machine(name)`: from here on another machine does the work, with a cache of its own."""

    def move(name: str) -> None:
        monkeypatch.setenv("ADAM_REMOTE_CACHE", str(tmp_path / f"cache-{name}"))
        mirror.forget_listings()

    return move


def named(bucket: Any, start: str, end: str = ".parquet") -> str:
    """The first object of the store whose name begins and ends so."""
    return min(name for name in bucket.objects("runs/one") if name.startswith(start) and name.endswith(end))


@pytest.mark.medium
def test_two_machines_build_one_store(
    bucket: Any, empty: Path, finished: Any, prep_run: Any, parquet_files: Any, contents: Any, machine: Any, tmp_path: Path
) -> None:
    """Prevents: tables that differ by where the store lies, files that stay on the machine that made them, and work done twice."""
    machine("a")
    prep_run(empty, stage="ingest")
    prep_run(empty, stage="embed")
    machine("b")
    prep_run(empty)
    objects = bucket.objects("runs/one")
    assert tables(objects) == parquet_files(finished.store)
    journals = {name.split("/journal/")[0] for name in objects if "/journal/" in name}
    assert journals == {name.removesuffix("/manifest.json") for name in objects if name.endswith("/manifest.json")}
    assert not [name for name in objects if ".tmp" in name or "/pieces/" in name or name in OWN]
    for name in ("a", "b", "c"):
        machine(name)
        assert all("complete" in line for line in prep_run(empty))
    assert not list((tmp_path / "cache-c").rglob("part-*.parquet"))  # planning reads no table
    assert bucket.objects("runs/one") == objects
    for name in ("a", "b", "c"):
        mine = contents(tmp_path / f"cache-{name}" / "stores" / "s3" / bucket.name / "runs" / "one")
        assert {file: content for file, content in mine.items() if file not in OWN}.items() <= objects.items()


@pytest.mark.medium
def test_every_command_on_such_a_store(bucket: Any, far: Path, finished: Any, tmp_path: Path) -> None:
    """Prevents: a command that looks for the store in a folder called `s3:`, or shows the user a folder of the cache."""
    config = f"config={far}"
    assert prep("plan", config)[1].count("complete") == prep("plan", f"config={finished.config}")[1].count("complete")
    code, said = prep("path", config, "stage=shards")
    assert (code, said.count("\n")) == (0, 1) and said.startswith(f"{bucket}/runs/one/shards/")
    assert f"{bucket}/runs/one/shards/" in prep("status", config)[1].replace("\n", "")
    assert prep("inspect", config)[1] == prep("inspect", f"config={finished.config}")[1]
    code, said = prep("report", config, f"out={tmp_path / 'report.html'}")
    assert code == 0 and f"{bucket}/runs/one" in (tmp_path / "report.html").read_text()
    for store in (far, finished.config):
        code, said = prep("export", f"config={store}", "format=tevatron", f"out={tmp_path / f'export-{store.parent.name}'}")
        assert code == 0, said


def test_looking_after_the_logits_of_such_a_store(bucket: Any, far: Path, finished: Any, machine: Any) -> None:
    """Prevents: logits compacted or deleted on one machine alone."""
    store = f"store={bucket}/runs/one"
    near = prep("cache", "stats", f"store={finished.store}")[1]
    assert prep("cache", "stats", store)[1].split("hits")[0] == near.split("hits")[0]
    segments = [name for name in bucket.objects("runs/one/teacher_logits") if name.endswith(".parquet")]
    shards = {name.rsplit("/", 1)[-1].split("-")[0] for name in segments}
    for name in segments:  # as where two jobs scored the same pairs
        content = bucket.objects("runs/one/teacher_logits")[name]
        bucket.put(f"runs/one/teacher_logits/{name.removesuffix('.parquet')}0.parquet", content)
    merged = f"{near[:12]}  {2 * len(segments)} segments -> {len(shards)}\n"
    assert prep("cache", "compact", store) == (0, merged)
    after = [name for name in bucket.objects("runs/one/teacher_logits") if name.endswith(".parquet")]
    assert len(after) == len(shards) and not set(after) & set(segments)
    machine("other")
    assert prep("cache", "verify", store) == (0, f"{near[:12]}  {len(shards)} segments whole, 0 damaged\n")
    assert prep("cache", "gc", store, f"namespace={near[:8]}", "yes=true")[0] == 0
    assert not bucket.objects("runs/one/teacher_logits")
    assert prep("cache", "stats", store) == (0, "")


@pytest.mark.medium
def test_a_shard_that_the_store_has_no_more(bucket: Any, far: Path, finished: Any, prep_run: Any, parquet_files: Any) -> None:
    """Prevents: a table called complete since a copy of its lost shard lies in the mirror; and the same of one cut short."""
    from s3fs import S3FileSystem

    prep_run(far, stage="hard_negatives")
    lost = named(bucket, "pools/")
    assert Planner(load({"config": str(far)})).completed("pools.ranked").path(0).is_file()  # a copy is here
    S3FileSystem().rm_file(f"{bucket}/runs/one/{lost}")
    assert "file is missing" in prep("plan", f"config={far}", "stage=pools")[1]
    cut = named(bucket, "hard_negatives/")
    bucket.put(f"runs/one/{cut}", b"PAR1")
    assert "not the size that the manifest records" in prep("plan", f"config={far}", "stage=hard_negatives")[1]
    prep_run(far, stage="hard_negatives")
    assert tables(bucket.objects("runs/one")) == parquet_files(finished.store)


@pytest.mark.medium
def test_a_shard_that_comes_damaged(bucket: Any, far: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a bit that the network flipped in the next table, and a run that gives up though the object is whole."""
    stored = Planner(load({"config": str(far)})).completed("ingest.corpus")
    whole, blocks = bucket.objects("runs/one")[named(bucket, "ingest/corpus")], RemotePath.blocks
    answers = [flipped(whole)]

    def once_wrong(self: RemotePath, size: int) -> Iterator[bytes]:
        is_wanted = self.address.endswith(stored.manifest.shards[0].name)
        return iter([answers.pop()]) if is_wanted and answers else blocks(self, size)

    monkeypatch.setattr(RemotePath, "blocks", once_wrong)
    assert stored.path(0).read_bytes() == whole
    assert not answers
    name = named(bucket, "ingest/queries")
    bucket.put(f"runs/one/{name}", flipped(bucket.objects("runs/one")[name]))
    with pytest.raises(DamagedShard, match=f"{bucket}/runs/one/{name} is not the file that manifest.json records .*, fetched twice"):
        Planner(load({"config": str(far)})).completed("ingest.queries").path(0)


@pytest.mark.medium
def test_a_damaged_segment(bucket: Any, far: Path, finished: Any, prep_run: Any, machine: Any) -> None:
    """Prevents: paid logits thrown away because one machine's copy is damaged, and a damaged object read by all for ever."""
    name = named(bucket, "teacher_logits/")
    segment = bucket.objects("runs/one")[name]
    assert prep("cache", "verify", f"store={bucket}/runs/one")[0] == 0
    copy = store_root(f"{bucket}/runs/one") / name
    times = copy.stat()
    with open(copy, "rb+") as file:  # the disk's fault: neither size nor time says so
        file.write(flipped(segment))
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert prep("cache", "verify", f"store={bucket}/runs/one")[0] == 0
    assert copy.read_bytes() == segment == bucket.objects("runs/one")[name]
    bucket.put(f"runs/one/{name}", flipped(segment))
    machine("other")
    assert prep("cache", "verify", f"store={bucket}/runs/one")[0] == 1
    objects = bucket.objects("runs/one")
    assert name not in objects and objects[f"{name}.damaged"] == flipped(segment)
    assert prep("cache", "verify", f"store={bucket}/runs/one")[0] == 0


def test_what_cannot_be_put_has_no_name_here(
    bucket: Any, empty: Path, finished: Any, prep_run: Any, parquet_files: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a shard that only the machine has which built it, in a table that is called complete."""
    put, count = RemotePath.put, [0]

    def third_fails(self: RemotePath, local: Path) -> Entry:
        count[0] += self.address.endswith(".parquet")
        if count[0] == 3:
            raise UserError("the store is full")
        return put(self, local)

    with monkeypatch.context() as patch:
        patch.setattr(RemotePath, "put", third_fails)
        with pytest.raises(UserError, match="the store is full"):
            prep_run(empty, stage="ingest")
    here = {path.name for path in store_root(f"{bucket}/runs/one").rglob("*.parquet")}
    assert here == {name.rsplit("/", 1)[-1] for name in bucket.objects("runs/one") if name.endswith(".parquet")}
    prep_run(empty, stage="ingest")
    expected = {name: content for name, content in parquet_files(finished.store).items() if name.startswith("ingest/")}
    assert tables(bucket.objects("runs/one")) == expected


@pytest.mark.medium
def test_the_journal_is_an_object_a_task(bucket: Any, empty: Path, prep_run: Any, machine: Any) -> None:
    """Prevents: times and hits of a table that only the machine knows which built it, and digests taken again from downloads."""
    prep_run(empty, stage="ingest")
    machine("other")
    (folder,) = (store_root(f"{bucket}/runs/one") / name for name in {named(bucket, "ingest/corpus").rsplit("/", 1)[0]})
    lines = read_journal(folder)
    manifest = json.loads(bucket.objects("runs/one")[f"ingest/{folder.name}/manifest.json"])
    files = [file for line in lines for file in line["files"]]
    assert sorted(file[0] for file in files) == [shard["name"] for shard in manifest["shards"]]
    assert sorted(file[3] for file in files) == sorted(shard["digest"] for shard in manifest["shards"])


def test_a_table_that_another_machine_completes_meanwhile(bucket: Any, empty: Path, finished: Any, contents: Any) -> None:
    """Prevents: a job that never learns of it, builds pieces again that have served, or fails since they are gone."""
    plan = Planner(load({"config": str(empty)})).plan(ingest_tables.CORPUS)
    assert plan.manifest is None and sealed_by_others(plan) is None
    for name, content in contents(finished.store / "ingest").items():
        bucket.put(f"runs/one/ingest/{name}", content)
    expected = json.loads((finished.store / "ingest" / plan.folder.name / "manifest.json").read_bytes())
    for _ in range(2):
        manifest = sealed_by_others(plan)
        assert manifest is not None and manifest.content_digest == expected["content_digest"]
    assert Stored(plan.folder, manifest).path(0).is_file()


@pytest.mark.medium
def test_a_table_that_is_completed_while_a_run_is_under_way(bucket: Any, empty: Path, finished: Any, contents: Any) -> None:
    """Prevents: a table built again, piece by piece, since the run knows the store as it was when it began."""
    lines: list[str] = []

    def say(line: str) -> None:
        lines.append(line)
        if line.startswith("embed.corpus "):
            for name, content in contents(finished.store / "pools").items():
                bucket.put(f"runs/one/pools/{name}", content)

    run_stages(load({"config": str(empty)}), stage="all", say=say)
    pools = [line for line in lines if line.startswith("pools.ranked ")]
    assert len(pools) == 1 and "complete" in pools[0]
    assert tables(bucket.objects("runs/one")) == tables(contents(finished.store))


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("s3://", "store: .*expected a bucket and a folder in it"),
        ("s3://no-such-bucket/a", "s3://no-such-bucket/a: no such bucket"),
        ("s4://bucket/a", "s4://bucket/a: unknown kind of address s4://"),
    ],
)
def test_a_store_that_cannot_be_opened(bucket: Any, empty: Path, store: str, message: str, prep_run: Any) -> None:
    """Prevents: a folder called `s3:` in the working directory that takes hours of work."""
    with pytest.raises(UserError, match=message):
        prep_run(empty, store=store)


def test_a_table_is_no_store(bucket: Any, far: Path, prep_run: Any) -> None:
    """Prevents: a store inside of a table of another one."""
    table = f"{bucket}/runs/one/{named(bucket, 'ingest/corpus').rsplit('/', 1)[0]}"
    with pytest.raises(UserError, match=f"store={table} is the stored table ingest.corpus"):
        prep_run(far, stage="ingest", store=table)


def test_nobody_takes_the_store_for_a_folder() -> None:
    """Prevents: a folder called `s3:` in the working directory, where new code asks for the store's path without `store_root`."""
    root = Path(__file__).parents[1]
    sources = [path for room in ("data", "retrieval", "pipeline", "trainer") for path in (root / room).rglob("*.py")]
    found = [path.name for path in sources if re.search(r"\bPath\([\w.]*\.store\b", path.read_text(encoding="utf-8"))]
    assert not found
