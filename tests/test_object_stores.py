"""The three commands on addresses of an object store: what comes out is what comes out of local files, byte by byte."""

from __future__ import annotations

import gzip
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.children import run

from data.config.settings import load, with_absolute_paths
from data.errors import DamagedShard, UserError
from data.formats.collection import find_collection
from data.remote.object_store import RemotePath
from data.tables.manifest import Manifest

ROOT = Path(__file__).parents[1]


def called(main: Callable[[], None], *words: object) -> int:
    """A command in this process; its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    return int(ended.value.code or 0)


def table_of(store: Path, stage: str, table: str = "") -> Path:
    """The folder of a finished table."""
    (folder,) = (path for path in (store / stage).iterdir() if path.name.startswith(f"{table}-" if table else "") and path.is_dir())
    return folder


@pytest.mark.medium
def test_every_retrieve_command(
    bucket: Any, tmp_path: Path, finished: Any, models: Any, capsys: pytest.CaptureFixture[str], contents: Any
) -> None:
    """Prevents: a word of one command that takes an address for a folder called `s3:`, or an output that stays on this machine."""
    from retrieval.cli import main

    ingested = {name: table_of(finished.store, "ingest", name) for name in ("corpus", "queries", "qrels")}
    far_tables = {name: bucket.upload(folder, f"tables/{name}") for name, folder in ingested.items()}
    near = {"tables": {name: str(folder) for name, folder in ingested.items()}, "out": str(tmp_path / "out")}
    far = {"tables": far_tables, "out": f"{bucket}/out"}
    (tmp_path / "out").mkdir()
    said = []
    for place in (near, far):
        tables, out = place["tables"], place["out"]
        student = [f"model={models.student}", "precision=fp32", "query_tokens=16", "passage_tokens=48"]
        vectors = [f"{kind}={out}/{kind}-vectors" for kind in ("corpus", "queries")]
        capsys.readouterr()
        for kind in ("corpus", "queries"):
            assert called(main, "encode", *student, f"texts={tables[kind]}", f"out={out}/{kind}-vectors", f"kind={kind}") == 0
        assert called(main, "index", f"corpus={out}/corpus-vectors", f"out={out}/index", "kind=ivf", "lists=2") == 0
        assert called(main, "search", *vectors, f"out={out}/dense.trec", "depth=20") == 0
        assert called(main, "search", *vectors, f"index={out}/index", f"out={out}/ivf.trec", "depth=20", f"qrels={tables['qrels']}") == 0
        teacher = [f"model={models.teacher}", "precision=fp32", "max_tokens=64", "depth=5"]
        texts = [f"queries={tables['queries']}", f"corpus={tables['corpus']}"]
        assert called(main, "rerank", *teacher, f"run={out}/dense.trec", *texts, f"out={out}/reranked.trec") == 0
        of = f"qrels={tables['qrels']}"
        assert called(main, "evaluate", *vectors, of, f"out={out}/evaluated.trec", f"per_query={out}/per_query.json", "depth=20") == 0
        assert called(main, "evaluate", of, f"run={out}/reranked.trec") == 0
        assert called(main, "compare", of, f"before={out}/dense.trec", f"after={out}/reranked.trec", "permutations=100") == 0
        assert called(main, "query", "bada", f"model={models.student}", vectors[0], f"texts={tables['corpus']}", "k=3") == 0
        said.append(capsys.readouterr().out.replace(out, "OUT"))
    assert said[0] == said[1]
    local = {name: content for name, content in contents(tmp_path / "out").items() if not name.endswith(("digests.json", "device.json"))}
    assert bucket.objects("out") == local
    assert not list((tmp_path / "cache" / "outputs").rglob("*.trec"))


@pytest.mark.medium
def test_evaluation_over_collections(
    bucket: Any, tmp_path: Path, collection: Path, models: Any, capsys: pytest.CaptureFixture[str], contents: Any
) -> None:
    """Prevents: collections or results on a store that only half of a command knows; vectors put there that nobody asked for."""
    from retrieval.cli import main

    far_suite = bucket.upload(collection, "suite/one").removesuffix("/one")
    words = [f"model={models.student}", "precision=fp32", "threads=1", f"vectors={tmp_path / 'vectors'}"]
    assert called(main, "evaluate", *words, f"collections={far_suite}", f"out={bucket}/out") == 0
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "one").symlink_to(collection)
    assert called(main, "evaluate", *words, f"collections={tmp_path / 'near'}", f"out={tmp_path / 'out'}") == 0
    assert bucket.objects("out") == contents(tmp_path / "out")
    capsys.readouterr()
    assert called(main, "compare", f"before={bucket}/out", f"after={tmp_path / 'out'}") == 0
    assert '"p": 1.0' in capsys.readouterr().out
    assert called(main, "evaluate", *words[:3], f"collections={far_suite}", f"out={bucket}/own", "depth=100") == 0
    assert not [name for name in bucket.objects("own") if "vectors" in name]


def test_a_merged_model_on_the_store(bucket: Any, tmp_path: Path, models: Any, contents: Any) -> None:
    """Prevents: a model that stays on this machine, or one of which another was half overwritten."""
    from retrieval.cli import main

    words = ["merge", f"models={models.student},{models.student}"]
    assert called(main, *words, f"out={bucket}/merged") == 0
    assert called(main, *words, f"out={tmp_path / 'merged'}") == 0
    assert bucket.objects("merged") == contents(tmp_path / "merged")
    assert called(main, *words, f"out={bucket}/merged") == 2


def test_another_models_vectors_are_refused_on_the_store_too(
    bucket: Any, tmp_path: Path, finished: Any, models: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: the vectors of one model overwritten by another's because the store was not looked at first."""
    from retrieval.cli import main

    words = [f"texts={table_of(finished.store, 'ingest', 'queries')}", f"out={bucket}/vectors", "kind=queries", "precision=fp32"]
    assert called(main, "encode", f"model={models.student}", *words) == 0
    before = bucket.objects()
    assert called(main, "encode", f"model={models.student}", *words, "layers=1") == 2
    assert "another model; choose another out=FOLDER" in capsys.readouterr().err
    assert bucket.objects() == before


@pytest.mark.medium
def test_a_killed_encode_goes_on_from_its_staging_folder(bucket: Any, tmp_path: Path, finished: Any, models: Any, contents: Any) -> None:
    """Prevents: embeddings of hours made anew because they were on their way to an object store."""
    from retrieval.cli import main

    texts = table_of(finished.store, "ingest", "corpus")
    words = ["encode", f"model={models.student}", f"texts={texts}", "kind=corpus", "precision=fp32"]
    assert run("killed_encode", *words, f"out={bucket}/v").returncode == -signal.SIGKILL
    assert not bucket.objects()
    (made,) = (tmp_path / "cache" / "outputs").rglob("part-*.parquet")
    inode = made.stat().st_ino
    assert called(main, *words, f"out={bucket}/v") == 0
    assert called(main, *words, f"out={tmp_path / 'v'}") == 0
    (tmp_path / "v" / "device.json").unlink()  # a note for a table that is under way
    assert bucket.objects("v") == contents(tmp_path / "v")
    assert [path.name for path in (tmp_path / "cache").rglob("*.parquet") if path.stat().st_ino == inode] == [made.name]


@pytest.mark.medium
def test_training_from_the_store_is_the_same_training(bucket: Any, tmp_path: Path, finished: Any, contents: Any) -> None:
    """Prevents: a trainer that gets an address where it wants a folder, or another order of rows from a copy."""
    from trainer.cli import main

    shards = table_of(finished.store, "shards")
    (shards / "notes.txt").touch()
    address = bucket.upload(shards, "some/shards")
    (shards / "notes.txt").unlink()
    for name, place in (("far", address), ("near", shards)):
        assert called(main, "run", f"config={finished.config}", f"shards={place}", f"train.output={tmp_path / name}", "train.epochs=1") == 0
    assert contents(tmp_path / "far" / "student") == contents(tmp_path / "near" / "student")
    (copy,) = (path.parent for path in (tmp_path / "cache").rglob("manifest.json"))
    manifest = Manifest.read(shards)
    assert manifest is not None
    assert set(contents(copy)) == {"manifest.json", *(shard.name for shard in manifest.shards)}


@pytest.mark.medium
def test_a_training_whose_output_is_on_the_store(
    bucket: Any, tmp_path: Path, finished: Any, contents: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: a model that stays on this machine; a run that counts as finished before its model is there; steps taken twice since the
    machine that took them is gone."""
    from trainer import loop
    from trainer.cli import main

    args = ["run", f"config={finished.config}", f"shards={table_of(finished.store, 'shards')}", "train.checkpoint_every=2"]
    steps, put = [], []
    take, original = loop.take_step, RemotePath.put
    monkeypatch.setattr(RemotePath, "put", lambda self, local: put.append(self.address) or original(self, local))

    def counted(run: Any, batch: Any) -> Any:
        steps.append(batch.step)
        if steps == list(range(6)):
            raise ZeroDivisionError
        return take(run, batch)

    monkeypatch.setattr(loop, "take_step", counted)
    with pytest.raises(ZeroDivisionError), monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *args, f"train.output={bucket}/out"])
        main()
    left = sorted(bucket.objects("out"))
    assert [name for name in left if "checkpoints" in name] == [
        f"checkpoints/step-00000004/{name}" for name in ("model.safetensors", "optimizer.safetensors", "state.json")
    ]
    assert "run.json" in left and "result.json" not in left
    shutil.rmtree(tmp_path / "cache")  # another machine
    steps.clear()
    assert called(main, *args, f"train.output={bucket}/out") == 0
    assert steps[0] == 4 and put[-1] == f"{bucket}/out/result.json"
    taken = len(steps)
    assert called(main, *args, f"train.output={tmp_path / 'near'}") == 0
    assert len(steps) == 2 * taken + 4
    assert bucket.objects("out/student") == contents(tmp_path / "near" / "student")
    near = {path.name for path in (tmp_path / "near").iterdir()}
    assert {name.split("/")[0] for name in bucket.objects("out")} == near
    capsys.readouterr()
    shutil.rmtree(tmp_path / "cache")
    before = len(put)
    assert called(main, *args, f"train.output={bucket}/out") == 0
    assert f"this run is finished: {bucket}/out;" in capsys.readouterr().out and (len(steps), len(put)) == (2 * taken + 4, before)
    assert called(main, *args, f"train.output={bucket}/out", "train.learning_rate=1e-4") == 2
    assert "holds a run with other settings" in capsys.readouterr().err


def test_damaged_training_shards_stop_the_trainer(bucket: Any, finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: training on a shard of another run that lies under the right key."""
    from trainer import cli

    address = bucket.upload(table_of(finished.store, "shards"), "shards")
    (last,) = (name for name in bucket.objects("shards") if name.startswith("part-00001"))
    content = bucket.objects("shards")[last]
    bucket.put(f"shards/{last}", content[:-9] + bytes([content[-9] ^ 64]) + content[-8:])
    assert called(cli.main, "run", f"config={finished.config}", f"shards={address}") == DamagedShard.exit_code
    assert f"{address}/{last} is not the file that manifest.json records" in capsys.readouterr().err


@pytest.mark.medium
@pytest.mark.parametrize("packed", [False, True])
def test_a_collection_on_the_store_has_the_fingerprints_of_its_content(
    bucket: Any, tmp_path: Path, collection: Path, tiny_experiment: Any, prep_run: Any, finished: Any, packed: bool, contents: Any
) -> None:
    """Prevents: all stages run again because the collection moved to an object store, or were fetched from it twice."""
    files = contents(collection)
    if packed:
        files = {f"{name}.gz": gzip.compress(content) for name, content in files.items()}
    for name, content in {**files, "triples.tsv": b"large and not wanted"}.items():
        bucket.put(f"beir/{name}", content)
    config = tiny_experiment(tmp_path / "far", **{"ingest.path": f"{bucket}/beir/"})
    prep_run(config, stage="ingest")
    assert sorted(contents(tmp_path / "cache").values()) == sorted(files.values())
    tables = {path.name.split("-")[0]: path for path in (tmp_path / "far" / "store" / "ingest").iterdir()}
    for near in (finished.store / "ingest").iterdir():
        far = tables[near.name.split("-")[0]]
        one, other = Manifest.read(near), Manifest.read(far)
        assert one and other and (one.rows, one.counts) == (other.rows, other.counts)
        # digests are of files as they lie, so a packed file is another one
        assert (near.name == far.name) == (one.content_digest == other.content_digest) == (not packed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RemotePath, "blocks", None)
        assert all("complete" in line for line in prep_run(config, stage="ingest"))


def test_an_msmarco_folder_on_the_store(bucket: Any, tmp_path: Path, contents: Any) -> None:
    """Prevents: a collection found by its remote names that is another one than the same files make locally."""
    files = {
        "collection.tsv": b"7\tThey jump.\n", "queries.train.tsv": b"1\tjump\n", "queries.dev.small.tsv.gz": b"x",
        "qrels.train.tsv": b"1 0 7 1\n",
        "qrels.dev.small.tsv": b"1 0 7 1\n", "qrels.dev.small.tsv.gz": b"not read", "qrels/odd.tsv": b"", "top1000.dev.tar.gz": b"large",
    }  # fmt: skip
    for name, content in files.items():
        path = tmp_path / "ms" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    near, far = find_collection(tmp_path / "ms"), find_collection(bucket.upload(tmp_path / "ms", "ms"))
    for found in (near, far):
        assert found.format == "msmarco" and list(found.qrels) == ["dev", "train"]
    assert [near.name(path) for path in near.queries] == [far.name(path) for path in far.queries]
    assert {split: near.name(path) for split, (path,) in near.qrels.items()} == {
        split: far.name(path) for split, (path,) in far.qrels.items()
    }
    copied = {"collection.tsv", "queries.train.tsv", "queries.dev.small.tsv.gz", "qrels.train.tsv", "qrels.dev.small.tsv"}
    assert contents(far.folder) == {name: files[name] for name in copied}


def test_a_parquet_folder_on_the_store(bucket: Any, tmp_path: Path, contents: Any) -> None:
    """Prevents: folders of Parquet whose files are not found below their address, or a copy of all that lies beside them."""
    files = {
        "corpus/corpus/0000.parquet": b"a", "queries/train-00000-of-00001.parquet": b"b", "default/test-00000-of-00001.parquet": b"c",
        "qrels/dev.tsv": b"d", "README.md": b"e", "images/0000.parquet": b"f",
    }  # fmt: skip
    for name, content in files.items():
        bucket.put(f"p/{name}", content)
    found = find_collection(f"{bucket}/p")
    assert (found.format, list(found.qrels)) == ("parquet", ["dev", "test"])
    assert contents(found.folder) == {name: content for name, content in files.items() if content < b"e"}


@pytest.mark.parametrize(
    ("objects_there", "message"),
    [
        ([], "no collection folder at {0}: set ingest.path"),
        (["corpus.json"], r"{0}: looked for corpus.jsonl\[.gz\] .*; it holds corpus.json"),
        (["corpus.jsonl", "queries.jsonl"], r"{0}/qrels: looked for .*; that folder does not exist"),
        (["corpus.jsonl", "collection.tsv"], "{0} holds corpus.jsonl and collection.tsv"),
    ],
)
def test_a_missing_file_of_a_collection_is_told(bucket: Any, tmp_path: Path, objects_there: list[str], message: str) -> None:
    """Prevents: a message about a folder in the cache, or gigabytes copied before it."""
    for name in objects_there:
        bucket.put(f"c/{name}", b"x")
    with pytest.raises(UserError, match=message.format(f"{bucket}/c")):
        find_collection(f"{bucket}/c")
    assert not (tmp_path / "cache").exists()


def test_workers_get_addresses_as_they_are(finished: Any) -> None:
    """Prevents: `s3:/bucket` below the working directory, which no worker on another machine finds."""
    words = {"config": str(finished.config), "ingest.path": "s3://b/c", "hard_negatives.run_file": "s3://b/r.trec"}
    experiment = with_absolute_paths(load(words))
    assert (experiment.ingest.path, experiment.hard_negatives.run_file) == ("s3://b/c", "s3://b/r.trec")


def test_negatives_from_a_run_on_the_store(bucket: Any, copied: Any, tmp_path: Path, prep_run: Any, parquet_files: Any) -> None:
    """Prevents: a run file that a worker cannot read, or whose place changes the fingerprint."""
    lines = "".join(f"train{q} Q0 d{d} {d + 1} {-d} x\n" for q in range(14) for d in range(20))
    (tmp_path / "r.trec").write_text(lines)
    bucket.put("r.trec", lines.encode())
    words = {"hard_negatives.source": "run", "stage": "pools"}
    prep_run(copied.config, **words, **{"hard_negatives.run_file": tmp_path / "r.trec"})
    before = parquet_files(copied.store)
    prep_run(copied.config, **words, **{"hard_negatives.run_file": f"{bucket}/r.trec"})
    assert parquet_files(copied.store) == before


def test_dev_sets_of_the_store(
    bucket: Any, tmp_path: Path, collection: Path, models: Any, tiny_experiment: Any, prep_run: Any, parquet_files: Any
) -> None:
    """Prevents: a collection whose place changes its dev set, and a training that looks for a dev set in a folder called `s3:`."""
    from retrieval.model_files.files import tokenizer_digest
    from trainer.evaluation.dev_sets import open_dev_sets

    made = {}
    for place, folder in (("near", collection), ("far", bucket.upload(collection, f"a/{collection.name}"))):
        config = tiny_experiment(tmp_path / place)
        prep_run(config, stage="dev", **{"dev.collections": folder, "dev.collections_split": "test"})
        made[place] = parquet_files(tmp_path / place / "store")
    assert made["near"] == made["far"] and len(made["near"]) == 2
    (near,) = (path.parent for path in (tmp_path / "near" / "store" / "dev").glob("*/manifest.json"))
    digest = tokenizer_digest(models.student)
    (one,), (other,) = open_dev_sets([str(near)], tokenizer=digest), open_dev_sets([bucket.upload(near, "set")], tokenizer=digest)
    assert (one.name, one.digest) == (other.name, other.digest) == (collection.name, one.digest)


def test_a_report_is_put(bucket: Any, finished: Any) -> None:
    """Prevents: a report in a folder called `s3:`."""
    from pipeline.__main__ import main

    assert called(main, "report", f"config={finished.config}", f"out={bucket}/report.html") == 0
    assert b"<html" in bucket.objects()["report.html"][:200].lower()
