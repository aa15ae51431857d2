"""`retrieve evaluate model= collections=` on toy collections: the figures against sentence-transformers, and what is made only once."""

from __future__ import annotations

import gzip
import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator
from support.in_process import retrieve

from data.errors import RunFailed
from retrieval.encoding import encode
from retrieval.evaluation.suite import find_suite
from retrieval.search.searcher import Searcher

SYLLABLES = [f"{consonant}{vowel}" for consonant in "bcdfghjklmnprstvwxyz" for vowel in "aeiou"]


def write_collection(folder: Path, *, seed: int, queries: int = 8, passages: int = 40, split: str = "test") -> Path:
    """A BEIR folder whose queries are some words of one or two passages."""
    chance = np.random.default_rng(seed)
    texts = {f"d{n}": " ".join(chance.choice(SYLLABLES, chance.integers(5, 30))) for n in range(passages)}
    asked, labels = {}, ["query-id\tcorpus-id\tscore"]
    for number in range(queries):
        judged = chance.choice(passages, 1 + number % 3, replace=False)
        asked[f"q{number}"] = " ".join(chance.choice(texts[f"d{judged[0]}"].split(), 4))
        labels += [f"q{number}\td{place}\t1" for place in judged]
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": name, "title": "ba" * (n % 2), "text": text}) for n, (name, text) in enumerate(texts.items())]
    (folder / "corpus.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": name, "text": text}) + "\n" for name, text in asked.items()))
    (folder / "qrels" / f"{split}.tsv").write_text("\n".join(labels) + "\n")
    return folder


@pytest.fixture
def evaluated(tmp_path: Path, models: Any) -> Callable[..., dict[str, Any]]:
    """`evaluated(folder, words)`: the content of results.json."""

    def run(collections: object, *words: str, out: str = "out", model: Path | None = None) -> dict[str, Any]:
        at = [f"model={model or models.student}", f"collections={collections}", f"out={tmp_path / out}", "precision=fp32", "threads=1"]
        assert retrieve("evaluate", *at, *words) == 0
        return dict(json.loads((tmp_path / out / "results.json").read_text()))

    return run


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many texts were embedded, and how many queries searched."""
    counts = {"texts": 0, "queries": 0}
    embedded, searched = encode.embedded_groups, Searcher.search

    def embedding(*args: Any, **options: Any) -> Any:
        for group in embedded(*args, **options):
            counts["texts"] += group.num_rows
            yield group

    def searching(self: Any, queries: Any, *, k: int) -> Any:
        counts["queries"] += len(queries)
        return searched(self, queries, k=k)

    monkeypatch.setattr(encode, "embedded_groups", embedding)
    monkeypatch.setattr(Searcher, "search", searching)
    return counts


def by_peer(folder: Path, model: Path, *, dimensions: int | None = None) -> dict[str, float]:
    """sentence-transformers' metrics of a collection, by our names, read from the files anew."""
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    corpus = {row["_id"]: f"{row['title']} {row['text']}".strip() for row in rows}
    queries = {row["_id"]: row["text"] for row in map(json.loads, (folder / "queries.jsonl").read_text().splitlines())}
    relevant: dict[str, set[str]] = {}
    for line in (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]:
        query, doc, _ = line.split("\t")
        relevant.setdefault(query, set()).add(doc)
    peer = InformationRetrievalEvaluator(
        queries, corpus, relevant, mrr_at_k=[10], ndcg_at_k=[10], precision_recall_at_k=[5], map_at_k=[20], truncate_dim=dimensions,
        score_functions={"cosine": lambda a, b: _unit(a) @ _unit(b).T}, write_csv=False,
    )  # fmt: skip
    found = peer(SentenceTransformer(str(model), device="cpu"))
    names = {"nDCG@10": "ndcg@10", "MRR@10": "mrr@10", "Recall@5": "recall@5", "Precision@5": "precision@5", "MAP@20": "map@20"}
    return {ours: found[f"cosine_{theirs}"] for ours, theirs in names.items()}


def _unit(vectors: Any) -> Any:
    return vectors / vectors.norm(dim=-1, keepdim=True)


@pytest.mark.medium
@pytest.mark.parametrize("dimensions", [None, 8])
def test_metrics_equal_sentence_transformers(
    tmp_path: Path, models: Any, evaluated: Callable[..., dict[str, Any]], dimensions: int | None
) -> None:
    """Prevents: another cut of long texts, titles left out, vectors cut after they are normalised, a metric by another formula."""
    names = [write_collection(tmp_path / "suite" / name, seed=seed).name for seed, name in enumerate(("one", "two"))]
    words = ["normalize=true", "metrics=nDCG@10,MRR@10,Recall@5,Precision@5,MAP@20", *([f"dimensions={dimensions}"] if dimensions else [])]
    found = evaluated(tmp_path / "suite", *words)
    expected = {name: by_peer(tmp_path / "suite" / name, models.student, dimensions=dimensions) for name in names}
    for name in names:
        assert found["collections"][name]["metrics"] == pytest.approx(expected[name], abs=1e-4)
    mean = {metric: (expected["one"][metric] + expected["two"][metric]) / 2 for metric in expected["one"]}
    assert found["mean"] == pytest.approx(mean, abs=1e-4)
    assert 0.05 < found["mean"]["nDCG@10"] < 0.95


@pytest.mark.medium
def test_nothing_is_embedded_or_searched_twice(tmp_path: Path, evaluated: Callable[..., dict[str, Any]], counted: dict[str, int]) -> None:
    """Prevents: hours of vectors made again for a second run, another dimension, other prompts of queries, or another split's queries."""
    folder = write_collection(tmp_path / "one", seed=0)
    first = evaluated(folder)
    assert counted == {"texts": 48, "queries": 8}
    assert evaluated(folder) == first
    assert counted == {"texts": 48, "queries": 8}
    evaluated(folder, "dimensions=8", "metrics=MRR@10")
    assert counted == {"texts": 48, "queries": 16}
    evaluated(folder, "query_prefix=ba bo ")
    assert counted["texts"] == 56  # the queries alone
    lines = (folder / "qrels" / "test.tsv").read_text().splitlines()
    (folder / "qrels" / "dev.tsv").write_text("\n".join([*lines[:3], "q9\td1\t1"]) + "\n")
    with open(folder / "queries.jsonl", "a") as file:
        file.write('{"_id": "q9", "text": "ba bo"}\n')
    evaluated(folder, "split=dev")
    assert counted["texts"] <= 59  # of the queries of the other split
    shutil.copytree(folder, tmp_path / "twin")
    evaluated(f"{tmp_path / 'twin'}")
    assert counted["texts"] <= 59
    evaluated(folder, out="second", model=None)
    before = counted["texts"]
    evaluated(folder, f"vectors={tmp_path / 'second' / 'vectors'}", out="third")
    assert counted["texts"] == before


@pytest.mark.medium
def test_a_changed_collection_is_read_again(tmp_path: Path, evaluated: Callable[..., dict[str, Any]], counted: dict[str, int]) -> None:
    """Prevents: figures of the corpus that lay there yesterday."""
    folder = write_collection(tmp_path / "one", seed=0)
    assert evaluated(folder)["collections"]["one"]["passages"] == 40
    with open(folder / "corpus.jsonl", "a") as file:
        file.write('{"_id": "more", "text": "ba be bi"}\n')
    assert evaluated(folder)["collections"]["one"]["passages"] == 41
    assert counted["texts"] == 48 + 41
    run = (tmp_path / "out" / "runs" / "one.trec").read_text()
    assert " more " in run
    (tmp_path / "out" / "runs" / "one.trec").write_text(run.replace(" more ", " less "))  # edited by hand: not ours any more
    evaluated(folder)
    assert (tmp_path / "out" / "runs" / "one.trec").read_text() == run


@pytest.mark.medium
def test_subforums_of_cqadupstack_count_as_one(
    tmp_path: Path, evaluated: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: a mean in which twelve subforums outweigh all other collections; and a folder of something else taken for a collection."""
    write_collection(tmp_path / "beir" / "one", seed=0)
    for seed, name in enumerate(("android", "english", "gis"), 1):
        write_collection(tmp_path / "beir" / "cqadupstack" / name, seed=seed)
    (tmp_path / "beir" / "notes").mkdir()
    (tmp_path / "beir" / ".hidden").mkdir()
    found = evaluated(tmp_path / "beir")
    told = capsys.readouterr()
    assert "notes is passed over" in told.err and ".hidden" not in told.err and "cqadupstack (mean)" in told.out
    each = {name: figures["metrics"]["nDCG@10"] for name, figures in found["collections"].items()}
    assert sorted(each) == ["cqadupstack/android", "cqadupstack/english", "cqadupstack/gis", "one"]
    group = sum(value for name, value in each.items() if "/" in name) / 3
    assert found["groups"]["cqadupstack"]["nDCG@10"] == pytest.approx(group)
    assert found["mean"]["nDCG@10"] == pytest.approx((group + each["one"]) / 2)
    assert (tmp_path / "out" / "runs" / "cqadupstack" / "gis.trec").is_file()


@pytest.mark.medium
def test_broken_records_are_counted_and_too_many_refused(
    tmp_path: Path, models: Any, evaluated: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: a mean over what happened to be readable, that passes for one over all; passages counted twice."""
    folder = write_collection(tmp_path / "one", seed=0)
    whole = evaluated(folder, out="whole")["mean"]
    corpus = (folder / "corpus.jsonl").read_text()
    (folder / "corpus.jsonl").write_text(corpus + '{"_id": "d3", "text": "again"}\n{"_id": 7}\n[]\n')
    (folder / "queries.jsonl").write_text((folder / "queries.jsonl").read_text() + "no json\n")
    (folder / "qrels" / "test.tsv").write_text((folder / "qrels" / "test.tsv").read_text() + "q0 d1\n")
    words = ["evaluate", f"model={models.student}", f"collections={folder}", f"out={tmp_path / 'out'}", "precision=fp32"]
    assert retrieve(*words) == 2
    told = capsys.readouterr().err
    assert "records of the" in told and "are broken" in told and "max_bad_fraction" in told
    assert not list((tmp_path / "out").rglob("results.json"))
    found = evaluated(folder, "max_bad_fraction=0.5")
    assert found["mean"] == whole
    dropped = found["collections"]["one"]["dropped"]
    assert dropped["corpus"] == {"duplicate id": 1, "no text": 1, "not a JSON object": 1}
    assert dropped["queries"] == {"not JSON": 1} and dropped["qrels"] == {"too few columns": 1}


@pytest.mark.medium
def test_queries_that_are_passages_do_not_find_themselves(tmp_path: Path, evaluated: Callable[..., dict[str, Any]]) -> None:
    """Prevents: figures of ArguAna and Quora halved by each query's own passage at rank 1."""
    folder = write_collection(tmp_path / "arguana", seed=0)
    queries = [json.loads(line) for line in (folder / "queries.jsonl").read_text().splitlines()]
    with open(folder / "corpus.jsonl", "a") as file:
        file.write("".join(json.dumps(query) + "\n" for query in queries))
    found = {word: evaluated(folder, f"ignore_identical_ids={word}", "metrics=MRR@10") for word in ("auto", "true", "false")}
    assert found["auto"]["collections"] == found["true"]["collections"]
    assert found["auto"]["collections"]["arguana"]["identical_ids_ignored"] == 8
    assert found["false"]["mean"]["MRR@10"] < found["true"]["mean"]["MRR@10"]
    evaluated(folder, "depth=2", "metrics=MRR@2")
    others = [
        line.split()[0]
        for line in (tmp_path / "out" / "runs" / "arguana.trec").read_text().splitlines()
        if line.split()[0] != line.split()[2]
    ]
    assert Counter(others) == dict.fromkeys((query["_id"] for query in queries), 2)  # not the query itself and one


@pytest.mark.medium
def test_relevant_passages_that_are_not_there_count(
    tmp_path: Path, models: Any, evaluated: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: a recall of 1 over a corpus that lacks half of what is to be found; a query without a text left out of the mean."""
    folder = write_collection(tmp_path / "one", seed=0)
    with open(folder / "qrels" / "test.tsv", "a") as file:
        file.write("q0\tnowhere\t1\nlost\td1\t1\n")
    found = evaluated(folder, "metrics=Recall@100")["collections"]["one"]
    told = capsys.readouterr().err
    assert "relevant passages are not in the corpus, and count as not found: nowhere" in told
    assert "1 judged queries have no text, and count with 0" in told
    each = json.loads((tmp_path / "out" / "per_query" / "one.json").read_text())
    assert each["q0"]["Recall@100"] == 0.5 and each["lost"]["Recall@100"] == 0 and found["queries"] == 9
    assert found["metrics"]["Recall@100"] == pytest.approx((7 + 0.5) / 9)


@pytest.mark.medium
def test_a_lost_shard_is_made_again(tmp_path: Path, evaluated: Callable[..., dict[str, Any]], counted: dict[str, int]) -> None:
    """Prevents: a store that was cleaned by half, and that no command mends."""
    folder = write_collection(tmp_path / "one", seed=0)
    first = evaluated(folder)
    for path in (tmp_path / "out" / "vectors").rglob("part-*.parquet"):
        path.unlink()
    assert evaluated(folder) == first
    assert counted["texts"] == 96


@pytest.mark.medium
def test_msmarco_layout_and_gzip(tmp_path: Path, evaluated: Callable[..., dict[str, Any]]) -> None:
    """Prevents: a reading of collections that knows BEIR alone."""
    folder = write_collection(tmp_path / "one", seed=0)
    other = tmp_path / "marco"
    other.mkdir()
    for name, target in (("corpus", "collection.tsv.gz"), ("queries", "queries.test.tsv.gz")):
        rows = map(json.loads, (folder / f"{name}.jsonl").read_text().splitlines())
        lines = "".join(f"{row['_id']}\t{row.get('title', '')} {row['text']}\n".replace("\t ", "\t") for row in rows)
        (other / target).write_bytes(gzip.compress(lines.encode()))
    labels = (folder / "qrels" / "test.tsv").read_text().splitlines()[1:]
    (other / "qrels.test.tsv").write_text("".join("{} 0 {} {}\n".format(*line.split()) for line in labels))
    found = evaluated(f"{folder},{other}")["collections"]
    assert found["one"]["metrics"] == found["marco"]["metrics"]


@pytest.mark.medium
def test_splits_by_name_and_an_only_split(
    tmp_path: Path, evaluated: Callable[..., dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: MS MARCO evaluated on a split that BEIR does not take; a split that nobody asked for taken without a word."""
    one, two = write_collection(tmp_path / "one", seed=0), write_collection(tmp_path / "two", seed=1, split="dev")
    found = evaluated(f"{one},{two}")
    assert {name: figures["split"] for name, figures in found["collections"].items()} == {"one": "test", "two": "dev"}
    assert "two has no split test; it is evaluated on its only one, dev" in capsys.readouterr().err
    shutil.copyfile(one / "qrels" / "test.tsv", one / "qrels" / "late.tsv")
    found = evaluated(f"{one},{two}", "split=test,one:late,two:dev")
    assert {name: figures["split"] for name, figures in found["collections"].items()} == {"one": "late", "two": "dev"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model={m}", "collections={0}/one"], "missing out=..."),
        (["collections={0}/one", "out={0}/o"], "missing model=..."),
        (["model={m}", "collections={0}/none", "out={0}/o"], "collections={0}/none: no such folder"),
        (["model={m}", "collections={0}/n*ne", "out={0}/o"], "matches no folder"),
        (["model={m}", "collections=,", "out={0}/o"], "collections is empty"),
        (["model={m}", "collections={0}/empty", "out={0}/o"], "holds no collection"),
        (["model={m}", "collections={0}/broken", "out={0}/o"], "broken: looked for queries.jsonl"),
        (["model={m}", "collections={0}/one,{0}/sub/one", "out={0}/o"], "two collections called one"),
        (["model={m}", "collections={0}/one", "out={0}/o", "split=dev,other:test"], "split=dev,other:test names other"),
        (["model={m}", "collections={0}/one", "out={0}/o", "split=one:dev"], "has no qrels of split dev; it has test: say split=one:test"),
        (["model={m}", "collections={0}/one", "out={0}/o", "run=r"], "run= is of a run"),
        (["model={m}", "collections={0}/one", "out={0}/o", "missing=skip"], "missing= is of a run"),
        (["model={m}", "collections={0}/one", "out={0}/o", "metrics=nDCG"], "'nDCG' is no metric"),
        (["model={m}", "collections={0}/one", "out={0}/o", "metrics=Recall@10", "depth=5"], "Recall@10 looks deeper"),
        (["model={m}", "collections={0}/one", "out={0}/o", "max_bad_fraction=2"], "expected a number from 0 to 1"),
        (["model={m}", "collections={0}/one", "out={0}/sub"], "is a folder with other files (one)"),
        (["model={m}", "collections={0}/one", "out={0}/one/corpus.jsonl"], "is a file; give the name of a folder"),
        (["model={m}", "collections={0}/one", "out={0}/o", "dimensions=64"], "dimensions=64: the vectors of"),
        (["model={m}", "collections={0}/unlabelled", "out={0}/o"], "has no label above 0"),
        (["model={m}", "collections={0}/strangers", "out={0}/o"], "do queries and qrels belong together?"),
        (["model={m}", "collections={0}/mixed", "out={0}/o"], "has none of the 3 relevant passages of split test, the first is"),
        (["model={m}", "collections={0}/spaced", "out={0}/o"], "corpus.jsonl:13: the id 'd 99' has a space"),
        (["model={0}/none", "collections={0}/one", "out={0}/o"], "no such folder"),
        (["run=a", "qrels=b", "pooling=cls"], "pooling= is of a model over collections"),
        (["run=a", "qrels=b", "metrics=x@1"], "'x@1' is no metric"),
    ],
)
def test_mistakes_are_told_before_any_vector(
    tmp_path: Path, models: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    """Prevents: a traceback, or an hour of encoding before a word that was wrong from the start."""
    for name in ("one", "sub/one", "broken", "unlabelled", "strangers", "spaced", "mixed"):
        write_collection(tmp_path / name, seed=0, passages=12, queries=2)
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken" / "queries.jsonl").unlink()
    (tmp_path / "unlabelled" / "qrels" / "test.tsv").write_text("q0\td0\t0\n")
    (tmp_path / "strangers" / "qrels" / "test.tsv").write_text("x0\td0\t1\n")
    mixed = tmp_path / "mixed" / "corpus.jsonl"
    mixed.write_text(mixed.read_text().replace('"_id": "d', '"_id": "other'))
    with open(tmp_path / "spaced" / "corpus.jsonl", "a") as file:
        file.write('{"_id": "d 99", "text": "ba"}\n')
    embedded = encode.embedded_groups

    def embedding(*args: Any, kind: str, **options: Any) -> Any:
        assert kind == "queries" and "dimensions=64" in words  # how many dimensions there are shows in a vector
        return embedded(*args, kind=kind, **options)

    monkeypatch.setattr(encode, "embedded_groups", embedding)
    assert retrieve("evaluate", *(word.format(tmp_path, m=models.student) for word in words)) == 2
    assert message.format(tmp_path) in (told := capsys.readouterr().err), told
    assert not list(tmp_path.rglob("results.json")) and not list((tmp_path / "o").rglob("*.trec"))


def test_a_failure_stays_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: bad input (2) told to a queue, where a network was gone and the same command may go on (1)."""

    def gone(path: str) -> Any:
        raise RunFailed(f"{path}: no route to host")

    monkeypatch.setattr("retrieval.evaluation.suite.find_collection", gone)
    with pytest.raises(RunFailed, match="irds:toy: no route to host"):
        find_suite("irds:toy", splits="test")
