"""Lists that were exported are trained as they are: the shards of the store that they came from, and nothing else of it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from support.exports import lists_of, write_export, write_note, write_parts
from typer.testing import CliRunner

from data.errors import UserError
from pipeline.cli import app

Prep = Callable[..., list[str]]


@pytest.fixture(scope="module")
def export(finished: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The lists of the finished run, dark examples among them."""
    return write_export(finished.store, tmp_path_factory.mktemp("export") / "of a run")


@pytest.fixture
def spoiled(export: Path, tmp_path: Path) -> Path:
    """A copy of the export that a test may spoil."""
    return shutil.copytree(export, tmp_path / "spoiled")


def of_lists(tiny_experiment: Any, folder: Path, export: Path | str, **overrides: Any) -> Path:
    """A config without a collection and without a teacher."""
    config: Path = tiny_experiment(folder, **{"lists.path": export, **overrides})
    content = yaml.safe_load(config.read_text())
    for name in ("teacher", "hard_negatives"):
        content.pop(name, None)
    content["ingest"].pop("path")
    config.write_text(yaml.safe_dump(content))
    return config


def pages(path: Path) -> bytes:
    """A Parquet file without its footer, which names the fingerprint."""
    content = path.read_bytes()
    return content[: len(content) - 8 - int.from_bytes(content[-8:-4], "little")]


def shards_of(store: Path) -> list[Path]:
    return sorted(store.glob("shards/*/*.parquet"))


@pytest.mark.medium
def test_the_shards_are_those_of_the_store(finished: Any, export: Path, tmp_path: Path, tiny_experiment: Any, prep_run: Prep) -> None:
    """Prevents: a student that is another one because its lists came from a copy: other rows, other tokens, another order."""
    config = of_lists(tiny_experiment, tmp_path, export)
    prep_run(config)
    expected, found = shards_of(finished.store), shards_of(tmp_path / "store")
    assert len(expected) == len(found) == 2 and any(pq.read_metadata(path).num_rows for path in found)
    for one, other in zip(expected, found, strict=True):
        assert pages(one) == pages(other)
        said = [json.loads(pq.read_schema(path).metadata[b"training"]) for path in (one, other)]
        assert said[1].pop("order") and said[0] == said[1]
    assert not (tmp_path / "store" / "ingest").exists() and not (tmp_path / "store" / "teacher_logits").exists()
    assert any("complete" in line for line in prep_run(config)), "a second run builds nothing"
    assert prep_run(config, **{"seed": 1})[:2] == prep_run(config)[:2], "the lists are the same under another seed"


@pytest.mark.medium
def test_training_reaches_the_same_parameters(
    finished: Any, export: Path, tmp_path: Path, tiny_experiment: Any, prep_run: Prep, command: Any
) -> None:
    """Prevents: batches in another order, since it is drawn from bytes that name a table of another store."""
    config = of_lists(tiny_experiment, tmp_path, export)
    prep_run(config)
    trained = []
    for used, store, out in ((finished.config, finished.store, "first"), (config, tmp_path / "store", "second")):
        (shards,) = store.glob("shards/*")
        done = command("train", "run", f"config={used}", f"shards={shards}", f"train.output={tmp_path / out}")
        assert done.returncode == 0, done.stdout + done.stderr
        trained.append((tmp_path / out / "student" / "model.safetensors").read_bytes())
    assert trained[0] == trained[1]
    (shards,) = (tmp_path / "store").glob("shards/*")
    done = command("train", "run", f"config={config}", f"shards={shards}", f"train.output={tmp_path / 'third'}", "train.order=another")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "third" / "student" / "model.safetensors").read_bytes() != trained[0], "the order does matter"


@pytest.mark.medium
def test_lists_of_a_curriculum_keep_their_labels(tmp_path: Path, tiny_experiment: Any, prep_run: Prep) -> None:
    """Prevents: CL-DRD's lists that come back as lists with one positive, or not at all."""
    groups = {"enabled": True, "iterations": "2/2/2,4/0/2", "near_rank": 6, "retrieved": 15}
    config = tiny_experiment(tmp_path / "first", curriculum=groups)
    prep_run(config)
    exported = write_export(tmp_path / "first" / "store", tmp_path / "export")
    prep_run(of_lists(tiny_experiment, tmp_path / "second", exported))
    pairs = list(zip(shards_of(tmp_path / "first" / "store"), shards_of(tmp_path / "second" / "store"), strict=True))
    assert pairs and all(pages(one) == pages(other) for one, other in pairs)
    assert all("labels" in pq.read_schema(other).names for _, other in pairs)


@pytest.mark.medium
def test_another_number_of_shards_has_the_same_lists(
    export: Path, finished: Any, tmp_path: Path, tiny_experiment: Any, prep_run: Prep
) -> None:
    """Prevents: lists lost or doubled where the export has other shards than this store; a query's lists in two shards."""
    prep_run(of_lists(tiny_experiment, tmp_path, export, **{"ingest.query_shards": 5}), stage="lists")
    (folder,) = (path for path in (tmp_path / "store" / "lists").iterdir() if not path.name.startswith("never"))
    parts = [pq.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    assert len(parts) == 5
    order = [("query_id", "ascending"), ("draw", "ascending"), ("position", "ascending")]
    everything = pa.concat_tables(lists_of(finished.store)).select(parts[0].column_names)
    assert pa.concat_tables(parts).sort_by(order).equals(everything.sort_by(order))
    homes = [set(part.column("query").to_pylist()) for part in parts]
    assert sum(map(len, homes)) == len(set.union(*homes))


def changed(folder: Path, **columns: Callable[[pa.Table], Any]) -> None:
    """Put other columns into the first part that has rows."""
    parts = [pq.read_table(path) for path in sorted((folder / "lists").glob("*.parquet"))]
    place = next(number for number, part in enumerate(parts) if part.num_rows)
    for name, make in columns.items():
        at = parts[place].column_names.index(name)
        parts[place] = parts[place].set_column(at, name, make(parts[place]))
    write_parts(folder, parts)


def values(name: str, kind: pa.DataType, **at: Any) -> Callable[[pa.Table], Any]:
    """A column with other values in some rows, as r0=VALUE."""

    def make(table: pa.Table) -> pa.Array:
        listed = table.column(name).to_pylist()
        for row, value in at.items():
            listed[int(row[1:])] = value
        return pa.array(listed, kind)

    return make


FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a list without logits": (
        lambda folder: changed(folder, logit=values("logit", pa.float32(), r0=None, r1=float("nan"))),
        r"2 of \d+ candidates, in 1 of 14 lists, have no logit",
    ),
    "a gap": (lambda folder: changed(folder, position=values("position", pa.int32(), r2=7)), "row 3 has a position that does not follow"),
    "cut at its start": (
        lambda folder: changed(folder, position=lambda table: pc.add(table.column("position"), 1).cast(pa.int32())),
        "row 1 is the middle of a list",
    ),
    "another query's candidate": (
        lambda folder: changed(folder, query_id=values("query_id", pa.string(), r1="stranger")),
        "row 2 has another query_id than its list",
    ),
    "no text": (lambda folder: changed(folder, text=values("text", pa.string(), r4=None)), "row 5 has no text"),
    "two positives": (
        lambda folder: changed(folder, candidate_kind=values("candidate_kind", pa.int8(), r1=0)),
        "row 2 is no list of one positive",
    ),
    "a kind of a curriculum": (
        lambda folder: changed(folder, candidate_kind=values("candidate_kind", pa.int8(), r1=5)),
        "row 2 has candidate_kind 5",
    ),
    "a draw too many": (
        lambda folder: changed(folder, draw=lambda table: pa.array([3] * table.num_rows, pa.int8())),
        "is of draw 3; export.json promises draws 0 to 0",
    ),
    "the same list twice": (
        lambda folder: write_parts(folder, [pq.read_table(sorted((folder / "lists").glob("*.parquet"))[0])] * 2),
        "begins another list of query",
    ),
    "a part that was not copied": (lambda folder: (folder / "lists" / "part-00001-of-00002.parquet").unlink(), "is not whole"),
    "no never.parquet": (lambda folder: (folder / "never.parquet").unlink(), "never.parquet is missing"),
    "another column": (
        lambda folder: write_parts(
            folder, [pq.read_table(path).drop_columns(["logit"]) for path in sorted((folder / "lists").glob("*.parquet"))]
        ),
        "has no column logit",
    ),
    "no note": (lambda folder: (folder / "export.json").unlink(), "has no export.json"),
    "a note without draws": (
        lambda folder: write_note(folder, training={"teachers": ["t"]}, counts={}),
        "does not say what training needs",
    ),
    "a note of another type": (
        lambda folder: write_note(
            folder, training={"teachers": "t", "draws": 1, "negatives_source": "student", "negatives": 3, "mask_ratios": []}, counts={}
        ),
        "of which a value is of another type",
    ),
    "fewer lists than counted": (
        lambda folder: (folder / "export.json").write_text((folder / "export.json").read_text().replace('"lists": 14', '"lists": 15')),
        "holds 14 lists, its export.json counts 15",
    ),
    "no Parquet": (lambda folder: (folder / "lists" / "part-00000-of-00002.parquet").write_text("x"), "it is damaged; copy or export"),
}


@pytest.mark.medium
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_no_whole_export_is_refused(fault: str, spoiled: Path, tmp_path: Path, tiny_experiment: Any, prep_run: Prep) -> None:
    """Prevents: half a data set trained as if it were whole, lists of two queries in one, a traceback of Arrow."""
    spoil, told = FAULTS[fault]
    spoil(spoiled)
    with pytest.raises(UserError, match=told):
        prep_run(of_lists(tiny_experiment, tmp_path / "run", spoiled))
    assert not list((tmp_path / "run" / "store").glob("lists/*/*.parquet")), "no shard of it appears"


@pytest.mark.medium
def test_lists_without_a_teacher_train_what_needs_none(spoiled: Path, tmp_path: Path, tiny_experiment: Any, prep_run: Prep) -> None:
    """Prevents: lists of a store without a teacher that cannot leave it."""
    note = json.loads((spoiled / "export.json").read_text())
    note["training"]["teachers"] = []
    (spoiled / "export.json").write_text(json.dumps(note))
    for path in (spoiled / "lists").glob("*.parquet"):
        table = pq.read_table(path)
        for name in ("logit", "confidence"):
            table = table.set_column(table.column_names.index(name), name, pa.nulls(table.num_rows, pa.float32()))
        pq.write_table(table, path)
    prep_run(of_lists(tiny_experiment, tmp_path / "run", spoiled))
    rows = [row for path in shards_of(tmp_path / "run" / "store") for row in pq.read_table(path).to_pylist()]
    assert len(rows) == 14 and all(row["confidence"] != row["confidence"] for row in rows), "C(q) is no number"


def test_what_is_no_part_of_such_a_run_is_said(export: Path, tmp_path: Path, tiny_experiment: Any) -> None:
    """Prevents: a stage that is silently left out; a collection that is asked for, and not needed."""
    config = of_lists(tiny_experiment, tmp_path, export)

    def told(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, [words[0], f"config={config}", *words[1:]])
        return done.exit_code, done.output

    for stage, what in (
        ("pools", "nothing is mined, drawn or scored"),
        ("ingest", "set ingest.path=FOLDER"),
        ("teacher_scores", "nothing is mined"),
        ("dev", "set dev.queries=NUMBER"),
    ):
        code, said = told("run", f"stage={stage}")
        assert code == 2 and what in said
    for setting, what in (
        ("curriculum.enabled=true", "leave one of them out"),
        ("dev.queries=3", "set ingest.path=FOLDER beside lists.path"),
    ):
        code, said = told("plan", setting)
        assert code == 2 and what in said and "got {" not in said and "  : " not in said, "all settings, in place of a sentence"
    code, said = told("plan")
    assert code == 0 and "lists.never      waits for lists" in said
    assert told("status")[0] == 0 and told("inspect")[0] == 2
    code, said = told("plan", "lists.path=null", "teacher.model=x")
    assert code == 2 and "ingest.path is missing" in said


@pytest.mark.medium
def test_reports_and_dev_sets_of_exported_lists(
    export: Path, finished: Any, collection: Path, tmp_path: Path, tiny_experiment: Any, prep_run: Prep
) -> None:
    """Prevents: a report or an inspection that wants the tables of mining, C(q) that is another one than in the store."""
    config = tiny_experiment(tmp_path, **{"lists.path": export, "dev.queries": 3})
    prep_run(config)
    assert list((tmp_path / "store" / "dev").glob("*/*.parquet"))
    of_store, of_copy = (CliRunner().invoke(app, ["inspect", f"config={one}", "query=train3"]) for one in (finished.config, config))
    assert of_copy.exit_code == 0, of_copy.output
    assert of_copy.output == of_store.output and "C(q)" in of_copy.output
    out = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["report", f"config={config}", f"out={out}"])
    assert done.exit_code == 0, done.output
    assert "lists from" in out.read_text() and "noisy positive, ratio 0.15" in out.read_text()


@pytest.mark.medium
def test_an_export_on_an_object_store(
    export: Path, finished: Any, bucket: Any, tmp_path: Path, tiny_experiment: Any, prep_run: Prep
) -> None:
    """Prevents: an export that must be copied by hand before it is read, or of which a part is not copied."""
    prep_run(of_lists(tiny_experiment, tmp_path, f"{bucket.upload(export, 'lists of a run')}/"))
    assert [pages(path) for path in shards_of(tmp_path / "store")] == [pages(path) for path in shards_of(finished.store)]
    with pytest.raises(UserError, match="has no export"):
        prep_run(of_lists(tiny_experiment, tmp_path / "other", f"{bucket}/elsewhere"))
