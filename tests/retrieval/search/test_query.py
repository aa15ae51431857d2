"""`retrieve query` on the finished run: the passages nearest to a text, found with the student that embedded them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data.config.settings import Student
from data.tables.shards import read_shard
from retrieval.cli import app
from retrieval.cli_args import text_among
from retrieval.encoding.encode import TextEncoder
from retrieval.models.student import resolve_student
from retrieval.search.embedding_table import EmbeddingTable, table_paths
from retrieval.search.query import one_line

TEXT = "ba cedi fogu zaxe"


@pytest.fixture(scope="module")
def tables(finished: Any) -> dict[str, Path]:
    """The embedded corpus of the finished run and its texts."""
    (corpus,) = (finished.store / "embed").glob("corpus-*")
    (texts,) = (finished.store / "ingest").glob("corpus-*")
    return {"corpus": corpus, "texts": texts}


def invoke(*words: object) -> Any:
    return CliRunner().invoke(app, ["query", *map(str, words)])


def lines_of(*words: object) -> list[str]:
    done = invoke(*words)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def where(tables: dict[str, Path], model: Path) -> list[str]:
    return [f"model={model}", *(f"{name}={path}" for name, path in tables.items()), "threads=1"]


@pytest.mark.parametrize("words", [[TEXT], TEXT.split(), [f"text={TEXT}"]])
def test_the_nearest_passages_are_shown_with_their_texts(models: Any, tables: dict[str, Path], words: list[str]) -> None:
    """Prevents: a text beside another passage's score, or another order than the vectors give."""
    lines = lines_of(*words, *where(tables, models.student), "k=5", "width=40")
    vector = TextEncoder(resolve_student(Student(model=str(models.student))), precision="fp32", device="cpu", batch_tokens=64).queries(
        [TEXT]
    )[0]
    table = EmbeddingTable(tables["corpus"], "doc_id")
    doc_ids, vectors = table.ids.to_pylist(), table.matrix().astype("float32")
    scores = dict(zip(doc_ids, (vectors @ vector).tolist(), strict=True))
    texts = {row["doc_id"]: row["text"] for path in table_paths(tables["texts"]) for row in read_shard(path).to_pylist()}
    best = sorted(doc_ids, key=lambda doc_id: (-scores[doc_id], doc_id))[:5]
    assert [line.split(maxsplit=3)[2] for line in lines] == best
    for rank, (line, doc_id) in enumerate(zip(lines, best, strict=True), 1):
        place, score, _, text = line.split(maxsplit=3)
        assert (int(place), text) == (rank, one_line(texts[doc_id], width=40))
        assert float(score) == pytest.approx(scores[doc_id], abs=1e-3)


def test_the_query_is_read_as_the_corpus_notes(models: Any, tables: dict[str, Path], tmp_path: Path) -> None:
    """Prevents: a prompt or pooling that the corpus was embedded with, forgotten at the query."""
    vectors = tmp_path / "vectors"
    encode = ["encode", f"model={models.student}", f"texts={tables['texts']}", "kind=corpus", f"out={vectors}", "precision=fp32"]
    done = CliRunner().invoke(app, [*encode, "pooling=cls", "query_prefix=zu zo ", "query_tokens=9", "threads=1"])
    assert done.exit_code == 0, done.output
    words = [TEXT, *where({**tables, "corpus": vectors}, models.student), "k=60"]
    read_back = lines_of(*words)
    assert read_back == lines_of(*words, "pooling=cls", "query_prefix=zu zo ", "query_tokens=9")
    assert read_back != lines_of(*words, "query_prefix=")
    assert read_back != lines_of(*words, "query_tokens=5")


def test_another_student_is_refused(models: Any, tables: dict[str, Path], tmp_path: Path) -> None:
    """Prevents: a trained student's query in the corpus of the untrained one: passages, with scores, that mean nothing."""
    other = tmp_path / "other"
    shutil.copytree(models.student, other)
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**settings, "layer_norm_eps": 1e-6}))
    for words, message in [
        ([TEXT, *where(tables, other)], "was embedded with another model (differing: weights)"),
        ([TEXT, *where(tables, models.student), "pooling=cls"], "(differing: pooling); it was pooling=mean"),
        ([TEXT, *where(tables, models.student), "layers=1"], "it was layers=None"),
    ]:
        done = invoke(*words)
        assert done.exit_code == 2 and message in done.stderr, done.output


def test_mistakes_are_named(models: Any, tables: dict[str, Path], finished: Any, tmp_path: Path) -> None:
    """Prevents: a traceback, or an answer to a query that was not meant."""
    words = where(tables, models.student)
    (queries,) = (finished.store / "ingest").glob("queries-*")
    for given, message in [
        (words, "missing text=..."),
        (["", *words], "the query is empty"),
        ([TEXT, *words, f"text={TEXT}"], "two queries"),
        ([TEXT, *words, "kk=3"], "unknown key kk"),
        ([TEXT, *words, "k=0"], "expected at least 1"),
        ([TEXT, *words, f"corpus={tmp_path}"], "no stored table"),
        ([TEXT, *words, f"corpus={tables['texts']}"], "expected doc_id and embedding"),
        ([TEXT, *words, f"texts={queries}"], "expected doc_id and text"),
        ([TEXT, *words, f"model={tmp_path / 'absent'}"], "no such folder"),
    ]:
        done = invoke(*given)
        assert done.exit_code == 2 and message in done.stderr, done.output


def test_a_query_may_stand_anywhere_and_hold_signs() -> None:
    """Prevents: half a query taken for a setting."""
    assert text_among(["is 1+1=2 so", "k=3"]) == ["k=3", "text=is 1+1=2 so"]
    assert text_among(["k=3", "how", "long"]) == ["k=3", "text=how long"]
    assert text_among(["text=a=b"]) == ["text=a=b"]
    assert text_among(None) == []


def test_lines_are_cut_to_their_width() -> None:
    """Prevents: passages with line breaks that tear the list apart."""
    assert one_line("a\n b\tc", width=5) == "a b c"
    assert one_line("a b c d", width=6) == "a b c…"
    assert all(len(one_line("word " * 9, width=width)) <= width for width in range(2, 60))
