"""The command `retrieve`: encode, index, search, rerank, evaluate, compare, query. All words are `key=value`; files may be on s3://."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from data.command import exit_codes
from data.errors import UserError
from data.files.outputs import is_json, is_run, is_standard_output
from data.formats.readers import shown
from data.terminal import printable
from retrieval.cli_args import DEVICES, NOT_GIVEN, PRECISIONS, Words, settings_of, text_among

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)

Given = Annotated[list[str] | None, typer.Argument(metavar="key=value ...")]


def _note(line: str) -> None:
    """Progress goes to the error stream: what a program reads is on the other."""
    print(printable(line), file=sys.stderr, flush=True)


def _done(line: str, out: str) -> None:
    """The last line; a note where the run itself is printed."""
    if is_standard_output(out):
        _note(line)
    else:
        print(line)


@app.command()
def encode(words: Given = None) -> None:
    """Embed a stored corpus or queries table with any student.

    model=FOLDER|HUB-ID texts=TABLE-FOLDER kind=corpus|queries out=FOLDER, and any of the student's settings (pooling=, ...).
    """
    from data.config.settings import Student

    with exit_codes():
        own = {"precision": "auto", "device": "cpu", "batch_tokens": "", "threads": "0"}
        optional = {**settings_of(Student, leave_out=("model",)), **own}
        given = Words.of(words, required=("model", "texts", "kind", "out"), optional=optional)
        device, precision = given.one_of("device", DEVICES), given.one_of("precision", PRECISIONS)
        kind = given.one_of("kind", ("corpus", "queries"))
        from retrieval.compute.batching import DEFAULT_BATCH_TOKENS
        from retrieval.encoding.encode import encode_table

        with given.output_table("out") as out:
            encode_table(
                given.section(Student),
                given.table("texts", "texts"),
                out,
                kind=kind,
                precision=precision,
                device=device,
                batch_tokens=given.number("batch_tokens") if given["batch_tokens"] else DEFAULT_BATCH_TOKENS[device],
                threads=given.number("threads"),
                report=_note,
            )
        print(f"embeddings in {given['out']}")


@app.command()
def index(words: Given = None) -> None:
    """An approximate index over stored embeddings, for corpora whose exact search takes too long.

    corpus=FOLDER out=FOLDER kind=ivf|hnsw [lists=] [links=32] [build_width=200]
    """
    from data.config.settings import Search

    with exit_codes():
        optional = {name: NOT_GIVEN for name in ("lists", "links", "build_width")}
        given = Words.of(words, required=("corpus", "out", "kind"), optional=optional)
        settings = given.section(Search, index=given.one_of("kind", ("ivf", "hnsw")))
        from retrieval.search.index_table import build_index_table

        with given.output_table("out") as out:
            build_index_table(given.table("corpus", "corpus vectors"), out, settings, report=_note)
        print(f"index in {given['out']}")


@app.command()
def search(words: Given = None) -> None:
    """Search over stored embeddings, exact or through index=FOLDER, a TREC run out. A killed search goes on where it stopped.

    corpus=FOLDER queries=FOLDER out=RUN [depth=1000] [memory_gb=4] [device=cpu] [index=FOLDER probes=32 width=256] [qrels=, split=]
    """
    with exit_codes():
        optional = {**_SEARCHING, "qrels": "", "split": "test"}
        given = Words.of(words, required=("corpus", "queries", "out"), optional=optional)
        only = set(_qrels(given)) if given["qrels"] else None
        with given.output_file("out", is_run) as out:
            searched = _search(given, out, only=only)
        _done(f"{searched:,} queries searched, run in {given['out']}", given["out"])


_SEARCHING = {
    "depth": "1000", "threads": "0", "memory_gb": "4", "device": "cpu", "index": "", "probes": NOT_GIVEN, "width": NOT_GIVEN,
}  # fmt: skip


def _threads(given: Words) -> int:
    return given.number("threads") or os.cpu_count() or 1


def _search(given: Words, out: Path, *, only: set[str] | None) -> int:
    from data.config.fields import build
    from data.config.settings import Search
    from retrieval.search.embedding_table import EmbeddingTable, same_student
    from retrieval.search.searcher import Searcher, engines_for
    from retrieval.search.to_run import search_to_run

    depth, memory_gb, device = given.number("depth", least=1), given.positive("memory_gb"), given.one_of("device", DEVICES)
    settings = build(Search, {name: given[name] for name in ("probes", "width") if given[name] != NOT_GIVEN})
    queries, corpus = (
        EmbeddingTable(given.table("queries", "query vectors"), "query_id"),
        EmbeddingTable(given.table("corpus", "corpus vectors"), "doc_id"),
    )
    if not same_student(queries, corpus):
        _note("note: queries and corpus were embedded by different models or poolings; meant only for paired encoders")
    of_index: dict[str, Any] = {}
    index_folder = given.table("index", "index") if given["index"] else None
    if index_folder:
        from retrieval.search.index_table import index_key

        of_index = {**index_key(index_folder, corpus), "probes": settings.probes, "width": settings.width}
    threads = _threads(given)
    engines = engines_for(settings, index_folder, device=device, threads=threads)
    searcher = Searcher(corpus, memory_gb=memory_gb, threads=threads, engines=engines)
    searched = search_to_run(searcher, queries, out, k=depth, only=only, how=of_index, report=_Eta("queries"))
    if of_index:
        found, there = searcher.sampled_recall(queries.matrix(), k=depth, queries_sampled=settings.recall_queries)
        _note(f"the index found {found / max(1, there):.2%} of the {there:,} passages that exact search finds for sampled queries")
    return searched


class _Eta:
    """Notes how far a work is, and how long the rest will take."""

    def __init__(self, unit: str) -> None:
        self._unit, self._began = unit, time.perf_counter()
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._first is None:
            self._first = done
        elif done > self._first:
            left = (time.perf_counter() - self._began) * (total - done) / (done - self._first)
            _note(f"{done:,} of {total:,} {self._unit}, about {left:.0f} s left")


def _qrels(given: Words) -> Any:
    from retrieval.evaluation.qrels import read_qrels

    return read_qrels(given.table_or_file("qrels"), split=given["split"], note=_note)


@app.command()
def rerank(words: Given = None) -> None:
    """The first passages of a run in a cross-encoder's order; what lies below is left out.

    model=FOLDER|HUB-ID run=RUN queries=TABLE corpus=TABLE out=RUN [depth=50] [limit=QUERIES, the run's first], and any of the teacher's
    settings (max_tokens=, ...).
    """
    from data.config.settings import Teacher

    with exit_codes():
        optional = {**settings_of(Teacher, leave_out=("model",)), "depth": "50", "limit": "", "device": "cpu", "threads": "0"}
        given = Words.of(words, required=("model", "run", "queries", "corpus", "out"), optional=optional)
        teacher, device, depth = given.section(Teacher), given.one_of("device", DEVICES), given.number("depth", least=1)
        from data.formats.trec import read_run, write_run

        run = read_run(given.file("run"), note=_note)
        if given["limit"]:
            run = dict(list(run.items())[: given.number("limit", least=1)])
        import torch

        from retrieval.teachers.rerank import rerank as rerank_run

        threads = _threads(given)
        torch.set_num_threads(threads)
        with given.output_file("out", is_run) as out:
            ranked = rerank_run(
                run, teacher, queries=given.table("queries", "query texts"), corpus=given.table("corpus", "corpus texts"), depth=depth,
                device=device, threads=threads, report=_note,
            )  # fmt: skip
            write_run(out, ranked, tag="reranked")
        _done(f"{len(ranked):,} queries ranked anew, run in {given['out']}", given["out"])


@app.command()
def evaluate(words: Given = None) -> None:
    """Metrics of a run, or of stored embeddings.

    qrels=FILE|TABLE run=FILE, or corpus=FOLDER queries=FOLDER out=RUN; [per_query=JSON] [split=test] [depth=1000] [relevant_from=1]
    missing=zero counts a judged query that the run lacks as 0 (trec_eval -c), missing=skip leaves it out.
    ignore_identical_ids=true leaves out hits with the query's own id, as BEIR does; auto does where queries are passages themselves.
    Equal scores go by passage id, rising (trec_eval: falling).
    """
    with exit_codes():
        searched = {"corpus": "", "queries": "", "out": ""}
        optional = {"run": "", **searched, "per_query": "", "split": "test", **_SEARCHING, **_JUDGING}
        given = Words.of(words, required=("qrels",), optional=optional)
        surplus = [f"{name}=" for name in searched if given["run"] and given[name]]
        if surplus:
            raise UserError(f"run= is evaluated as it is: leave out {', '.join(surplus)} (per_query=FILE writes the metrics of each query)")
        qrels = _qrels(given)
        if not given["run"] and not all(given[name] for name in searched):
            raise UserError("say what to evaluate: run=FILE, or corpus=FOLDER queries=FOLDER out=RUN")
        from data.formats.trec import read_run

        with contextlib.ExitStack() as outputs:  # opened before the work, so that one that cannot be written stops it
            per_query = outputs.enter_context(given.output_file("per_query", is_json)) if given["per_query"] else None
            if given["run"]:
                run = read_run(given.file("run"), note=_note)
            else:
                out = outputs.enter_context(given.output_file("out", is_run))
                _search(given, out, only=set(qrels))
                run = read_run(out)
            (evaluation,) = _evaluated(qrels, {"run" if given["run"] else "out": run}, given)
            if per_query is not None:
                from data.tables.shards import atomic_write

                atomic_write(per_query, json.dumps(evaluation.per_query(), indent=1, sort_keys=True).encode())
        from retrieval.evaluation.printing import print_evaluation

        print_evaluation(evaluation)


_JUDGING = {"relevant_from": "1", "missing": "zero", "ignore_identical_ids": "auto"}


def _evaluated(qrels: Any, named: dict[str, Any], given: Words) -> list[Any]:
    """The evaluation of each run, by the word that named it, over the same queries and by the same rules.

    Raises UserError where a run has none of the judged queries: all zeros would pass for figures.
    """
    from retrieval.evaluation.metrics import evaluate as evaluate_run
    from retrieval.evaluation.metrics import own_passages

    ignore = given.one_of("ignore_identical_ids", ("auto", "true", "false"))
    runs = list(named.values())
    for name, run in named.items():
        if not any(query_id in run for query_id in qrels):
            found = f"its first is {shown(next(iter(run)))}" if run else "it has no entry"
            wanted = f"the {len(qrels):,} queries of qrels={given['qrels']} ({shown(next(iter(qrels)))}, ...)"
            raise UserError(f"{name}={given[name]} has none of {wanted}: {found}")
    if given.one_of("missing", ("zero", "skip")) == "skip":
        qrels = {query_id: judged for query_id, judged in qrels.items() if all(query_id in run for run in runs)}
    without_own = qrels.keys() if ignore == "true" or (ignore == "auto" and own_passages(qrels, runs)) else ()
    try:
        return [evaluate_run(qrels, run, relevant_from=given.number("relevant_from"), without_own=without_own) for run in runs]
    except ValueError as error:
        raise UserError(f"{given['qrels']}: {error}") from error


@app.command()
def compare(words: Given = None) -> None:
    """Two runs side by side, with a paired randomisation test.  before=RUN after=RUN qrels=FILE|TABLE [split=test] [seed=0]

    missing=zero counts a judged query that a run lacks as 0, missing=skip leaves out those that either lacks.
    ignore_identical_ids=auto|true|false as in `retrieve evaluate`, for both runs alike.
    """
    with exit_codes():
        optional = {"split": "test", "seed": "0", "permutations": "100000", **_JUDGING}
        given = Words.of(words, required=("before", "after", "qrels"), optional=optional)
        permutations = given.number("permutations", least=1)
        from data.formats.trec import read_run
        from retrieval.evaluation.metrics import compare as compare_runs
        from retrieval.evaluation.printing import print_comparison

        qrels = _qrels(given)
        before, after = _evaluated(qrels, {name: read_run(given.file(name), note=_note) for name in ("before", "after")}, given)
        print_comparison(compare_runs(before, after, seed=given.number("seed"), permutations=permutations), before, after)


@app.command()
def query(words: Given = None) -> None:
    """The passages that a student finds for one text: rank, score, id and text.

    "TEXT" or text=TEXT, model=FOLDER|HUB-ID corpus=EMBEDDINGS texts=CORPUS-TABLE [k=10] [width=160], and any of the student's settings.
    """
    from data.config.settings import Student

    with exit_codes():
        own = {"k": "10", "width": "160", "precision": "fp32", "device": "cpu", "threads": "0"}
        optional = {**settings_of(Student, leave_out=("model",)), **own}
        given = Words.of(text_among(words), required=("text", "model", "corpus", "texts"), optional=optional)
        device, precision = given.one_of("device", DEVICES), given.one_of("precision", PRECISIONS)
        k, width = given.number("k", least=1), given.number("width", least=2)
        if not given["text"].strip():
            raise UserError('the query is empty: retrieve query "how long does a claim take" ...')
        from retrieval.compute.precision import resolve
        from retrieval.search.query import find, noted_settings, one_line

        corpus = given.table("corpus", "corpus vectors")
        student = given.section(Student, **noted_settings(corpus))
        hits = find(
            given["text"], student, corpus=corpus, texts=given.table("texts", "corpus texts"), k=k,
            precision=resolve(precision, device=device), device=device, threads=_threads(given),
        )  # fmt: skip
        for hit in hits:
            print(printable(f"{hit.rank:>3}  {hit.score:8.4f}  {hit.doc_id}  {one_line(hit.text, width=width)}"))


def main() -> None:
    """The command `retrieve`; its console script is `retrieval.__main__`."""
    app()
