"""Quantised and cut vectors: the bytes of sentence-transformers' `quantize_embeddings`, and searches over them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

from data.config.settings import Student
from data.errors import UserError
from data.tables.shards import read_footer, read_shard
from retrieval.cli import app
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.encoding.vector_formats import QUANTIZED, VectorFormat, first_dimensions
from retrieval.models.student import resolve_student
from retrieval.search.embedding_table import EmbeddingTable, embedding_matrix, table_paths

TEXT = "ba cedi fogu zaxe"


def draw(rows: int, size: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, size)).astype(np.float32)


@pytest.mark.parametrize("precision", QUANTIZED)
@given(rows=st.integers(2, 40), size=st.integers(1, 40), seed=st.integers(0, 99))
def test_bytes_are_those_of_sentence_transformers(precision: Any, rows: int, size: int, seed: int) -> None:
    """Prevents: codes that are one step off, or bits in another order, which every other program reads as other vectors."""
    from sentence_transformers.util import quantize_embeddings

    sample, vectors = draw(rows, size, seed), draw(7, size, seed + 1)
    sample[:, 0] = 0.5  # a dimension that never differs
    form = VectorFormat.calibrated(precision, sample)
    assert VectorFormat.of_footer(json.loads(json.dumps(form.footer))).footer == form.footer
    codes = form.store(vectors)
    theirs = quantize_embeddings(vectors, precision, ranges=np.vstack([sample.min(0), sample.max(0)]))
    assert codes.dtype == theirs.dtype and codes.shape[1] == form.width and np.array_equal(codes, theirs)


@pytest.mark.parametrize("precision", ["int8", "uint8"])
def test_values_come_back_to_within_a_step(precision: str) -> None:
    """Prevents: int8 read without its offset: scores that are shifted by half of the range."""
    from sentence_transformers.util.quantization import _dequantize_embeddings

    vectors = draw(50, 24)
    form = VectorFormat.calibrated(precision, vectors)
    assert form.ranges is not None
    restored = form.restore(form.store(vectors)).astype(np.float32)
    steps = (form.ranges[1] - form.ranges[0]) / 255
    assert (vectors - restored < steps + 3e-3).all() and (vectors - restored > -3e-3).all()
    theirs = _dequantize_embeddings(form.store(vectors), precision, form.ranges)
    assert np.abs(theirs - restored).max() < 2e-3


@pytest.mark.parametrize("precision", ["binary", "ubinary"])
def test_bits_come_back_as_signs(precision: str) -> None:
    """Prevents: bits of the padding of the last byte taken for dimensions."""
    vectors = draw(9, 13)
    form = VectorFormat.calibrated(precision, vectors)
    assert np.array_equal(form.restore(form.store(vectors)), np.where(vectors > 0, 1, -1).astype(np.float16))


def test_cut_vectors() -> None:
    """Prevents: cut vectors of other lengths, which would be compared by something that is no cosine."""
    vectors = draw(5, 12).astype(np.float16)
    assert first_dimensions(vectors, 12, normalize=True) is vectors
    cut = first_dimensions(vectors, 4, normalize=False)
    assert cut.dtype == np.float16 and np.array_equal(cut, vectors[:, :4])
    norms = np.linalg.norm(first_dimensions(vectors, 4, normalize=True).astype(np.float64), axis=1)
    assert np.abs(norms - 1).max() < 1e-3
    assert np.array_equal(first_dimensions(np.zeros((1, 3), np.float32), 2, normalize=True), np.zeros((1, 2)))


def retrieve(*words: object) -> Any:
    """The command in this process, computing in fp32 by `auto`, too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retrieval.compute.precision.cpu_computes_bf16", lambda: False)
        return CliRunner().invoke(app, list(map(str, words)))


def done(*words: object) -> str:
    found = retrieve(*words)
    assert found.exit_code == 0, found.output
    return str(found.stdout)


@pytest.fixture(scope="module")
def texts(finished: Any) -> dict[str, Path]:
    """The ingested tables of the finished run."""
    return {name: next((finished.store / "ingest").glob(f"{name}-*")) for name in ("corpus", "queries", "qrels")}


@pytest.fixture(scope="module")
def encoded(models: Any, texts: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """`encoded("corpus", precision="int8")`: a table of normalised vectors, made once."""
    folder = tmp_path_factory.mktemp("encoded")

    def make(kind: str, **words: Any) -> Path:
        out = folder / "-".join([kind, *map(str, words.values())])
        if not out.exists():
            given = [f"{name}={value}" for name, value in {"precision": "fp32", **words}.items()]
            done("encode", f"model={models.student}", f"texts={texts[kind]}", f"kind={kind}", f"out={out}", "normalize=true", *given)
        return out

    return make


def raw(folder: Path, name: str) -> tuple[list[str], Any]:
    """(ids, stored numbers) of a table, read by Arrow alone."""
    tables = [read_shard(path) for path in table_paths(folder)]
    rows = [row for table in tables for row in table.to_pylist()]
    return [row[name] for row in rows], np.array([row["embedding"] for row in rows])


def run_of(path: Path) -> dict[str, list[str]]:
    run: dict[str, list[str]] = {}
    for line in path.read_text().splitlines():
        run.setdefault(line.split()[0], []).append(line.split()[2])
    return run


@pytest.mark.medium
@pytest.mark.parametrize("precision", QUANTIZED)
def test_a_quantised_corpus_is_searched_as_it_is_stored(
    models: Any, texts: dict[str, Path], encoded: Callable[..., Path], tmp_path: Path, precision: Any
) -> None:
    """Prevents: codes read as fp16, ranges that are not the corpus', a run that ranks otherwise than rescoring does."""
    from sentence_transformers.util import quantize_embeddings
    from sentence_transformers.util.quantization import _dequantize_embeddings

    corpus, queries = encoded("corpus", precision=precision), encoded("queries")
    doc_ids, codes = raw(corpus, "doc_id")
    by_id = {row["doc_id"]: row["text"] for path in table_paths(texts["corpus"]) for row in read_shard(path).to_pylist()}
    encoder = TextEncoder(resolve_student(Student(model=str(models.student), normalize=True)), precision="fp32", device="cpu")
    vectors = encoder.passages([by_id[doc_id] for doc_id in doc_ids])
    ranges = np.vstack([vectors.min(0), vectors.max(0)])
    footer = read_footer(table_paths(corpus)[0])
    assert footer is not None and footer["precision"] == precision and footer["size"] == 32
    if precision.endswith("int8"):
        np.testing.assert_allclose(footer["ranges"], ranges, atol=1e-5)
        ranges = np.array(footer["ranges"], np.float32)
    differing = quantize_embeddings(vectors, precision, ranges=ranges) != codes
    assert differing.mean() < 0.002  # batches of other lengths: a value in a thousand may round to the next step
    out = tmp_path / "run"
    done("search", f"corpus={corpus}", f"queries={queries}", f"out={out}", "depth=60")
    query_ids, asked = raw(queries, "query_id")
    if precision.endswith("int8"):
        restored = _dequantize_embeddings(codes, precision, ranges)
    else:
        restored = np.unpackbits((codes + (128 if precision == "binary" else 0)).astype(np.uint8), axis=-1).astype(np.float64)
    scores = asked.astype(np.float64) @ restored.T
    for query_id, found in run_of(out).items():
        own = dict(zip(doc_ids, scores[query_ids.index(query_id)], strict=True))
        ordered = [own[doc_id] for doc_id in found]
        assert len(found) == 60 and all(first >= second - 2e-3 for first, second in itertools.pairwise(ordered))
    lines = done("query", TEXT, f"model={models.student}", f"corpus={corpus}", f"texts={texts['corpus']}", "k=3").splitlines()
    assert len(lines) == 3


@pytest.mark.medium
def test_first_dimensions_of_a_stored_table(texts: dict[str, Path], encoded: Callable[..., Path], tmp_path: Path, models: Any) -> None:
    """Prevents: `dimensions=` that searches whole vectors, cuts one side alone, or takes up the parts of another search."""
    corpus, queries = encoded("corpus"), encoded("queries")
    doc_ids, passages = raw(corpus, "doc_id")
    query_ids, asked = raw(queries, "query_id")
    where = [f"corpus={corpus}", f"queries={queries}", f"qrels={texts['qrels']}"]
    runs = {}
    for size in (32, 7):
        out = tmp_path / f"run{size}"
        done("evaluate", *where, f"out={out}", f"dimensions={size}", "depth=60")
        runs[size] = run_of(out)
        cut = [each[:, :size].astype(np.float64) for each in (asked, passages)]
        one, other = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in cut)
        scores = one @ other.T
        for query_id, found in runs[size].items():
            own = dict(zip(doc_ids, scores[query_ids.index(query_id)], strict=True))
            ordered = [own[doc_id] for doc_id in found]
            assert len(found) == 60 and all(first >= second - 2e-3 for first, second in itertools.pairwise(ordered))
    assert runs[7] != runs[32]
    done("evaluate", *where, f"out={tmp_path / 'whole'}", "depth=60")
    assert run_of(tmp_path / "whole") == runs[32]
    short = {kind: encoded(kind, dimensions=7) for kind in ("corpus", "queries")}
    assert np.abs(raw(short["corpus"], "doc_id")[1] - first_dimensions(passages, 7, normalize=True)).max() < 2e-3
    done(
        "search",
        f"corpus={short['corpus']}",
        f"queries={short['queries']}",
        f"out={tmp_path / 'short'}",
        f"qrels={texts['qrels']}",
        "depth=9",
    )
    mixed = retrieve("search", f"corpus={short['corpus']}", f"queries={queries}", f"out={tmp_path / 'mixed'}", "dimensions=7")
    assert mixed.exit_code == 0 and "different models" not in mixed.stderr
    asking = ["query", TEXT, f"model={models.student}", f"texts={texts['corpus']}", "k=5"]
    ranked = [[line.split()[2] for line in done(*asking, *more).splitlines()] for more in (
        [f"corpus={corpus}", "dimensions=7"], [f"corpus={short['corpus']}"], [f"corpus={corpus}"],
    )]  # fmt: skip
    assert ranked[0] == ranked[1] != ranked[2]


def test_what_cannot_be_is_refused(texts: dict[str, Path], encoded: Callable[..., Path], tmp_path: Path, models: Any) -> None:
    """Prevents: an index of codes, queries without their digits, and numbers of dimensions that nobody has."""
    corpus, codes, queries = encoded("corpus"), encoded("corpus", precision="int8"), encoded("queries")
    model = f"model={models.student}"
    search = ["search", f"corpus={corpus}", f"queries={queries}", f"out={tmp_path / 'run'}"]
    for words, message in [
        (["index", f"corpus={codes}", f"out={tmp_path / 'i'}", "kind=ivf"], "is stored as int8; an index is of vectors in fp16"),
        ([*search, "dimensions=33"], "dimensions=33: the vectors of"),
        ([*search, "dimensions=0"], "expected at least 1"),
        ([*search, "dimensions=8", f"index={corpus}"], "index= is of whole vectors"),
        (["evaluate", "run=a", f"qrels={texts['qrels']}", "dimensions=8"], "leave out dimensions="),
        (
            ["encode", model, f"texts={texts['queries']}", "kind=queries", f"out={tmp_path / 'q'}", "precision=int8"],
            "how a corpus is stored",
        ),
        (
            ["encode", model, f"texts={texts['corpus']}", "kind=corpus", f"out={tmp_path / 'c'}", "dimensions=40"],
            "dimensions=40: the vectors",
        ),
        (["encode", model, f"texts={texts['corpus']}", "kind=corpus", f"out={codes}", "normalize=true"], "other texts or of another model"),
        (["query", TEXT, model, f"corpus={corpus}", f"texts={texts['corpus']}", "dimensions=40"], "dimensions=40: the vectors"),
    ]:
        found = retrieve(*words)
        assert found.exit_code == 2 and message in found.stderr, (words, found.output)
    with pytest.raises(UserError, match="stored as int8"):
        embedding_matrix(read_shard(table_paths(codes)[0]))


def test_a_killed_encoding_goes_on_with_its_ranges(
    models: Any, texts: dict[str, Path], encoded: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: shards of one table with ranges of their own."""
    out = encoded("corpus", precision="uint8")
    paths = table_paths(out)
    before = {path.name: path.read_bytes() for path in paths}
    paths[-1].unlink()
    (out / "manifest.json").unlink()
    monkeypatch.setattr(VectorFormat, "calibrated", staticmethod(lambda *_: pytest.fail("calibrated again")))
    done("encode", f"model={models.student}", f"texts={texts['corpus']}", "kind=corpus", f"out={out}", "normalize=true", "precision=uint8")
    assert {path.name: path.read_bytes() for path in paths} == before
    assert EmbeddingTable(out, "doc_id").precision == "uint8" and EmbeddingTable(out, "doc_id").size == 32
