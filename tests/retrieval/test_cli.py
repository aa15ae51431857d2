"""The command `retrieve` from end to end on tiny random students, and the vectors against sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from sentence_transformers import SentenceTransformer
from support import in_process
from support.children import loaded_by
from tokenizers import BertWordPieceTokenizer
from transformers import BertConfig, BertModel

from data.config.settings import Student
from data.errors import RunFailed
from data.tables.manifest import Manifest, ShardRecord
from data.tables.schemas import CORPUS, QRELS, QUERIES
from data.tables.shards import describe, read_shard, shard_name, write_shard
from retrieval.encoding import text_encoder
from retrieval.encoding.encode import embedded_groups
from retrieval.encoding.text_encoder import TextEncoder
from retrieval.models.student import resolve_student

WORDS = ["flea", "tick", "dog", "cat", "vet", "bite", "itch", "fur", "paw", "tail", "query", "passage", ":"]
TEXTS = [" ".join(WORDS[(start * 5 + step * step) % 11] for step in range(2 + start % 13)) for start in range(40)]


def model_folder(folder: Path, *, pooling: str, normalize: bool, query: str = "", passage: str = "") -> Path:
    """A random two-layer BERT as a sentence-transformers folder."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    settings = BertConfig(
        vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=128, initializer_range=0.5,
    )  # fmt: skip
    BertModel(settings).save_pretrained(folder)
    BertWordPieceTokenizer(vocab={word: place for place, word in enumerate(vocabulary)}).save(str(folder / "tokenizer.json"))
    marks = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    write_json(folder / "tokenizer_config.json", {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64, **marks})
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * normalize
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"} for n, (path, kind) in enumerate(kinds)
    ]
    write_json(folder / "modules.json", modules)
    modes = {f"pooling_mode_{name}": name.startswith(pooling) for name in ("cls_token", "mean_tokens", "max_tokens")}
    write_json(folder / "1_Pooling" / "config.json", {"word_embedding_dimension": 32, **modes})
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 16, "do_lower_case": False})
    write_json(folder / "config_sentence_transformers.json", {"prompts": {"query": query, "document": passage}})
    return folder


def write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))


def store(folder: Path, shards: list[pa.Table], *, table: str, stage: str = "ingest", key: dict[str, Any] | None = None) -> Path:
    """A finished table, as a stage leaves it."""
    records = []
    for number, rows in enumerate(shards):
        path = folder / shard_name(number, len(shards))
        write_shard(path, rows, {"fingerprint": "0"})
        records.append(ShardRecord(path.name, *describe(path)))
    Manifest(stage, table, "0", key or {}, records, {}).write(folder)
    return folder


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """Forty passages in three shards (one empty), six queries, labels of two splits; `unlabelled` and `q5` have none in `test`."""
    corpus = [{"doc_id": f"d{number}", "text": text, "text_hash": 0} for number, text in enumerate(TEXTS)]
    parts = [pa.Table.from_pylist(part, schema=CORPUS) for part in (corpus[:25], [], corpus[25:])]
    store(tmp_path / "corpus", parts, table="corpus")
    queries = [{"query_id": f"q{number}", "text": TEXTS[number * 7]} for number in range(6)]
    store(tmp_path / "queries", [pa.Table.from_pylist(part, schema=QUERIES) for part in (queries[:4], queries[4:])], table="queries")
    labels = [{"split": "test", "query_id": f"q{n}", "doc_id": f"d{n * 7}", "relevance": 1} for n in range(5)]
    labels += [{"split": "test", "query_id": "lost", "doc_id": "d0", "relevance": 1}]
    labels += [{"split": "train", "query_id": "q5", "doc_id": "d1", "relevance": 1}]
    store(tmp_path / "qrels", [pa.Table.from_pylist(labels, schema=QRELS)], table="qrels")
    return tmp_path


def retrieve(*words: object) -> None:
    """Run the command in this process; a clean end is exit code 0."""
    if code := in_process.retrieve(*words):
        raise SystemExit(code)


def embed(folder: Path, model: Path, *, out: str = "") -> None:
    for kind in ("corpus", "queries"):
        target = folder / f"{kind}-vectors{out}"
        retrieve(
            "encode", f"model={model}", f"texts={folder / kind}", f"out={target}", f"kind={kind}", "precision=fp32", "passage_tokens=16"
        )


@pytest.mark.medium
@pytest.mark.parametrize(("pooling", "normalize"), [("mean", True), ("mean", False), ("cls", False), ("cls", True)])
def test_vectors_equal_sentence_transformers(tmp_path: Path, pooling: str, normalize: bool) -> None:
    """Prevents: padding in the mean, the wrong pooling read from a folder, another cut at the limit, rows in length order."""
    folder = model_folder(tmp_path / "m", pooling=pooling, normalize=normalize)
    encoder = TextEncoder(
        resolve_student(Student(model=str(folder), passage_tokens=16, query_tokens=16)), precision="fp32", device="cpu", batch_tokens=64
    )
    theirs = SentenceTransformer(str(folder), device="cpu").encode(TEXTS, batch_size=7)
    assert np.abs(encoder.passages(TEXTS) - theirs).max() < 1e-5
    assert np.abs(encoder.queries(TEXTS) - theirs).max() < 1e-5


def test_prefixes_equal_sentence_transformers_prompts(tmp_path: Path) -> None:
    """Prevents: queries embedded with the passages' prefix, or with none."""
    folder = model_folder(tmp_path / "m", pooling="mean", normalize=True, query="query : ", passage="passage : ")
    student = Student(model=str(folder), query_prefix="query : ", passage_prefix="passage : ", passage_tokens=16, query_tokens=16)
    encoder = TextEncoder(resolve_student(student), precision="fp32", device="cpu", batch_tokens=4096)
    theirs = SentenceTransformer(str(folder), device="cpu")
    assert np.abs(encoder.queries(TEXTS) - theirs.encode(TEXTS, prompt_name="query")).max() < 1e-5
    assert np.abs(encoder.passages(TEXTS) - theirs.encode(TEXTS, prompt_name="document")).max() < 1e-5
    assert np.abs(encoder.queries(TEXTS) - encoder.passages(TEXTS)).max() > 1e-3


def test_vectors_that_overflow_fp16_are_refused(tmp_path: Path) -> None:
    """Prevents: an infinite vector in the store, whose passage then leads every ranking."""
    encoder = TextEncoder(
        resolve_student(Student(model=str(model_folder(tmp_path / "m", pooling="mean", normalize=False)))),
        precision="fp32",
        device="cpu",
        batch_tokens=64,
    )
    with torch.no_grad():
        encoder.model.backbone.encoder.layer[-1].output.LayerNorm.weight.mul_(1e6)
    table = pa.Table.from_pylist([{"doc_id": "d7", "text": "flea", "text_hash": 0}], schema=CORPUS)
    write_shard(tmp_path / "corpus.parquet", table, {})
    with pytest.raises(RunFailed, match="not finite in fp16, the first of doc_id d7"):
        list(embedded_groups(encoder, tmp_path / "corpus.parquet", kind="corpus"))


def test_one_batch_after_the_other_gives_the_vectors_of_batches_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: vectors in other rows on a GPU, and a run that ends where a batch does not fit there."""
    student = Student(model=str(model_folder(tmp_path / "m", pooling="mean", normalize=True)))
    encoder = TextEncoder(resolve_student(student), precision="fp32", device="cpu", batch_tokens=64)
    expected, counted = encoder.passages(TEXTS), []
    encoder.one_thread_each = False
    plain = encoder.model.forward

    def small(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        if ids.numel() > 40:
            raise torch.OutOfMemoryError("full")
        return plain(ids, mask)

    monkeypatch.setattr(encoder.model, "forward", small)
    found = encoder.vectors(encoder.passage_tokens(TEXTS), progress=counted.append)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert sum(counted) == len(TEXTS) and encoder.batch_tokens == 32


def test_a_gpu_encoder_tokenises_with_its_workers_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: `runner.threads` without effect on a GPU. The device `meta` stands for one, on which nothing is computed."""
    monkeypatch.setattr(text_encoder, "check_padding", lambda *args, **more: None)
    monkeypatch.setattr(text_encoder.low_precision, "apply", lambda *args, **more: None)
    spec = resolve_student(Student(model=str(model_folder(tmp_path / "m", pooling="mean", normalize=True))))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        encoder = TextEncoder(spec, precision="fp32", device="meta", batch_tokens=64)
    finally:
        torch.set_num_threads(before)
    assert encoder.tokenizer._threads == 3


@pytest.mark.medium
def test_from_texts_to_metrics(collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: a stored run that scores otherwise than the search that wrote it; a judged query without results left out."""
    embed(collection, model_folder(collection / "model", pooling="mean", normalize=True))
    stored = [read_shard(path) for path in sorted((collection / "corpus-vectors").glob("*.parquet"))]
    assert [doc for table in stored for doc in table.column("doc_id").to_pylist()] == [f"d{number}" for number in range(len(TEXTS))]
    where = [f"corpus={collection / 'corpus-vectors'}", f"queries={collection / 'queries-vectors'}", f"qrels={collection / 'qrels'}"]
    run = collection / "a.trec"
    capsys.readouterr()
    retrieve("evaluate", *where, f"out={run}", "depth=30", f"per_query={collection / 'per_query.json'}")
    searched = capsys.readouterr().out
    assert "longest list has 30 passages" in searched
    figures = json.loads(searched.splitlines()[-1])
    assert (figures["queries"], figures["without_results"], figures["unjudged"]) == (6, 1, 0)
    per_query = json.loads((collection / "per_query.json").read_text())
    assert per_query["lost"]["MRR@10"] == 0.0
    assert figures["MRR@10"] == pytest.approx(sum(values["MRR@10"] for values in per_query.values()) / 6, abs=1e-6)
    assert figures["Recall@50"] == pytest.approx(5 / 6, abs=1e-6)  # each query is its passage's text
    retrieve("evaluate", f"run={run}", f"qrels={collection / 'qrels'}")
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
    retrieve("search", *where[:2], f"out={collection / 'b.trec'}", "depth=30")
    assert "6 queries searched" in capsys.readouterr().out
    retrieve("compare", f"before={run}", f"after={collection / 'b.trec'}", f"qrels={collection / 'qrels'}")
    compared = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert compared["nDCG@10"]["p"] == 1.0
    assert compared["nDCG@10"]["ties"] == 6

    part = collection / "part.trec"  # a run of two queries: what it has not is nothing, or is left out
    two = list(dict.fromkeys(line.split()[0] for line in run.read_text().splitlines()))[:2]
    part.write_text("".join(line + "\n" for line in run.read_text().splitlines() if line.split()[0] in two))
    means = {}
    for missing in ("zero", "skip"):
        retrieve("evaluate", f"run={part}", f"qrels={collection / 'qrels'}", f"missing={missing}")
        means[missing] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (means["zero"]["queries"], means["skip"]["queries"]) == (6, 2)
    assert means["skip"]["MRR@10"] == pytest.approx(sum(per_query[name]["MRR@10"] for name in two) / 2, abs=1e-6)
    assert means["zero"]["MRR@10"] == pytest.approx(means["skip"]["MRR@10"] / 3, abs=1e-6)
    retrieve("compare", f"before={part}", f"after={run}", f"qrels={collection / 'qrels'}", "missing=skip")
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["nDCG@10"]["ties"] == 2


@pytest.mark.medium
def test_encoding_keeps_finished_shards_and_refuses_another_models(collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: hours of embeddings made again after a kill, and two models' vectors mixed in one folder."""
    model = model_folder(collection / "model", pooling="mean", normalize=True)
    embed(collection, model)
    folder = collection / "corpus-vectors"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    first, last = folder / shard_name(0, 3), folder / shard_name(2, 3)
    untouched = first.stat().st_mtime_ns
    last.unlink()
    (folder / "manifest.json").unlink()
    capsys.readouterr()
    embed(collection, model)
    assert last.name in (told := capsys.readouterr().err)
    assert first.name not in told
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert first.stat().st_mtime_ns == untouched
    with pytest.raises(SystemExit) as ended:
        embed(collection, model_folder(collection / "other", pooling="cls", normalize=True))
    assert ended.value.code == 2
    assert "of another model" in capsys.readouterr().err


@pytest.mark.medium
def test_vectors_of_two_students_are_named(collection: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: queries of the trained student searched in the corpus of the untrained one, without a word."""
    embed(collection, model_folder(collection / "one", pooling="mean", normalize=True))
    embed(collection, model_folder(collection / "two", pooling="cls", normalize=True), out="2")
    capsys.readouterr()
    retrieve("search", f"corpus={collection / 'corpus-vectors'}", f"queries={collection / 'queries-vectors2'}", f"out={collection / 'r'}")
    assert "embedded by different models" in capsys.readouterr().err
    retrieve("search", f"corpus={collection / 'corpus-vectors'}", f"queries={collection / 'queries-vectors'}", f"out={collection / 'r'}")
    assert "different" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["evaluate", "rum=a", "qrels=b"], "unknown key rum; nearest: run"),
        (["evaluate", "run"], "expected key=value"),
        (["evaluate", "run=a"], "missing qrels=..."),
        (["evaluate", "run=a", "qrels="], "qrels is empty: give a path"),
        (["search", "corpus=", "queries=", "out=r"], "queries is empty: give a path"),
        (["evaluate", "qrels={0}/qrels"], "say what to evaluate"),
        (["evaluate", "run=a", "out=b", "qrels=c"], "leave out out="),
        (["evaluate", "run={0}/none.trec", "qrels={0}/qrels"], "no such run file"),
        (["evaluate", "run=a", "qrels={0}/nothing"], "no such file or folder"),
        (["evaluate", "run=a", "qrels={0}/qrels", "split=dev"], "has labels of test, train"),
        (["evaluate", "run=a", "qrels={0}"], "is no stored table"),
        (["search", "corpus={0}/corpus", "queries={0}/queries", "out=r"], "expected query_id and embedding"),
        (["search", "corpus=a", "queries=b", "out=r", "depth=many"], "expected a whole number"),
        (["search", "corpus=a", "queries=b", "out=r", "depth=²"], "expected a whole number"),
        (["compare", "before=a", "after=b", "qrels=c", "permutations=0"], "expected at least 1"),
        (["encode", "model=a", "texts={0}/corpus", "kind=queries", "out=o"], "kind=queries"),
        (["encode", "model=a", "texts={0}/corpus", "kind=passages", "out=o"], "expected corpus or queries"),
        (["encode", "model=a", "texts={0}/corpus", "kind=corpus", "out=o", "poling=cls"], "nearest: pooling"),
        (["encode", "model={0}/absent", "texts={0}/corpus", "kind=corpus", "out=o"], "no such folder"),
    ],
)
def test_mistakes_have_a_message_and_exit_code_2(
    collection: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    """Prevents: a traceback, or exit code 0 with nothing done; and anything written beside a mistake."""
    monkeypatch.chdir(collection)
    before = sorted(collection.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        retrieve(*(word.format(collection) for word in words))
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(collection.rglob("*")) == before


@pytest.mark.medium
def test_help_and_compare_load_no_model_code(tmp_path: Path) -> None:
    """Prevents: seconds of imports before a help page or a table of two runs, and a compare that needs torch."""
    (tmp_path / "r").write_text("q Q0 a 1 1.0 t\n")
    (tmp_path / "q").write_text("q 0 a 1\n")
    for words in (["--help"], ["compare", f"before={tmp_path / 'r'}", f"after={tmp_path / 'r'}", f"qrels={tmp_path / 'q'}"]):
        done, loaded = loaded_by("retrieve", *words)
        assert done.returncode == 0 and not loaded & {"torch", "faiss", "transformers", "bm25s"}, done.stderr


def evaluated(folder: Path, capsys: pytest.CaptureFixture[str], run: str, qrels: str, *words: str) -> tuple[dict[str, Any], str]:
    """The last line of `retrieve evaluate` as JSON, and all that it printed."""
    (folder / "r").write_text(run)
    (folder / "q").write_text(qrels)
    retrieve("evaluate", f"run={folder / 'r'}", f"qrels={folder / 'q'}", *words)
    printed = capsys.readouterr().out
    return json.loads(printed.splitlines()[-1]), printed


def test_queries_that_are_passages_are_evaluated_as_beir_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: the query's own passage counted as a miss, or an ordinary collection's figures changed, without a word."""
    run, qrels = "x1 Q0 x1 1 9 t\nx1 Q0 a 2 8 t\nx2 Q0 x2 1 9 t\nx2 Q0 b 2 8 t\n", "x1 0 a 1\nx2 0 b 1\n"
    figures, printed = evaluated(tmp_path, capsys, run, qrels)
    assert (figures["MRR@10"], figures["identical_ids_ignored"]) == (1.0, 2)
    assert "2 queries find a passage with their own id: it is left out" in printed
    figures, printed = evaluated(tmp_path, capsys, run, qrels, "ignore_identical_ids=false")
    assert (figures["MRR@10"], figures["identical_ids_ignored"]) == (0.5, 0)
    assert "2 queries find a passage with their own id: it counts" in printed
    numbers = "7 Q0 7 1 9 t\n7 Q0 8 2 8 t\n"
    assert evaluated(tmp_path, capsys, numbers, "7 0 7 1\n")[0]["MRR@10"] == 1.0
    assert evaluated(tmp_path, capsys, numbers, "7 0 7 1\n", "ignore_identical_ids=true")[0]["MRR@10"] == 0.0
    (tmp_path / "r2").write_text("x1 Q0 a 1 9 t\nx2 Q0 b 1 9 t\n")
    (tmp_path / "r").write_text(run)
    (tmp_path / "q").write_text(qrels)
    retrieve("compare", f"before={tmp_path / 'r'}", f"after={tmp_path / 'r2'}", f"qrels={tmp_path / 'q'}")
    printed = capsys.readouterr().out
    assert json.loads(printed.splitlines()[-1])["MRR@10"]["before"] == 1.0 and "left out" in printed


@pytest.mark.parametrize(
    ("run", "found"), [("", "it has no entry"), ("z Q0 a 1 1 t\n", "its first is 'z'"), ("query_id Q0 a r score t\n", "it has no entry")]
)
@pytest.mark.parametrize("missing", ["zero", "skip"])
def test_a_run_of_other_queries_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], run: str, found: str, missing: str) -> None:
    """Prevents: zeros, which look like the figures of a bad student."""
    for words in (["evaluate", f"run={tmp_path / 'r'}"], ["compare", f"before={tmp_path / 'good'}", f"after={tmp_path / 'r'}"]):
        (tmp_path / "good").write_text("q Q0 a 1 1 t\n")
        (tmp_path / "q").write_text("q 0 a 1\n")
        (tmp_path / "r").write_text(run)
        with pytest.raises(SystemExit) as ended:
            retrieve(*words, f"qrels={tmp_path / 'q'}", f"missing={missing}")
        assert ended.value.code == 2
        told = capsys.readouterr().err
        assert "r has none of the 1 queries of qrels=" in told and found in told


def test_homes_and_variables_in_the_words(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: `run=~/a.trec`, which no shell expands after a `=`, taken for a folder called `~`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RUNS", str(tmp_path))
    (tmp_path / "r").write_text("q Q0 a 1 1 t\n")
    (tmp_path / "q").write_text("q 0 a 1\n")
    retrieve("evaluate", "run=~/r", "qrels=$RUNS/q", "per_query=${RUNS}/each.json")
    assert json.loads((tmp_path / "each.json").read_text())["q"]["MRR@10"] == 1.0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        retrieve("evaluate", "run=$NOWHERE/r", "qrels=~/q")
    assert "run=$NOWHERE/r: the environment variable NOWHERE is not set" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            "search corpus={0}/queries-vectors queries={0}/queries-vectors out=r",
            "corpus={0}/queries-vectors is the stored table embed.queries",
        ),
        (
            "search corpus={0}/corpus-vectors queries={0}/corpus-vectors out=r",
            "queries={0}/corpus-vectors is the stored table embed.corpus",
        ),
        (
            "search corpus={0}/corpus-vectors queries={0}/queries-vectors out=r index={0}/corpus",
            "index={0}/corpus is the stored table ingest.corpus",
        ),
        ("search corpus={0}/model queries={0}/queries-vectors out=r", "it is a model's folder; expected doc_id and embedding"),
        ("search corpus={0}/store queries={0}/queries-vectors out=r", "it is a whole store, whose tables lie in folders below it"),
        ("search corpus={0}/beir queries={0}/queries-vectors out=r", "it is a collection's folder"),
        ("index corpus={0}/corpus out=i kind=ivf", "corpus={0}/corpus is the stored table ingest.corpus"),
        ("encode model={0}/model texts={0}/corpus-vectors out=o kind=corpus", "texts={0}/corpus-vectors is the stored table embed.corpus"),
        ("query flea model={0}/model corpus={0}/corpus texts={0}/corpus", "corpus={0}/corpus is the stored table ingest.corpus"),
        ("encode model={0}/corpus texts={0}/corpus out=o kind=corpus", "is the stored table ingest.corpus; expected a model's folder"),
        ("encode model={0}/model/model.safetensors texts={0}/corpus out=o kind=corpus", "is a file; expected a model's folder"),
        ("rerank model=m run={0}/r queries={0}/corpus corpus={0}/corpus out=o", "queries={0}/corpus is the stored table ingest.corpus"),
        ("evaluate qrels={0}/queries run={0}/r", "qrels={0}/queries is the stored table ingest.queries"),
        ("evaluate qrels={0}/r run={0}/r", "too many columns: expected `query <tab> passage <tab> label`"),
        (
            "evaluate qrels={0}/q run={0}/q",
            "{0}/q:1: expected `query_id Q0 doc_id rank score tag` with a finite number as score, got 4 columns (qrels?)",
        ),
        ("evaluate qrels={0}/q run={0}/qrels", "{0}/qrels is the stored table ingest.qrels; expected a TREC run"),
        (
            "evaluate qrels={0}/q run={0}/run.json",
            "{0}/run.json:1: expected `query_id Q0 doc_id rank score tag` with a finite number as score, got 3 columns (JSON?)",
        ),
        ("evaluate qrels={0}/corpus/part-00000-of-00003.parquet run={0}/r", "has no column query-id"),
    ],
)
def test_one_thing_in_place_of_another_is_named(
    collection: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    """Prevents: a KeyError, or 'no manifest', for a table that is there and is another one."""
    monkeypatch.chdir(collection)
    model_folder(collection / "model", pooling="mean", normalize=True)
    for kind, name in (("corpus", "doc_id"), ("queries", "query_id")):
        vectors = pa.table({name: ["a"], "embedding": pa.array([[1.0] * 4], pa.list_(pa.float16(), 4))})
        store(collection / f"{kind}-vectors", [vectors], table=kind, stage="embed")
    (collection / "store" / "ingest").mkdir(parents=True)
    (collection / "beir").mkdir()
    (collection / "beir" / "corpus.jsonl").touch()
    for file, content in (("r", "q Q0 a 1 1 t\n"), ("q", "q 0 a 1\n"), ("run.json", '{"q": {"a": 1}}\n')):
        (collection / file).write_text(content)
    before = sorted(collection.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        retrieve(*words.format(collection).split())
    told = capsys.readouterr().err
    assert ended.value.code == 2 and message.format(collection) in told, told
    assert sorted(collection.rglob("*")) == before
