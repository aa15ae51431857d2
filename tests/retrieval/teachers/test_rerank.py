"""`retrieve rerank` on a tiny cross-encoder: its logits, its order, and how little is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.checkpoints import save
from typer.testing import CliRunner

from data.config.settings import Teacher
from data.errors import UserError
from data.formats.trec import Run, read_run, write_run
from data.tables.shards import read_shard
from retrieval.cli import app
from retrieval.search import stored_texts
from retrieval.search.embedding_table import table_paths
from retrieval.search.stored_texts import texts_of
from retrieval.teachers import rerank as module
from retrieval.teachers.cross_encoder import CrossEncoderTeacher
from retrieval.teachers.rerank import rerank


@pytest.fixture(scope="module")
def tables(finished: Any) -> dict[str, Path]:
    """The corpus and queries tables of the finished run."""
    (corpus,), (queries,) = (list((finished.store / "ingest").glob(f"{name}-*")) for name in ("corpus", "queries"))
    return {"corpus": corpus, "queries": queries}


@pytest.fixture(scope="module")
def texts(tables: dict[str, Path]) -> dict[str, str]:
    """id -> text of all passages and queries."""
    rows = [row for folder in tables.values() for path in table_paths(folder) for row in read_shard(path).to_pylist()]
    return {row.get("doc_id") or row["query_id"]: row["text"] for row in rows}


@pytest.fixture
def run() -> Run:
    """Two queries; the second has fewer passages than the depth."""
    return {"test0": [(f"d{n}", float(-n)) for n in range(12)], "dev1": [("d3", 2.0), ("twin", 1.0), ("d9", 0.5)]}


def teacher_of(models: Any, **words: Any) -> Teacher:
    return Teacher(model=str(models.teacher), precision="fp32", max_tokens=64, **words)


def one_by_one(models: Any, pairs: list[tuple[str, str]]) -> list[float]:
    """Logits by transformers alone."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(models.teacher)
    model = AutoModelForSequenceClassification.from_pretrained(models.teacher).eval()
    with torch.inference_mode():
        return [
            model(**tokenizer(query, text, truncation="longest_first", max_length=64, return_tensors="pt")).logits.item()
            for query, text in pairs
        ]


@pytest.mark.parametrize("sizes", [{}, {"pairs_a_reading": 5, "segment_pairs": 2}])
def test_the_first_passages_are_in_the_teacher_s_order(
    models: Any, tables: dict[str, Path], texts: dict[str, str], run: Run, sizes: dict[str, int]
) -> None:
    """Prevents: query and passage swapped, a logit beside another's passage, or what depends on how much is read at once."""
    segment = {name: sizes[name] for name in ("segment_pairs",) if name in sizes}
    reading = {name: sizes[name] for name in ("pairs_a_reading",) if name in sizes}
    ranked = rerank(run, teacher_of(models, **segment), **tables, depth=7, **reading)
    assert list(ranked) == list(run)
    for query, entries in ranked.items():
        listed = [doc_id for doc_id, _ in run[query][:7]]
        expected = dict(zip(listed, one_by_one(models, [(texts[query], texts[doc_id]) for doc_id in listed]), strict=True))
        assert [doc_id for doc_id, _ in entries] == sorted(listed, key=lambda doc_id: -expected[doc_id])
        np.testing.assert_allclose([logit for _, logit in entries], [expected[doc_id] for doc_id, _ in entries], atol=1e-5)


def test_equal_logits_are_in_the_order_in_which_a_run_is_read(
    models: Any, tables: dict[str, Path], run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Prevents: an order that changes when the run is written and read again."""
    monkeypatch.setattr(CrossEncoderTeacher, "score", lambda self, pairs: np.zeros(len(pairs), np.float32))
    ranked = rerank(run, teacher_of(models), **tables, depth=5)
    assert [doc_id for doc_id, _ in ranked["dev1"]] == ["d3", "d9", "twin"]
    write_run(tmp_path / "r", ranked, tag="t")
    assert read_run(tmp_path / "r") == ranked


def test_only_the_texts_of_one_reading_are_in_memory(
    models: Any, tables: dict[str, Path], texts: dict[str, str], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: the whole collection in a dictionary, or a passage below the depth read and scored."""
    readings: list[set[str]] = []

    def noted(ids: Any, folder: Path, *, id_name: str) -> dict[str, str]:
        found = stored_texts.texts_of(ids, folder, id_name=id_name)
        if id_name == "doc_id":
            readings.append(set(found))
        return found

    monkeypatch.setattr(module, "texts_of", noted)
    rerank(run, teacher_of(models), **tables, depth=4, pairs_a_reading=3)
    assert readings == [{"d0", "d1", "d2"}, {"d3", "twin"}, {"d9"}]
    assert texts_of(["d5", "absent"], tables["corpus"], id_name="doc_id") == {"d5": texts["d5"]}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"run": {"q": [("d1", 1.0)]}}, "1 queries of the run are not in .* first is q"),
        ({"run": {"test0": [("d1", 1.0), ("x7", 0.5)]}}, "1 passages of the run are not in .* first is x7"),
        ({"teacher": {"max_tokens": 1000}}, "teacher.max_tokens=1000: .* 128 tokens at most"),
    ],
)
def test_what_does_not_belong_together_is_named(
    models: Any, tables: dict[str, Path], run: Run, words: dict[str, Any], message: str
) -> None:
    """Prevents: pairs left out in silence, whose passages then seem irrelevant."""
    teacher = teacher_of(models).model_copy(update=words.get("teacher", {}))
    with pytest.raises(UserError, match=message):
        rerank(words.get("run", run), teacher, **tables, depth=3)


def test_the_command(models: Any, tables: dict[str, Path], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: settings that do not reach the teacher, and a run that `evaluate` cannot read."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a.run", run, tag="t")

    def invoke(*words: str) -> Any:
        where = [f"run={tmp_path / 'a.run'}", f"model={models.teacher}", *(f"{name}={path}" for name, path in tables.items())]
        return CliRunner().invoke(app, ["rerank", *where, "out=b.run", *words])

    done = invoke("depth=3", "precision=fp32", "max_tokens=64", "threads=1")
    assert done.exit_code == 0, done.output
    assert "2 queries ranked again" in done.stdout and "6 of 6 pairs" in done.stderr
    ranked = read_run(tmp_path / "b.run")
    assert {query: len(entries) for query, entries in ranked.items()} == {"test0": 3, "dev1": 3}
    expected = rerank(run, teacher_of(models), **tables, depth=3)
    assert {query: [doc_id for doc_id, _ in entries] for query, entries in ranked.items()} == {
        query: [doc_id for doc_id, _ in entries] for query, entries in expected.items()
    }
    assert invoke("depth=3", "max_tokens=64", "limit=1").exit_code == 0 and list(read_run(tmp_path / "b.run")) == ["dev1"]
    for words, message in [
        (("depth=0",), "depth=0: expected at least 1"),
        (("limit=0",), "limit=0: expected at least 1"),
        (("max_token=9",), "nearest: max_tokens"),
        (("device=tpu",), "expected cpu or cuda"),
        (("precision=int8",), "precision"),
        (("max_tokens=200",), "can read 128 tokens at most"),
        ((f"corpus={tables['queries']}",), "expected doc_id and text"),
    ]:
        done = invoke(*words)
        assert done.exit_code == 2 and message in done.stderr, done.output


def test_a_teacher_of_one_s_own(tables: dict[str, Path], texts: dict[str, str], run: Run) -> None:
    """Prevents: a command that takes the setting and then asks for a cross-encoder's folder."""
    teacher = Teacher(model="any string", backend="support.plugin_teachers:Overlap")
    ranked = rerank(run, teacher, **tables, depth=3)
    expected = np.float32(len(set(texts["dev1"].split()) & set(texts["twin"].split())) + len(texts["twin"]) / 1000)
    assert dict(ranked["dev1"])["twin"] == expected and len(ranked["test0"]) == 3


def test_what_there_is_to_note_of_a_teacher_is_told(tables: dict[str, Path], run: Run, tmp_path: Path) -> None:
    """Prevents: a decoder that reads pairs without its template, and says so to `prep run` alone."""
    told: list[str] = []
    teacher = Teacher(model=str(save(tmp_path / "model", "Qwen3", head=True)), precision="fp32", max_tokens=64)
    rerank(run, teacher, **tables, depth=1, report=told.append)
    assert told[0].startswith("note: teacher.model: ") and "names no template of query and document" in told[0]


def test_a_folder_of_another_backend_is_named(models: Any, tables: dict[str, Path], run: Run) -> None:
    """Prevents: `backend=onnx` that quietly scores with torch."""
    with pytest.raises(UserError, match=r"holds no model.onnx"):
        rerank(run, teacher_of(models, backend="onnx"), **tables, depth=3)
