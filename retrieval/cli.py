"""The command `retrieve`: encode, index, search, rerank, evaluate, compare, merge, query. All arguments are `key=value`; files may be on s3://."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from data.command import exit_codes
from data.config.fields import build
from data.config.settings import Search, Student
from data.errors import UserError
from data.files.outputs import is_standard_output
from data.files.paths import expanded
from data.formats.readers import shown
from data.remote.object_store import is_remote
from data.terminal import printable
from retrieval.cli_args import NOT_GIVEN, FileArgs, settings_of, text_among
from retrieval.cli_collections import (
    OF_RUNS,
    OVER_COLLECTIONS,
    compare_folders,
    evaluate_collections,
    evaluated_folder,
    metrics_of,
    refuse_given,
)
from retrieval.cli_rerank import RERANKING, ranker_of

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)

_DEVICES = ("cpu", "cuda")
_PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_STORED = ("int8", "uint8", "binary", "ubinary")  # `QUANTIZED` of retrieval.encoding.vector_formats, which imports numpy
_SEARCHING = {
    "dimensions": "", "depth": "1000", "threads": "0", "memory_gb": "4", "device": "cpu", "index": "",
    **settings_of(Search, "probes", "width"),
}  # fmt: skip
_JUDGING = {"split": "test", "relevant_from": "1", "missing": "zero", "ignore_identical_ids": "auto"}


def _command(*required: str, **optional: str) -> Callable[[Callable[[FileArgs], None]], None]:
    """Make a command of a function: its arguments are checked before it, and errors for users end in a message and an exit code."""

    def register(work: Callable[[FileArgs], None]) -> None:
        def command(args: Annotated[list[str] | None, typer.Argument(metavar="key=value ...")] = None) -> None:
            with exit_codes():
                work(FileArgs.of(text_among(args) if "text" in required else args, required=required, optional=optional))

        app.command(name=work.__name__, help=work.__doc__)(command)

    return register


def _note(line: str) -> None:
    """Progress goes to the error stream: what a program reads is on the other."""
    print(printable(line), file=sys.stderr, flush=True)


def _done(line: str, out: str) -> None:
    """Print the last line; a note where the run itself is printed."""
    if is_standard_output(out):
        _note(line)
    else:
        print(line)


@_command(
    "model", "texts", "kind", "out", **settings_of(Student), precision="auto", dimensions="", device="cpu", batch_tokens="0",
    threads="0",
)  # fmt: skip
def encode(args: FileArgs) -> None:
    """Embed a stored corpus or queries table with any student.

    model=FOLDER|HUB-ID texts=TABLE-FOLDER kind=corpus|queries out=FOLDER [dimensions=N, the first ones of a vector], and any of the
    student's settings (pooling=, ...). precision=auto|fp32|bf16|fp16 is of the computation; int8, uint8, binary and ubinary are how a
    corpus is stored, in the formats of sentence-transformers.
    """
    device = args.one_of("device", *_DEVICES)
    precision = args.one_of("precision", *_PRECISIONS, *_STORED)
    kind = args.one_of("kind", "corpus", "queries")
    from retrieval.encoding.encode import encode_table

    with args.output_table("out") as out:
        encode_table(
            args.section(Student), args.table("texts", "texts"), out, kind=kind, precision=precision, device=device,
            dimensions=_dimensions(args), batch_tokens=args.number("batch_tokens"), threads=args.number("threads"), report=_note,
        )  # fmt: skip
    print(f"embeddings in {args['out']}")


@_command("corpus", "out", "kind", **settings_of(Search, "lists", "links", "build_width"))
def index(args: FileArgs) -> None:
    """An approximate index over stored embeddings, for corpora whose exact search takes too long.

    corpus=FOLDER out=FOLDER kind=ivf|hnsw [lists=] [links=32] [build_width=200]
    """
    settings = args.section(Search, index=args.one_of("kind", "ivf", "hnsw"))
    from retrieval.search.index_table import build_index_table

    with args.output_table("out") as out:
        build_index_table(args.table("corpus", "corpus vectors"), out, settings, report=_note)
    print(f"index in {args['out']}")


@_command("corpus", "queries", "out", **_SEARCHING, qrels="", split="test")
def search(args: FileArgs) -> None:
    """Search over stored embeddings, exact or through index=FOLDER, a TREC run out. A killed search goes on where it stopped.

    corpus=FOLDER queries=FOLDER out=RUN [depth=1000] [memory_gb=4] [device=cpu] [index=FOLDER probes=32 width=256] [qrels=, split=]
    dimensions=N compares the first N dimensions, of length 1 again where the student normalises.
    """
    only = set(_qrels(args)) if args["qrels"] else None
    with args.output_file("out", "run") as out:
        searched = _search(args, out, only=only)
    _done(f"{searched:,} queries searched, run in {args['out']}", args["out"])


def _dimensions(args: FileArgs) -> int | None:
    return args.number("dimensions", least=1) if args["dimensions"] else None


def _threads(args: FileArgs) -> int:
    return args.number("threads") or os.cpu_count() or 1


def _search(args: FileArgs, out: Path, *, only: set[str] | None) -> int:
    from retrieval.search.embedding_table import EmbeddingTable, differences
    from retrieval.search.searcher import searcher_for
    from retrieval.search.to_run import search_to_run

    depth = args.number("depth", least=1)
    memory_gb = args.positive("memory_gb")
    device = args.one_of("device", *_DEVICES)
    settings = build(Search, {name: args[name] for name in ("probes", "width") if args[name] != NOT_GIVEN})
    dimensions = _dimensions(args)
    if dimensions and args["index"]:
        raise UserError("index= is of whole vectors: leave it out, or index vectors made with `retrieve encode dimensions=`")
    queries = EmbeddingTable(args.table("queries", "query vectors"), "query_id", dimensions)
    corpus = EmbeddingTable(args.table("corpus", "corpus vectors"), "doc_id", dimensions)
    if set(differences(queries.student_key, corpus.student_key)) - ({"truncate_dim"} if dimensions else set()):
        _note("note: queries and corpus were embedded by different models or poolings; meant only for paired encoders")
    of_index: dict[str, Any] = {}
    index_folder = args.table("index", "index") if args["index"] else None
    if index_folder:
        from retrieval.search.index_table import index_key

        of_index = {**index_key(index_folder, corpus), "probes": settings.probes, "width": settings.width}
    threads = _threads(args)
    searcher = searcher_for(corpus, settings, index=index_folder, device=device, threads=threads, memory_gb=memory_gb)
    searched = search_to_run(searcher, queries, out, k=depth, only=only, how=of_index, report=_Eta("queries"))
    if of_index:
        found, there = searcher.recall(queries.matrix(), k=depth, sampled=settings.recall_queries)
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


def _qrels(args: FileArgs) -> Any:
    from retrieval.evaluation.qrels import read_qrels

    return read_qrels(args.table_or_file("qrels"), split=args["split"], note=_note)


def _run(args: FileArgs, key: str) -> Any:
    from data.formats.trec import read_run

    return read_run(args.file(key), note=_note)


@_command("run", "queries", "corpus", "out", **RERANKING)
def rerank(args: FileArgs) -> None:
    """The first passages of a run in the order of a cross-encoder or a student; what lies below is left out.

    model=FOLDER|HUB-ID run=RUN queries=TABLE corpus=TABLE out=RUN [depth=50] [limit=QUERIES, the run's first]
    [scorer=auto|cross_encoder|student], and any of the teacher's settings (max_tokens=, ...) or of the student's (pooling=, ...);
    auto: a folder that pools its tokens is a student.
    A student's score is the inner product of vectors, as `retrieve encode` and `retrieve search` give it; [dimensions=N] [precision=auto].
    queries=EMBEDDINGS corpus=EMBEDDINGS, without a model, ranks by stored vectors.
    """
    device = args.one_of("device", *_DEVICES)
    depth = args.number("depth", least=1)
    limit = args.number("limit", least=1) if args["limit"] else None
    run = dict(itertools.islice(_run(args, "run").items(), limit))
    threads = _threads(args)
    ranker = ranker_of(args, depth=depth, device=device, threads=threads, note=_note)
    import torch

    from data.formats.trec import write_run

    torch.set_num_threads(threads)
    with args.output_file("out", "run") as out:
        ranked = ranker(run, _note)
        write_run(out, ranked, tag="reranked")
    _done(f"{len(ranked):,} queries ranked again, run in {args['out']}", args["out"])


_EVALUATED = {
    "qrels": NOT_GIVEN, "run": "", "corpus": "", "queries": "", "out": "", "per_query": "", "metrics": "", **_SEARCHING, **_JUDGING,
}  # fmt: skip


@_command(**_EVALUATED, **OVER_COLLECTIONS)
def evaluate(args: FileArgs) -> None:
    """Metrics of a run, of stored embeddings, or of a model over collections.

    qrels=FILE|TABLE run=FILE, or corpus=FOLDER queries=FOLDER out=RUN [dimensions=N]; [per_query=JSON] [split=test] [depth=1000]
    [relevant_from=1] [metrics=nDCG@10,MAP@100]
    missing=zero counts a judged query that the run lacks as 0 (trec_eval -c), missing=skip leaves it out.
    ignore_identical_ids=true leaves out hits with the query's own id, as BEIR does; auto does where queries are passages themselves.
    Equal scores go by passage id, rising (trec_eval: falling).

    model=FOLDER|HUB-ID collections=FOLDER[,FOLDER|PATTERN] out=FOLDER: of BEIR or MS MARCO folders, or folders of them, with their mean;
    also [split=test,msmarco:dev] [dimensions=N] [metrics=] [vectors=FOLDER, out/vectors] [precision=auto] [device=cpu] [max_bad_fraction=],
    and any of the student's settings. Lengths are as the model's files say. A killed one goes on; vectors are made once.
    """
    if args["model"] or args["collections"]:
        given = {name: default for name, default in _EVALUATED.items() if name in OF_RUNS}
        refuse_given(args, given, "is of a run or of stored embeddings, and a model is evaluated over collections: leave it out")
        evaluate_collections(args, threads=_threads(args), note=_note)
        return
    refuse_given(args, OVER_COLLECTIONS, "is of a model over collections: say model= and collections=, or leave it out")
    if args["qrels"] == NOT_GIVEN:
        raise UserError("missing qrels=...; or evaluate a model over collections: model=... collections=... out=...")
    searched = [name for name in ("corpus", "queries", "dimensions", "out") if args[name]]
    if args["run"] and searched:
        names = ", ".join(f"{name}=" for name in searched)
        raise UserError(f"run= is evaluated as it is: leave out {names} (per_query=FILE writes the metrics of each query)")
    metrics_of(args, default="")
    qrels = _qrels(args)
    if not args["run"] and not (args["corpus"] and args["queries"] and args["out"]):
        raise UserError("say what to evaluate: run=FILE, or corpus=FOLDER queries=FOLDER out=RUN, or model= and collections=")
    from data.formats.trec import read_run
    from data.tables.shards import atomic_write
    from retrieval.evaluation.printing import print_evaluation

    with contextlib.ExitStack() as outputs:  # opened before the work, so that one that cannot be written stops it
        per_query = outputs.enter_context(args.output_file("per_query", "json")) if args["per_query"] else None
        if args["run"]:
            run = _run(args, "run")
        else:
            out = outputs.enter_context(args.output_file("out", "run"))
            _search(args, out, only=set(qrels))
            run = read_run(out)
        (evaluation,) = _evaluated(qrels, {"run" if args["run"] else "out": run}, args)
        if per_query is not None:
            atomic_write(per_query, json.dumps(evaluation.per_query(), indent=1, sort_keys=True).encode())
    print_evaluation(evaluation)


def _evaluated(qrels: Any, named: dict[str, Any], args: FileArgs) -> list[Any]:
    """The evaluation of each run, by the argument that named it, over the same queries and by the same rules.

    Raises UserError where a run has none of the judged queries: all zeros would pass for figures.
    """
    from retrieval.evaluation.metrics import METRICS, own_passages
    from retrieval.evaluation.metrics import evaluate as evaluate_run

    ignore = args.one_of("ignore_identical_ids", "auto", "true", "false")
    runs = list(named.values())
    for name, run in named.items():
        if not any(query_id in run for query_id in qrels):
            found = f"its first is {shown(next(iter(run)))}" if run else "it has no entry"
            expected = f"the {len(qrels):,} queries of qrels={args['qrels']} ({shown(next(iter(qrels)))}, ...)"
            raise UserError(f"{name}={args[name]} has none of {expected}: {found}")
    if args.one_of("missing", "zero", "skip") == "skip":
        qrels = {query_id: judged for query_id, judged in qrels.items() if all(query_id in run for run in runs)}
    without_own = qrels.keys() if ignore == "true" or (ignore == "auto" and own_passages(qrels, runs)) else ()
    metrics = metrics_of(args, default=",".join(METRICS))
    relevant_from = args.number("relevant_from")
    try:
        return [evaluate_run(qrels, run, relevant_from=relevant_from, without_own=without_own, metrics=metrics) for run in runs]
    except ValueError as error:
        raise UserError(f"{args['qrels']}: {error}") from error


_COMPARED = {"qrels": NOT_GIVEN, **_JUDGING}


@_command("before", "after", **_COMPARED, metrics="", seed="0", permutations="100000")
def compare(args: FileArgs) -> None:
    """Two runs side by side, with a paired randomisation test.  before=RUN after=RUN qrels=FILE|TABLE [split=test] [metrics=] [seed=0]

    missing=zero counts a judged query that a run lacks as 0, missing=skip leaves out those that either lacks.
    ignore_identical_ids=auto|true|false as in `retrieve evaluate`, for both runs alike.

    before=FOLDER after=FOLDER [metrics=nDCG@10]: two folders of `retrieve evaluate collections=`, each collection and their mean.
    """
    folders = [evaluated_folder(args, key) for key in ("before", "after")]
    before_folder, after_folder = folders
    if before_folder and after_folder:
        refuse_given(args, _COMPARED, "is of two runs; folders of results hold it already")
        compare_folders(before_folder, after_folder, args)
        return
    if any(folders):
        other = args["after" if before_folder else "before"]
        if not is_remote(other) and not os.path.exists(expanded(other, key="compare")):
            raise UserError(f"{other}: no such run file, or folder of results")
        raise UserError("before= and after= are two runs, or two folders of `retrieve evaluate collections=...`, not one of each")
    if args["qrels"] == NOT_GIVEN:
        raise UserError("missing qrels=...: two runs are judged by it")
    permutations = args.number("permutations", least=1)
    from retrieval.evaluation.metrics import compare as compare_runs
    from retrieval.evaluation.printing import print_comparison

    before, after = _evaluated(_qrels(args), {name: _run(args, name) for name in ("before", "after")}, args)
    print_comparison(compare_runs(before, after, seed=args.number("seed"), permutations=permutations), before, after)


@_command("models", "out", weights="", threads="0")
def merge(args: FileArgs) -> None:
    """The mean of several checkpoints of one architecture: students, or cross-encoders.

    models=A,B[,C] out=FOLDER, a new one [weights=0.5,0.5]. Each A is a folder or a hub id. Computed in float64, saved as the first one is,
    and opened as that. Other shapes, tokenizers, modules, poolings or prompts are refused; merge LoRA adapters into their base first.
    """
    from retrieval.merging.merge import merge as merge_models
    from retrieval.merging.merge import plan_merge

    plan = plan_merge(args["models"], args["weights"], note=_note)
    threads = _threads(args)
    with args.new_folder("out") as out:
        import torch

        torch.set_num_threads(threads)
        count = merge_models(plan, out)
    shares = ", ".join(f"{weight:.4g} of {model.name}" for model, weight in zip(plan.models, plan.weights, strict=True))
    print(f"{count:,} tensors: {shares}; in {args['out']}")


@_command(
    "text", "model", "corpus", "texts", **settings_of(Student), dimensions="", k="10", width="160", precision="fp32", device="cpu",
    threads="0"
)  # fmt: skip
def query(args: FileArgs) -> None:
    """The passages that a student finds for one text: rank, score, id and text.

    "TEXT" or text=TEXT, model=FOLDER|HUB-ID corpus=EMBEDDINGS texts=CORPUS-TABLE [dimensions=N] [k=10] [width=160], and any of the
    student's settings.
    """
    device = args.one_of("device", *_DEVICES)
    precision = args.one_of("precision", *_PRECISIONS)
    k = args.number("k", least=1)
    width = args.number("width", least=2)
    if not args["text"].strip():
        raise UserError('the query is empty: retrieve query "how long does a claim take" ...')
    from retrieval.compute.precision import resolve
    from retrieval.search.query import find, noted_settings, one_line

    corpus = args.table("corpus", "corpus vectors")
    hits = find(
        args["text"], args.section(Student, **noted_settings(corpus)), corpus=corpus, texts=args.table("texts", "corpus texts"), k=k,
        precision=resolve(precision, device=device), device=device, threads=_threads(args), dimensions=_dimensions(args),
    )  # fmt: skip
    for hit in hits:
        print(printable(f"{hit.rank:>3}  {hit.score:8.4f}  {hit.doc_id}  {one_line(hit.text, width=width)}"))


def main() -> None:
    """The command `retrieve`; its console script is `retrieval.__main__`."""
    app()
