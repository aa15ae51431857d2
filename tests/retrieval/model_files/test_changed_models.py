"""Models that are exchanged while `retrieve` works with them, tables begun on another device, and outputs that are something else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.config.settings import Student, Teacher
from data.errors import RunFailed, UserError
from data.tables.shards import read_shard
from retrieval.encoding import encode
from retrieval.encoding.encode import encode_table
from retrieval.search.embedding_table import table_paths
from retrieval.teachers.rerank import rerank


def flip(path: Path) -> None:
    """Another file under the same name, of the same size."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.with_name("other").write_bytes(content)
    os.replace(path.with_name("other"), path)


@pytest.fixture
def corpus(finished: Any) -> Path:
    """Sixty passages in three shards."""
    return next((finished.store / "ingest").glob("corpus-*"))


def embed(model: Path, corpus: Path, out: Path, **words: Any) -> None:
    student = Student(model=str(model), query_tokens=16, passage_tokens=48)
    encode_table(student, corpus, out, **{"kind": "corpus", "precision": "fp32", "device": "cpu", "batch_tokens": 512, **words})


def test_a_student_exchanged_after_the_first_shard(models: Any, corpus: Path, tmp_path: Path) -> None:
    """Prevents: an embeddings table of two models' vectors."""
    model = shutil.copytree(models.student, tmp_path / "model")

    def exchange(line: str) -> None:
        if line.startswith("part-"):
            flip(model / "model.safetensors")

    with pytest.raises(RunFailed, match=r"changed while part-00001-of-00003\.parquet was computed"):
        embed(model, corpus, tmp_path / "out", report=exchange)
    assert [path.name for path in (tmp_path / "out").glob("*.parquet")] == ["part-00000-of-00003.parquet"]
    with pytest.raises(UserError, match="holds embeddings of other texts or of another model"):
        embed(model, corpus, tmp_path / "out")


def test_vectors_begun_on_another_device(models: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a table whose first half is of a GPU and whose second is of a CPU."""
    out = tmp_path / "out"
    embed(models.student, corpus, out)
    assert json.loads((out / "device.json").read_text()) == {"device": "cpu"}
    (out / "device.json").write_text('{"device": "cuda"}')
    embed(models.student, corpus, out)  # nothing to compute
    (out / "part-00001-of-00003.parquet").unlink()
    monkeypatch.setattr(encode, "TextEncoder", None)  # refused before a model is loaded
    with pytest.raises(UserError, match="was begun with device=cuda"):
        embed(models.student, corpus, out)


def test_another_table_of_other_shards_stays(models: Any, corpus: Path, finished: Any, tmp_path: Path) -> None:
    """Prevents: the manifest of a table of three shards replaced by that of one of two, in the same folder."""
    embed(models.student, corpus, tmp_path / "out")
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    queries = next((finished.store / "ingest").glob("queries-*"))
    with pytest.raises(UserError, match="holds embeddings of other texts"):
        embed(models.student, queries, tmp_path / "out", kind="queries")
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before and len(list((tmp_path / "out").glob("*.parquet"))) == 3


def test_a_teacher_exchanged_while_it_ranks(models: Any, finished: Any, corpus: Path, tmp_path: Path) -> None:
    """Prevents: a run whose logits are of a teacher that nobody can name."""
    model = shutil.copytree(models.teacher, tmp_path / "model")
    queries = next((finished.store / "ingest").glob("queries-*"))
    query_id = read_shard(table_paths(queries)[0]).column("query_id")[0].as_py()
    teacher = Teacher(model=str(model), precision="fp32", max_tokens=64)
    words: dict[str, Any] = {"queries": queries, "corpus": corpus, "depth": 2}
    run = {query_id: [("d1", 2.0), ("d2", 1.0)]}
    assert len(rerank(run, teacher, **words)) == 1
    with pytest.raises(RunFailed, match=r"the files of model=.* changed while this run was under way"):
        rerank(run, teacher, **words, report=lambda line: flip(model / "model.safetensors"))


def called(*words: object) -> int:
    from typer.testing import CliRunner

    from retrieval.cli import app

    return CliRunner().invoke(app, list(map(str, words))).exit_code


@pytest.mark.parametrize("words", [("search",), ("evaluate", "qrels=Q"), ("rerank", "model=M", "run=R")])
def test_an_output_is_looked_at_before_the_work(
    words: tuple[str, ...], models: Any, finished: Any, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Prevents: a search of hours that ends in IsADirectoryError."""
    from retrieval import cli
    from retrieval.teachers import rerank as rerank_module

    (tmp_path / "folder").mkdir()
    (tmp_path / "run").write_text("train0 Q0 d1 1 0.5 x\n")
    qrels = next((finished.store / "ingest").glob("qrels-*"))
    tables = [next((finished.store / ("ingest" if words[0] == "rerank" else "embed")).glob(f"{kind}-*")) for kind in ("corpus", "queries")]
    monkeypatch.setattr(cli, "_search", None)
    monkeypatch.setattr(rerank_module, "rerank", None)
    given = [
        {"qrels=Q": f"qrels={qrels}", "model=M": f"model={models.teacher}", "run=R": f"run={tmp_path / 'run'}"}.get(w, w) for w in words
    ]
    assert called(*given, f"corpus={tables[0]}", f"queries={tables[1]}", f"out={tmp_path / 'folder'}") == 2
    if words[0] == "evaluate":
        out = tmp_path / "new.trec"
        more = (f"corpus={tables[0]}", f"queries={tables[1]}", f"out={out}", f"per_query={tmp_path / 'folder'}")
        assert called(*given, *more) == 2 and not out.exists()


@pytest.mark.medium
def test_a_run_to_the_standard_output_is_a_run(finished: Any, tmp_path: Path, command: Callable[..., Any]) -> None:
    """Prevents: `out=/dev/stdout | next program` whose last line is a sentence."""
    corpus, queries = (next((finished.store / "embed").glob(f"{kind}-*")) for kind in ("corpus", "queries"))
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")  # a name of our own for it
    done = command("retrieve", "search", f"corpus={corpus}", f"queries={queries}", f"out={tmp_path / 'stdout'}", "depth=2")
    lines = done.stdout.splitlines()
    assert done.returncode == 0 and len(lines) == 48 and all(line.split()[1] == "Q0" for line in lines)
    assert "queries searched, run in" in done.stderr and (tmp_path / "stdout").is_symlink()
