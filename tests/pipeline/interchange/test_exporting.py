"""`prep export`: every format of every kind of store, read back with plain pyarrow and json."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Finished
from typer.testing import CliRunner

from data.config.arguments import Args
from data.config.settings import load
from data.digests import pair_key
from data.errors import UserError
from data.logits.segment import Scores, as_keys
from data.logits.store import LogitStore
from data.tables.schemas import CURRICULUM
from pipeline.cli import app
from pipeline.interchange.exporting import OPTIONS, run_export
from pipeline.interchange.own_export import public_name

OTHERS = ("sentence-transformers", "flagembedding", "tevatron", "pylate", "trec", "tsv", "beir")
DARK = (2, 3)
GROUPS = {
    "hard_negatives.depth": 30, "hard_negatives.range_max": 30, "curriculum.enabled": True, "curriculum.near_rank": 12,
    "curriculum.retrieved": 25, "curriculum.iterations": ["2/3/4", "4/3/2"],
}  # fmt: skip
UNSCORED = {"teacher.backend": "none", "dark_examples.reinforced": False, "dark_examples.mask_ratios": []}


@dataclass
class Run:
    """What a `prep export` printed and wrote."""

    folder: Path
    lines: list[str] = field(default_factory=list)

    def line(self, start: str) -> str:
        return next((line for line in self.lines if line.startswith(start)), "")

    def parquet(self, part: str) -> list[dict[str, Any]]:
        return pq.read_table(self.folder / part).to_pylist()

    def json_lines(self, name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / name).read_text(encoding="utf-8").split("\n") if line]


def export(store: Finished, out: Path, format: str, **options: str) -> Run:
    run = Run(out)
    args = Args({**OPTIONS, "format": format, "out": str(out), **options})
    run_export(load({"config": str(store.config)}), args, say=run.lines.append)
    return run


@dataclass(frozen=True)
class Candidate:
    """A row of the store's lists."""

    query_id: str
    draw: int
    kind: int
    id: str
    query: str
    text: str
    logit: float | None
    confidence: float | None


def newest(store: Path, pattern: str) -> list[Path]:
    """The shards of the last table that was made of a stage."""
    manifests = sorted(store.glob(f"{pattern}/manifest.json"), key=lambda path: path.stat().st_mtime_ns)
    return sorted(manifests[-1].parent.glob("*.parquet")) if manifests else []


def stored(store: Path, *, groups: bool = False, scored: bool = True) -> list[Candidate]:
    """All rows in the order of the store, read with plain pyarrow."""
    rows = []
    for number, path in enumerate(newest(store, "curriculum/*" if groups else "dark_examples/*")):
        scores, confidences = {}, {}
        if scored and not groups:
            named = {name: pq.read_table(newest(store, f"{name}/*")[number]).to_pylist() for name in ("teacher_scores", "confidence")}
            scores = {(row["query_id"], row["draw"], row["position"]): row["logit"] for row in named["teacher_scores"]}
            confidences = {(row["query_id"], row["draw"]): row["confidence"] for row in named["confidence"]}
        for row in pq.read_table(path).to_pylist():
            key = row["query_id"], row["draw"]
            logit = row.get("logit", scores.get((*key, row["position"])))
            sure = row.get("confidence", confidences.get(key))
            rows.append(Candidate(*key, row["candidate_kind"], row["candidate_id"], row["query"], row["text"], logit, sure))
    return rows


def lists_of(rows: list[Candidate], *, draws: tuple[int, ...] = (0,), dark: bool = False) -> list[list[Candidate]]:
    """The lists of some draws, plain candidates alone unless `dark`."""
    lists: dict[tuple[str, int], list[Candidate]] = {}
    for row in rows:
        if row.draw in draws and (dark or row.kind not in DARK):
            lists.setdefault((row.query_id, row.draw), []).append(row)
    return list(lists.values())


def plain(text: str) -> str:
    return text.replace("⟦SEP⟧", "[SEP]").replace("⟦MASK⟧", "[MASK]")


@pytest.fixture(scope="module")
def made(
    finished: Finished, tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]]
) -> Callable[..., Finished]:
    """`made(NAME, **settings)`: a store beside the finished one, whose embeddings it starts with; made once a name."""
    known: dict[str, Finished] = {}

    def make(name: str, **settings: Any) -> Finished:
        if name not in known:
            config = tiny_experiment(tmp_path_factory.mktemp(name), **settings)
            for stage in ("ingest", "embed", "teacher_logits"):
                shutil.copytree(finished.store / stage, config.parent / "store" / stage)
            prep_run(config)
            known[name] = Finished(config, config.parent / "store")
        return known[name]

    return make


@pytest.fixture(scope="module")
def two_draws(made: Callable[..., Finished]) -> Finished:
    return made("draws", **{"hard_negatives.draws": 2, "dark_examples.mask_draws": 2})


@pytest.fixture(scope="module")
def groups(made: Callable[..., Finished]) -> Finished:
    return made("groups", **GROUPS)


@pytest.fixture(scope="module")
def unscored(made: Callable[..., Finished]) -> Finished:
    return made("unscored", **UNSCORED)


# format=lists


def own_rows(folder: Path) -> list[Candidate]:
    rows = []
    for path in sorted((folder / "lists").glob("*.parquet")):
        table = pq.read_table(path)
        assert table.schema.names[: len(CURRICULUM.names)] == CURRICULUM.names
        for row in table.to_pylist():
            names = ("query_id", "draw", "candidate_kind", "candidate_id", "query", "text", "logit", "confidence")
            rows.append(Candidate(*(row[name] for name in names)))
    return rows


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["two_draws", "groups", "unscored"])
def test_our_own_layout_holds_every_row_to_the_bit(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """Prevents: a copy of lists that trains another student: a row left out or out of order, a logit of the next list, a rounded number."""
    store: Finished = request.getfixturevalue(kind)
    run = export(store, tmp_path / "out", "lists", licence="CC-BY 4.0")
    expected = stored(store.store, groups=kind == "groups", scored=kind != "unscored")
    assert own_rows(run.folder) == expected and expected
    note = json.loads((run.folder / "export.json").read_text())
    lists = {(row.query_id, row.draw) for row in expected}
    assert note["counts"] == {"queries": len({row.query_id for row in expected}), "lists": len(lists), "candidates": len(expected)}
    assert note["licence"] == "CC-BY 4.0" and note["format"] == "lists"
    assert note["training"]["draws"] == (1 if kind == "unscored" else 2)
    assert ("name" in note["teacher"]) == (kind != "unscored")
    for path in (run.folder / "lists").iterdir():
        file = pq.ParquetFile(path)
        for group in range(file.num_row_groups):
            assert file.read_row_group(group).column("position")[0].as_py() == 0, "a list lies in one row group"


def test_its_note_says_what_the_training_shards_say(finished: Finished, tmp_path: Path) -> None:
    """Prevents: shards of a copy with another count of draws or negatives than those that they were copied from."""
    note = json.loads((export(finished, tmp_path / "out", "lists").folder / "export.json").read_text())
    (first, *_) = newest(finished.store, "shards/*")
    said = json.loads(pq.read_schema(first).metadata[b"training"])
    assert {name: note["training"][name] for name in said if name != "tokenizer"} == {
        name: value for name, value in said.items() if name != "tokenizer"
    }
    assert note["training"]["order"] == json.loads((first.parent / "manifest.json").read_text())["content_digest"]
    assert [note["teacher"]["namespace"]] == said["teachers"]


def test_it_has_what_is_never_a_negative(finished: Finished, tmp_path: Path) -> None:
    """Prevents: positives of a query that are its negatives in a batch of the copy."""
    run = export(finished, tmp_path / "out", "lists")
    pools = [row for path in newest(finished.store, "pools/ranked-*") for row in pq.read_table(path).to_pylist()]
    assert run.parquet("never.parquet") == [{"query_id": row["query_id"], "never_ids": row["never_ids"]} for row in pools]
    assert any(row["never_ids"] for row in pools)


def test_other_teachers_have_a_column_each(copied: Finished, tmp_path: Path) -> None:
    """Prevents: logits that were paid for and stay behind, a teacher's logits under another's name, a column for one who knows no pair."""
    rows = stored(copied.store)
    known = {pair_key(row.query, row.text): np.float32(number / 3) for number, row in enumerate(rows) if number % 3 == 0}
    for namespace, name, keys in (
        ("a" * 32, "other", list(known)),
        ("b" * 32, "other", list(known)[:1]),
        ("c" * 32, "stranger", [b"x" * 16]),
    ):
        store = LogitStore(copied.store, namespace)
        store.describe(key={"kind": namespace}, name=name)
        logits = np.array([known.get(key, 0.0) for key in keys], np.float32)
        store.append(as_keys(keys), Scores(logits, np.zeros(len(keys), np.int32), np.zeros(len(keys), bool)))
    run = export(copied, tmp_path / "out", "lists")
    table = pa.concat_tables(pq.read_table(path) for path in sorted((run.folder / "lists").iterdir()))
    assert table.column_names[len(CURRICULUM.names) :] == ["logit:other", f"logit:other@{'b' * 12}"]
    expected = [known.get(pair_key(row.query, row.text)) for row in rows]
    assert table.column("logit:other").to_pylist() == [None if logit is None else float(logit) for logit in expected]
    note = json.loads((run.folder / "export.json").read_text())
    assert [(one["namespace"], one["column"], one["key"]) for one in note["other_teachers"]] == [
        ("a" * 32, "logit:other", {"kind": "a" * 32}), ("b" * 32, f"logit:other@{'b' * 12}", {"kind": "b" * 32}),
    ]  # fmt: skip
    assert "logits of other teachers" in export(copied, tmp_path / "tsv", "tsv").line("left out")


# the formats of others


def test_rows_of_sentence_transformers(finished: Finished, tmp_path: Path) -> None:
    """Prevents: ids as texts to be trained on, a score beside another passage, a lost digit."""
    run = export(finished, tmp_path / "out", "sentence-transformers")
    expected = lists_of(stored(finished.store))
    (name,) = (path.relative_to(run.folder).as_posix() for path in run.folder.glob("data/*"))
    assert name == "data/train-00000-of-00001.parquet"
    assert [list(row) for row in run.parquet(name)] == [["query", "positive", "negative_1", "negative_2", "negative_3", "label"]] * len(
        expected
    )
    for row, beside, listed in zip(run.parquet(name), run.parquet("lists/lists-00000-of-00001.parquet"), expected, strict=True):
        *texts, label = row.values()
        assert texts == [listed[0].query, *(one.text for one in listed)] and label == [one.logit for one in listed]
        assert beside["query_id"] == listed[0].query_id and beside["confidence"] == listed[0].confidence
        assert beside["candidate_ids"] == [one.id for one in listed] and beside["candidate_kinds"] == [one.kind for one in listed]
    dark = sum(row.kind in DARK for row in stored(finished.store))
    assert run.line("left out") == f"left out in sentence-transformers: {dark} dark examples (dark=true writes them)"


def test_margins_and_fewer_negatives(finished: Finished, tmp_path: Path) -> None:
    """Prevents: margins with the wrong sign, a width that is not what was asked for, candidates lost in silence."""
    run = export(finished, tmp_path / "out", "sentence-transformers", layout="margin_mse", negatives="1")
    expected = lists_of(stored(finished.store))
    rows = run.parquet("data/train-00000-of-00001.parquet")
    assert [list(row) for row in rows] == [["query", "positive", "negative", "label"]] * len(expected)
    for row, listed in zip(rows, expected, strict=True):
        assert row["negative"] == listed[1].text
        assert np.float32(row["label"][0]) == np.float32(listed[0].logit) - np.float32(listed[1].logit)
    assert f"{2 * len(expected)} negatives beyond that number" in run.line("left out")


def test_dark_examples_stand_as_the_teacher_reads_them(finished: Finished, tmp_path: Path) -> None:
    """Prevents: marks of this project in texts that others train on, and dark examples that are lost though they were asked for."""
    run = export(finished, tmp_path / "out", "tevatron", dark="true")
    expected = lists_of(stored(finished.store), dark=True)
    rows = run.json_lines("train.jsonl")
    for row, listed in zip(rows, expected, strict=True):
        passages = row["positive_passages"] + row["negative_passages"]
        assert [(one["docid"], one["text"], one["kind"]) for one in passages] == [(one.id, plain(one.text), one.kind) for one in listed]
        assert [np.float32(one["score"]) for one in passages] == [np.float32(one.logit) for one in listed]
    dark = sum(row.kind in DARK for listed in expected for row in listed)
    assert run.line(f"{dark} dark examples stand among the negatives") and not run.line("left out")
    text = json.dumps(rows, ensure_ascii=False)
    assert "[SEP]" in text and "[MASK]" in text and "⟦" not in text


@pytest.mark.medium
def test_lines_of_flagembedding(two_draws: Finished, tmp_path: Path) -> None:
    """Prevents: draws mixed up in one list, scores that are not of the texts beside them, rounded scores."""
    run = export(two_draws, tmp_path / "out", "flagembedding", draw="all")
    expected = lists_of(stored(two_draws.store), draws=(0, 1))
    for row, listed in zip(run.json_lines("train.jsonl"), expected, strict=True):
        assert (row["query_id"], row["draw"], row["query"]) == (listed[0].query_id, listed[0].draw, listed[0].query)
        assert np.float32(row["confidence"]) == np.float32(listed[0].confidence)
        assert row["pos"] + row["neg"] == [one.text for one in listed]
        assert [*map(np.float32, row["pos_scores"] + row["neg_scores"])] == [np.float32(one.logit) for one in listed]
        assert row["pos_id"] + row["neg_id"] == [one.id for one in listed] and len(row["pos"]) == 1
    assert "draw" not in run.line("left out").replace("draw 1", "")
    assert "draw 1 (draw=all writes all)" in export(two_draws, tmp_path / "one", "flagembedding").line("left out")
    assert {row["draw"] for row in export(two_draws, tmp_path / "second", "flagembedding", draw="1").json_lines("train.jsonl")} == {1}
    names = {path.name for path in run.folder.iterdir()}
    assert names == {"train.jsonl", "README.md"}, "its data set reads every .json of a folder"


def test_parts_of_pylate(finished: Finished, tmp_path: Path) -> None:
    """Prevents: a document that stands twice, or nowhere, and lists in another order."""
    run = export(finished, tmp_path / "out", "pylate")
    expected = lists_of(stored(finished.store))
    train, queries, documents = (run.parquet(f"{part}/train-00000-of-00001.parquet") for part in ("train", "queries", "documents"))
    assert train == [
        {
            "query_id": listed[0].query_id,
            "document_ids": [one.id for one in listed],
            "scores": [one.logit for one in listed],
            "positive_ids": [listed[0].id],
        }
        for listed in expected
    ]
    texts = {one.id: one.text for listed in expected for one in listed}
    assert {row["document_id"]: row["text"] for row in documents} == texts and len(documents) == len(texts)
    assert [(row["query_id"], row["text"]) for row in queries] == [(listed[0].query_id, listed[0].query) for listed in expected]


@pytest.mark.medium
def test_layouts_without_lists(two_draws: Finished, tmp_path: Path) -> None:
    """Prevents: a passage of two draws that stands twice, a run in another order than its scores, judgements of other passages."""
    distinct: dict[str, dict[str, Candidate]] = {}
    for listed in lists_of(stored(two_draws.store), draws=(0, 1)):
        for one in listed:
            distinct.setdefault(one.query_id, {}).setdefault(one.id, one)
    every = [one for listed in distinct.values() for one in listed.values()]
    judged = [(one.query_id, one.id) for one in every if one.kind == 0]
    trec, tsv, beir = (export(two_draws, tmp_path / name, name, draw="all") for name in ("trec", "tsv", "beir"))
    lines = [line.split("\t") for line in (tsv.folder / "scores.tsv").read_text().splitlines()]
    assert [(one[0], one[1], np.float32(one[2])) for one in lines] == [(one.query_id, one.id, np.float32(one.logit)) for one in every]
    ranked = [line.split() for line in (trec.folder / "lists.trec").read_text().splitlines()]
    order = {query_id: number for number, query_id in enumerate(distinct)}
    best_first = sorted(every, key=lambda one: (order[one.query_id], -one.logit, one.id))
    assert [(one[0], one[2], np.float32(one[4])) for one in ranked] == [(one.query_id, one.id, np.float32(one.logit)) for one in best_first]
    assert [tuple(line.split()[::2]) for line in (trec.folder / "qrels.trec").read_text().splitlines()] == judged
    assert [tuple(line.split("\t")[:2]) for line in (beir.folder / "qrels" / "train.tsv").read_text().splitlines()[1:]] == judged
    texts = {one.id: one.text for one in every}
    assert {row["_id"]: row["text"] for row in beir.json_lines("corpus.jsonl")} == texts
    assert len(beir.json_lines("corpus.jsonl")) == len(texts)
    assert [row["_id"] for row in beir.json_lines("queries.jsonl")] == list(distinct)
    assert "passages that several draws of a query have, written once" in tsv.line("left out")


@pytest.mark.medium
@pytest.mark.parametrize("format", ["sentence-transformers", "flagembedding", "pylate", "beir"])
def test_in_groups_only_labels_make_positives(groups: Finished, collection: Path, tmp_path: Path, format: str) -> None:
    """Prevents: the teacher's best, which carry no label, as positives of losses that believe labels; and that nobody hears of them."""
    labels: dict[str, set[str]] = {}
    for line in (collection / "qrels" / "train.tsv").read_text().splitlines()[1:]:
        query_id, doc_id, _ = line.split("\t")
        labels.setdefault(query_id, set()).add(doc_id)
    run = export(
        groups, tmp_path / "out", format, draw="1", **({"negatives": "4"} if format in ("pylate", "sentence-transformers") else {})
    )
    if format == "beir":
        found = [tuple(line.split("\t")[:2]) for line in (run.folder / "qrels" / "train.tsv").read_text().splitlines()[1:]]
        assert sorted(found) == sorted((query_id, doc_id) for query_id, ids in labels.items() for doc_id in ids)
    elif format == "flagembedding":
        for row in run.json_lines("train.jsonl"):
            assert set(row["pos_id"]) == labels[row["query_id"]] and not set(row["neg_id"]) & labels[row["query_id"]]
        assert {4} < {kind for row in run.json_lines("train.jsonl") for kind in row["neg_kind"]}
    else:
        for row in run.parquet("lists/lists-00000-of-00001.parquet"):
            first, *others = row["candidate_ids"]
            assert first in labels[row["query_id"]] and not set(others) & labels[row["query_id"]]
        assert "1 further positives of a list" in run.line("left out")
    assert any("group 1 carry no label" in line for line in run.lines) == (format != "beir")


@pytest.mark.medium
def test_without_a_teacher_there_are_no_scores(unscored: Finished, tmp_path: Path) -> None:
    """Prevents: NaN as scores, and formats of scores without any."""
    run = export(unscored, tmp_path / "st", "sentence-transformers")
    assert list(run.parquet("data/train-00000-of-00001.parquet")[0]) == ["query", "positive", "negative_1", "negative_2", "negative_3"]
    for format in ("flagembedding", "tevatron"):
        text = (export(unscored, tmp_path / format, format).folder / "train.jsonl").read_text()
        assert "NaN" not in text and "score" not in text and "confidence" not in text
    assert "no logits" in " ".join(run.lines)
    assert export(unscored, tmp_path / "beir", "beir").json_lines("corpus.jsonl")
    for format in ("pylate", "trec", "tsv"):
        with pytest.raises(UserError, match=rf"format={format} holds scores, and these lists have none"):
            export(unscored, tmp_path / "no", format)
    with pytest.raises(UserError, match=r"layout=margin_mse is of scores"):
        export(unscored, tmp_path / "no", "sentence-transformers", layout="margin_mse")
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("format", OTHERS)
def test_each_says_whose_it_is(finished: Finished, tmp_path: Path, format: str) -> None:
    """Prevents: lists that travel without their licence and teacher, and with a folder of this machine."""
    run = export(finished, tmp_path / "out", format, licence="CC-BY 4.0, by us")
    text = (run.folder / "README.md").read_text()
    assert "Licence: CC-BY 4.0, by us" in text and run.line("left out") in text and run.line("left out")
    assert "teacher (namespace" in text and str(finished.store.parents[1]) not in text
    assert run.lines[-1] == f"wrote {run.folder}"
    again = export(finished, tmp_path / "again", format, licence="CC-BY 4.0, by us")
    for path in run.folder.rglob("*"):
        assert path.is_dir() or path.read_bytes() == (again.folder / path.relative_to(run.folder)).read_bytes(), "the same bytes again"


# what is refused


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "sentence_transformers"}, "format=sentence_transformers"),
        ({"format": ""}, "format="),
        ({"out": ""}, "out=PATH is missing"),
        ({"draw": "1"}, "draws 0 to 0"),
        ({"draw": "-1"}, "draws 0 to 0"),
        ({"draw": "first"}, "draws 0 to 0"),
        ({"dark": "yes"}, "dark=yes"),
        ({"negatives": "0"}, "at least 1"),
        ({"negatives": "many"}, "whole number"),
        ({"negatives": "99"}, "the longest list has 3"),
        ({"layout": "triplets"}, "layout=triplets"),
        ({"format": "lists", "draw": "0"}, "draw=0 does not go with format=lists: it writes all draws"),
        ({"format": "lists", "dark": "false"}, "dark=false does not go with format=lists: it writes all"),
        ({"format": "tsv", "dark": "true"}, "dark=true does not go with format=tsv"),
        ({"format": "tevatron", "negatives": "2"}, "negatives=2 does not go with format=tevatron"),
        ({"format": "pylate", "layout": "margin_mse"}, "layout=margin_mse does not go with format=pylate"),
        ({"missing": "true"}, "missing=true does not go with"),
        ({"format": "pairs", "draw": "0"}, "draw=0 does not go with format=pairs"),
        ({"format": "pairs", "licence": "CC0"}, "licence=CC0 does not go with format=pairs"),
    ],
)
def test_what_cannot_be_is_refused(finished: Finished, tmp_path: Path, options: dict[str, str], words: str) -> None:
    """Prevents: options that are passed over, a traceback, half an export."""
    given = {"format": "sentence-transformers", "out": str(tmp_path / "out"), **options}
    with pytest.raises(UserError, match=words):
        run_export(load({"config": str(finished.config)}), Args({**OPTIONS, **given}), say=lambda line: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format", ["lists", "tevatron"])
def test_a_stage_that_is_missing_is_named(copied: Finished, tmp_path: Path, format: str) -> None:
    """Prevents: lists without some of their scores."""
    (gone,) = (copied.store / "teacher_scores").glob("*/part-00001-of-00002.parquet")
    gone.unlink()
    with pytest.raises(UserError, match=r"prep run stage=teacher_scores"):
        export(copied, tmp_path / "out", format)
    assert not (tmp_path / "out").exists()


def test_an_export_is_not_written_over(finished: Finished, tmp_path: Path) -> None:
    """Prevents: two exports in one folder, of which a loader reads both."""
    export(finished, tmp_path / "out", "tsv")
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(UserError, match=r"is there already and holds README\.md"):
        export(finished, tmp_path / "out", "trec")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize(("options", "code"), [((), 0), (("draw=7",), 2), (("draws=1",), 2)])
def test_the_command(finished: Finished, tmp_path: Path, options: tuple[str, ...], code: int) -> None:
    """Prevents: options that the command does not know, and an exit code of success after a refusal."""
    words = ["export", f"config={finished.config}", "format=tsv", f"out={tmp_path / 'out'}", "licence=CC0\n\nby us", *options]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == code, done.output
    assert (tmp_path / "out").exists() == (code == 0)
    if not code:
        assert "14 queries, 56 candidates" in done.output
        assert "Licence: CC0 by us\n" in (tmp_path / "out" / "README.md").read_text()


def test_a_damaged_shard_leaves_no_export(copied: Finished, tmp_path: Path) -> None:
    """Prevents: an export that ends where a shard is damaged, and looks whole."""
    (path,) = (copied.store / "dark_examples").glob("*/part-00001-of-00002.parquet")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    for format in ("lists", "sentence-transformers", "flagembedding", "pylate", "beir"):  # the others read no texts
        with pytest.raises(UserError, match=r"part-00001-of-00002\.parquet cannot be read"):
            export(copied, tmp_path / "out", format)
    assert [one.name for one in tmp_path.iterdir()] == ["copy"]


def test_numbers_of_text_formats_are_whole() -> None:
    """Prevents: a score that another fp32 number has, after a text of it is read as fp64 and rounded."""
    from data.formats.scored_lists.writers.json_lines import short

    values = np.random.default_rng(0).integers(0, 1 << 32, 20_000, dtype=np.uint32).view(np.float32)
    for value in values[np.isfinite(values)].tolist():
        assert np.float32(json.loads(json.dumps(short(value)))) == np.float32(value) and math.isfinite(short(value))


def test_a_teacher_of_a_folder_is_named_by_its_last_part() -> None:
    """Prevents: the folders of a machine in what others read; the name of the imported teacher in place of the one that completes it."""
    assert [public_name(name) for name in ("/home/me/big", "lab/big", "runs/big")] == ["big", "lab/big", "runs/big"]
    assert public_name("/home/me/big, beside imported logits of lab/old@1") == "big, beside imported logits of lab/old@1"
