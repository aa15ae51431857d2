"""Dev sets of small collections: all that is in them, under which name; what is refused, and when."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from data.config.settings import load
from data.errors import RunFailed, UserError
from data.tables.manifest import Manifest
from data.tables.schemas import DevRole
from data.tables.shards import read_shard
from pipeline.cli import app
from pipeline.plan import Planner, selected_tables
from pipeline.stages.dev.whole import sources
from retrieval.models.tokenizer import Tokenizer

Prep = Callable[..., list[str]]
PASSAGES = {"d10": ("", "ba be bi bo bu ca ce ci co"), "d2": ("Bo", "cu zu"), "7": ("", "zo zo"), "ü 1/x": ("", "ga")}
QUERIES = {"q2": "ba be", "q1": "zo", "q9": "fo", "q0": "none of the split"}
LABELS = [("q2", "d10", 1), ("q2", "d2", 2), ("q1", "7", 1), ("q1", "d2", 0), ("q9", "d2", 0)]


def write_collection(folder: Path, *, labels: list[tuple[str, str, int]] = LABELS, split: str = "test", corpus: str = "") -> Path:
    """A BEIR folder of three passages that are judged and one that is not. `corpus` is written behind its records."""
    (folder / "qrels").mkdir(parents=True)
    records = [{"_id": doc_id, "title": title, "text": text} for doc_id, (title, text) in PASSAGES.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + corpus)
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in QUERIES.items()))
    lines = ["query-id\tcorpus-id\tscore", *("\t".join(map(str, label)) for label in labels)]
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def prep(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    return result.exit_code, result.output


@pytest.fixture
def config(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> Path:
    lengths = {"student.query_tokens": 6, "student.passage_tokens": 8, "student.query_prefix": "be: ", "student.passage_prefix": "bi: "}
    return tiny_experiment(tmp_path / "tiny", **lengths)


def folder_of(config: Path, name: str) -> Path:
    (folder,) = (config.parent / "store" / "dev").glob(f"{name}-*")
    return folder


def test_all_of_a_collection_is_in_it(config: Path, tmp_path: Path, models: Any, prep_run: Prep) -> None:
    """Prevents: a passage or a judged query that is missing, so that the figures are not those that are published; a query with labels of
    0 alone that counts; tokens of another text, or cut or prefixed otherwise than in training."""
    prep_run(config, stage="dev", **{"dev.collections": write_collection(tmp_path / "Nano")})
    folder = folder_of(config, "Nano")
    rows = read_shard(folder / "part-00000-of-00001.parquet").to_pylist()
    tokenizer = Tokenizer(models.student)
    grades = {"q1": {"7": 1}, "q2": {"d10": 1, "d2": 2}}
    expected = [
        {
            "role": DevRole.QUERY, "id": query, "tokens": tokenizer.encode([f"be: {QUERIES[query]}"], max_tokens=6)[0],
            "judged_ids": list(judged), "grades": list(judged.values()),
        }
        for query, judged in grades.items()
    ] + [
        {
            "role": DevRole.PASSAGE, "id": doc_id, "judged_ids": [], "grades": [],
            "tokens": tokenizer.encode([f"bi: {' '.join(PASSAGES[doc_id]).strip()}"], max_tokens=8)[0],
        }
        for doc_id in ("7", "d10", "d2", "ü 1/x")
    ]  # fmt: skip
    assert rows == expected
    told = json.loads(pq.read_schema(folder / "part-00000-of-00001.parquet").metadata[b"dev"])
    assert (told["name"], told["split"], told["tokenizer"]) == ("Nano", "test", tokenizer.digest)
    manifest = Manifest.read(folder)
    assert manifest is not None
    dropped = {"unjudged": 1, "query without a label above 0": 1}
    assert manifest.counts == {"in": 4 + 4 + 5, "kept": 11, "dropped": dropped}


def test_several_beside_the_collection_s_own(config: Path, tmp_path: Path, prep_run: Prep) -> None:
    """Prevents: a set that is not built by a whole run, a `path` of some of them, and an own set that is another table than before."""
    for name in ("Nano A", "Nano-B"):
        write_collection(tmp_path / "nano" / name, labels=LABELS[: 2 + len(name) % 2])
    (tmp_path / "nano" / "notes.txt").touch()
    words = {"dev.queries": 3, "dev.depth": 4, "dev.collections": tmp_path / "nano" / "*"}
    for stage in ("ingest", "embed"):
        prep_run(config, stage=stage)
    prep_run(config, stage="dev", **{"dev.queries": 3, "dev.depth": 4})
    (own,) = (config.parent / "store" / "dev").iterdir()
    code, output = prep("path", f"config={config}", "stage=dev", *(f"{key}={value}" for key, value in words.items()))
    assert code == 2 and f"{own}\n" not in output and "dev.Nano_A is not complete" in output
    lines = prep_run(config, stage="dev", **words)
    assert [line.split()[:2] for line in lines] == [["dev.Nano_A", "built"], ["dev.Nano-B", "built"], ["dev", "complete"]]
    code, output = prep("path", f"config={config}", "stage=dev", *(f"{key}={value}" for key, value in words.items()))
    assert code == 0 and output.splitlines() == [str(folder_of(config, "Nano_A")), str(folder_of(config, "Nano-B")), str(own)]
    for table, folder in (("dev", own), ("Nano-B", folder_of(config, "Nano-B"))):
        code, output = prep("path", f"config={config}", "stage=dev", f"table={table}", *(f"{key}={value}" for key, value in words.items()))
        assert code == 0 and output == f"{folder}\n"
    experiment = load({"config": str(config), **{key: str(value) for key, value in words.items()}})
    order = [table.label for table in selected_tables(experiment, "all")]
    assert {"dev", "dev.Nano_A", "dev.Nano-B", "shards"} <= {*order} and order.index("dev.Nano-B") < order.index("embed.corpus")


def test_the_content_is_what_counts(config: Path, tmp_path: Path, prep_run: Prep) -> None:
    """Prevents: sets made again since a folder was moved, or not made again since a label or the student's lengths changed; a reason that
    is that of another set."""
    folder = write_collection(tmp_path / "one" / "Nano")
    prep_run(config, stage="dev", **{"dev.collections": folder})
    moved = shutil.move(folder, tmp_path / "Nano")

    def planned(*words: str) -> str:
        code, output = prep("plan", f"config={config}", "stage=dev", f"dev.collections={moved}", *words)
        assert code == 0, output
        return output

    for word in ("dev.depth=9", "seed=3", "ingest.max_bad_fraction=0.5", "dev.max_passages=4", "dev.collections_split=test"):
        assert "complete" in planned(word), word
    assert "passage_tokens 8 -> 9" in planned("student.passage_tokens=9")
    other = write_collection(tmp_path / "Nano-2")
    assert "never built" in prep("plan", f"config={config}", "stage=dev", f"dev.collections={other}")[1]
    with open(moved / "qrels" / "test.tsv", "a") as file:
        file.write("q9\td10\t1\n")
    assert "changed: collection.queries.test" in planned()


@pytest.mark.parametrize(
    ("splits", "words", "said"),
    [
        (["test"], {}, "test"),
        (["train"], {}, "train"),
        (["dev", "test"], {}, "dev"),
        (["test", "train"], {"dev.split": "test"}, "test"),
        (["dev", "test"], {"dev.collections_split": "test"}, "test"),
        (["test", "train"], {}, r"no qrels of split dev, it has test, train: set dev\.collections_split"),
        (["test"], {"dev.collections_split": "valid"}, r"no qrels of split valid, it has test: set dev\.collections_split"),
    ],
)
def test_which_split(config: Path, tmp_path: Path, prep_run: Prep, splits: list[str], words: dict[str, str], said: str) -> None:
    """Prevents: figures of a split that nobody chose, where there are several."""
    folder = write_collection(tmp_path / "Nano", split=splits[0])
    for split in splits[1:]:
        shutil.copy(folder / "qrels" / f"{splits[0]}.tsv", folder / "qrels" / f"{split}.tsv")
    if len(said) > 5:
        with pytest.raises(UserError, match=said):
            prep_run(config, stage="dev", **{"dev.collections": folder, **words})
        return
    prep_run(config, stage="dev", **{"dev.collections": folder, **words})
    assert json.loads(pq.read_schema(folder_of(config, "Nano") / "part-00000-of-00001.parquet").metadata[b"dev"])["split"] == said


def test_broken_records_are_counted(config: Path, tmp_path: Path, prep_run: Prep) -> None:
    """Prevents: a collection that is read to its half without a word, and one that is refused without file and line."""
    folder = write_collection(tmp_path / "Nano", corpus='{"_id": "d2", "text": "again"}\n{"_id": "e"}\n')
    with pytest.raises(UserError, match=r"(?s)2 of 6 records are broken.*corpus\.jsonl:5: duplicate id.*corpus\.jsonl:6: no text"):
        prep_run(config, stage="dev", **{"dev.collections": folder})
    assert not list(config.parent.glob("store/dev/*/manifest.json"))
    strange = write_collection(tmp_path / "strange")
    (strange / "queries.jsonl").write_text("q1\tzo\n")
    with pytest.raises(UserError, match=r"(?s)1 of 1 records are broken.*queries\.jsonl:1: not JSON"):
        prep_run(config, stage="dev", **{"dev.collections": strange})
    words = {"dev.collections": folder, "ingest.max_bad_fraction": 0.5}
    lines = prep_run(config, stage="dev", **words)
    assert any("dev.Nano: 2 of 15 records are broken and left out (1 duplicate id, 1 no text)" in line for line in lines)
    faults = read_shard(folder_of(config, "Nano") / "quarantine" / "part-00000-of-00001.parquet").to_pylist()
    assert [(fault["file"], fault["line"]) for fault in faults] == [("corpus.jsonl", 5), ("corpus.jsonl", 6)]


def test_what_is_refused_before_any_work(config: Path, tmp_path: Path, collection: Path) -> None:
    """Prevents: hours of scoring before a folder that is not there, is none, is too large, or is trained on."""
    nano, empty = write_collection(tmp_path / "nano" / "A"), tmp_path / "empty"
    empty.mkdir()
    twin, zeros = write_collection(tmp_path / "other" / "a"), write_collection(tmp_path / "zeros", labels=[("q1", "7", 0)])
    unknown = write_collection(tmp_path / "unknown", labels=[("q1", "7", 1)])
    (unknown / "queries.jsonl").unlink()
    for words, message in [
        ({"dev.collections": tmp_path / "gone"}, "gone: no such folder"),
        ({"dev.collections": tmp_path / "gone" / "*"}, "no folder is called so"),
        ({"dev.collections": nano / "corpus.jsonl"}, r"corpus\.jsonl: no such folder"),
        ({"dev.collections": "s3://bucket/nano/*"}, "a pattern is of local folders"),
        ({"dev.collections": empty}, r"dev\.collections: .*empty: looked for corpus\.jsonl"),
        ({"dev.collections": nano.parent}, r"the folder A below it is a collection: for all of them set dev\.collections=.*nano/\*"),
        ({"dev.collections": f"{nano},{twin}"}, r"would both be the dev set a"),
        ({"dev.collections": nano, "dev.max_passages": 3}, r"more than 3 passages.*raise dev\.max_passages"),
        ({"dev.collections": zeros}, "no label above 0"),
        ({"dev.collections": unknown}, r"looked for queries\.jsonl"),
        ({"dev.collections": collection, "dev.collections_split": "train"}, "its split train is trained on"),
    ]:
        with pytest.raises(UserError, match=message):
            experiment = load({"config": str(config), **{key: str(value) for key, value in words.items()}})
            Planner(experiment).check(selected_tables(experiment, "all"))
    own = write_collection(tmp_path / "dev")
    with pytest.raises(UserError, match=r"dev\.queries would both be the dev set dev"):
        sources(load({"config": str(config), "dev.collections": str(own), "dev.queries": "3"}))


def test_a_failure_stays_a_failure(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: bad input (2) told to a queue, where a network was gone and the same command may go on (1)."""

    def gone(path: str) -> Any:
        raise RunFailed(f"{path}: no route to host")

    monkeypatch.setattr("pipeline.stages.dev.whole.find_collection", gone)
    experiment = load({"config": str(config), "dev.collections": "s3://bucket/nano"})
    with pytest.raises(RunFailed, match="nano: no route to host"):
        Planner(experiment).check(selected_tables(experiment, "all"))


def test_judgements_of_nothing_that_is_there(config: Path, tmp_path: Path, prep_run: Prep) -> None:
    """Prevents: a dev set of queries for which nothing can be found, on which every student has 0."""
    folder = write_collection(tmp_path / "Nano", labels=[("q1", "gone", 1)])
    with pytest.raises(UserError, match=r"(?s)no judgement of a known query and a known passage: .*no passage is called 'gone'"):
        prep_run(config, stage="dev", **{"dev.collections": folder})


def test_a_folder_counts_once(config: Path, tmp_path: Path) -> None:
    """Prevents: a set that counts twice since it is named and matched by a pattern, or with a slash at its end."""
    for name in ("A", "B"):
        write_collection(tmp_path / name)
    (tmp_path / "C").symlink_to(tmp_path / "A")
    given_ = f"{tmp_path}/B/,{tmp_path}/[ABC],{os.path.relpath(tmp_path / 'A')}"
    assert [source.name for source in sources(load({"config": str(config), "dev.collections": given_}))] == ["B", "A", "C"]


@given(st.lists(st.text(st.characters(exclude_characters="/\0,", exclude_categories=["Cs"]), min_size=1, max_size=85), max_size=4))
def test_names_are_safe_and_told_apart(tiny_experiment: Callable[..., Path], tmp_path_factory: Any, names: list[str]) -> None:
    """Prevents: a folder's name that is a path of its own, too long for a file system, or two sets under one name."""
    experiment = load({"config": str(tiny_experiment(tmp_path_factory.getbasetemp() / "names"))})
    dev = experiment.dev.model_copy(update={"collections": tuple(f"s3://bucket/{name}" for name in names)})
    try:
        found = [source.name for source in sources(experiment.model_copy(update={"dev": dev}))]
    except UserError as error:
        assert "give one of the folders another name" in str(error)
        return
    assert len({name.casefold() for name in found}) == len(found)
    for name in found:
        assert len(name.encode()) <= 200 and not set(name) & set("/\\*?[]@ \n") and name
