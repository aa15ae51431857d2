"""The command `retrieve`: encode, search, evaluate, compare. All words are `key=value`."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from data.command import exit_codes
from data.config import parse_arguments, unknown_key
from data.errors import UserError

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)

Given = Annotated[list[str] | None, typer.Argument(metavar="key=value ...")]


@dataclass(frozen=True)
class _Words:
    """A command's own words, checked: required ones are there, no unknown one is."""

    values: dict[str, str]

    @staticmethod
    def of(given: list[str] | None, *, required: tuple[str, ...], optional: dict[str, str]) -> _Words:
        values = parse_arguments(given or [])
        valid = [*required, *optional]
        for key in values:
            if key not in valid:
                raise unknown_key(key, valid=valid)
        missing = [key for key in required if key not in values]
        if missing:
            raise UserError(f"missing {', '.join(f'{key}=...' for key in missing)}; optional: {', '.join(optional) or 'nothing'}")
        return _Words({**optional, **values})

    def __getitem__(self, key: str) -> str:
        return self.values[key]

    def path(self, key: str) -> Path:
        return Path(self.values[key])

    def number(self, key: str) -> int:
        if not self.values[key].isdigit():
            raise UserError(f"{key}={self.values[key]}: expected a whole number")
        return int(self.values[key])

    def positive(self, key: str) -> float:
        try:
            value = float(self.values[key])
        except ValueError:
            value = 0.0
        if not 0 < value < math.inf:
            raise UserError(f"{key}={self.values[key]}: expected a number above 0")
        return value


@app.command()
def encode(words: Given = None) -> None:
    """Embed a stored corpus or queries table with any student.

    model=FOLDER|HUB-ID texts=TABLE-FOLDER kind=corpus|queries out=FOLDER, and any of the student's settings (pooling=, ...).
    """
    from data.settings import Student

    with exit_codes():
        student_keys = {name: "" for name in Student.model_fields if name != "model"}
        optional = {**student_keys, "precision": "auto", "device": "cpu", "batch_tokens": "", "threads": "0"}
        given = _Words.of(words, required=("model", "texts", "kind", "out"), optional=optional)
        for key, valid in (("device", ("cpu", "cuda")), ("precision", ("auto", "fp32", "bf16", "fp16"))):
            if given[key] not in valid:
                raise UserError(f"{key}={given[key]}: expected {' or '.join(valid)}")
        from data import config
        from retrieval.batching import DEFAULT_BATCH_TOKENS
        from retrieval.encode import encode_table

        settings = {"model": given["model"], **{name: given[name] for name in student_keys if given[name]}}
        encode_table(
            config.build(Student, settings),
            given.path("texts"),
            given.path("out"),
            kind=given["kind"],
            precision=given["precision"],
            device=given["device"],
            batch_tokens=given.number("batch_tokens") if given["batch_tokens"] else DEFAULT_BATCH_TOKENS[given["device"]],
            threads=given.number("threads"),
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
        print(f"embeddings in {given['out']}")


@app.command()
def search(words: Given = None) -> None:
    """Exact search over stored embeddings, a TREC run out.

    corpus=FOLDER queries=FOLDER out=RUN [depth=1000] [memory_gb=4] [qrels=, split=]
    """
    with exit_codes():
        optional = {**_SEARCHING, "qrels": "", "split": "test"}
        given = _Words.of(words, required=("corpus", "queries", "out"), optional=optional)
        only = set(_qrels(given)) if given["qrels"] else None
        searched = _search(given, only=only)
        print(f"{searched:,} queries searched, run in {given['out']}")


_SEARCHING = {"depth": "1000", "threads": "0", "memory_gb": "4"}


def _search(given: _Words, *, only: set[str] | None) -> int:
    import os

    from retrieval.embedding_table import EmbeddingTable, same_student
    from retrieval.search import Searcher
    from retrieval.search_run import search_to_run

    depth, threads = given.number("depth"), given.number("threads") or os.cpu_count() or 1
    queries, corpus = EmbeddingTable(given.path("queries"), "query_id"), EmbeddingTable(given.path("corpus"), "doc_id")
    if not same_student(queries, corpus):
        print("note: queries and corpus were embedded by different models or poolings; meant only for paired encoders", file=sys.stderr)
    searcher = Searcher(corpus, k=depth, memory_gb=given.positive("memory_gb"), threads=threads)
    return search_to_run(searcher, queries, given.path("out"), only=only, report=_Eta("queries"))


class _Eta:
    """Prints how far a work is, and how long the rest will take, to standard error."""

    def __init__(self, unit: str) -> None:
        self._unit, self._began = unit, time.perf_counter()
        self._first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        if self._first is None:
            self._first = done
        elif done > self._first:
            left = (time.perf_counter() - self._began) * (total - done) / (done - self._first)
            print(f"{done:,} of {total:,} {self._unit}, about {left:.0f} s left", file=sys.stderr, flush=True)


def _qrels(given: _Words) -> Any:
    from retrieval.qrels import read_qrels

    return read_qrels(given.path("qrels"), split=given["split"])


@app.command()
def evaluate(words: Given = None) -> None:
    """Metrics of a run, or of stored embeddings.

    qrels=FILE|TABLE run=FILE, or corpus=FOLDER queries=FOLDER out=RUN; [per_query=JSON] [split=test] [depth=1000] [relevant_from=1]
    """
    with exit_codes():
        searched = {"corpus": "", "queries": "", "out": ""}
        optional = {"run": "", **searched, "per_query": "", "split": "test", **_SEARCHING, "relevant_from": "1"}
        given = _Words.of(words, required=("qrels",), optional=optional)
        surplus = [f"{name}=" for name in searched if given["run"] and given[name]]
        if surplus:
            raise UserError(f"run= is evaluated as it is: leave out {', '.join(surplus)} (per_query=FILE writes the metrics of each query)")
        qrels = _qrels(given)
        if not given["run"]:
            if not all(given[name] for name in searched):
                raise UserError("say what to evaluate: run=FILE, or corpus=FOLDER queries=FOLDER out=RUN")
            _search(given, only=set(qrels))
        from data.trec import read_run

        evaluation = _evaluated(qrels, read_run(given.path("run" if given["run"] else "out")), given)
        if given["per_query"]:
            from data.shards import atomic_write

            atomic_write(given.path("per_query"), json.dumps(evaluation.per_query(), indent=1, sort_keys=True).encode())
        _print_evaluation(evaluation)


def _print_evaluation(evaluation: Any) -> None:
    means = {name: evaluation.mean(name) for name in evaluation.values}
    counts = {"queries": len(evaluation.query_ids), "without_results": evaluation.without_results, "unjudged": evaluation.unjudged}
    _print_grid(["metric", "mean"], [[name, f"{value:.4f}"] for name, value in means.items()])
    if 0 < evaluation.depth < 1000:
        print(f"the longest list has {evaluation.depth:,} passages: a recall at a deeper cutoff looks no further")
    print("{queries:,} judged queries, {without_results:,} without results; {unjudged:,} queries of the run unjudged".format(**counts))
    print(json.dumps({**{name: round(value, 6) for name, value in means.items()}, **counts}))


def _print_grid(columns: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid

    grid = Grid(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        grid.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 120).print(grid)


def _evaluated(qrels: Any, run: Any, given: _Words) -> Any:
    from retrieval.metrics import evaluate as evaluate_run

    try:
        return evaluate_run(qrels, run, relevant_from=given.number("relevant_from"))
    except ValueError as error:
        raise UserError(f"{given['qrels']}: {error}") from error


@app.command()
def compare(words: Given = None) -> None:
    """Two runs side by side, with a paired randomisation test.  before=RUN after=RUN qrels=FILE|TABLE [split=test] [seed=0]"""
    with exit_codes():
        optional = {"split": "test", "seed": "0", "relevant_from": "1", "permutations": "100000"}
        given = _Words.of(words, required=("before", "after", "qrels"), optional=optional)
        from data.trec import read_run
        from retrieval.metrics import compare as compare_runs

        permutations = given.number("permutations")
        if not permutations:
            raise UserError("permutations=0: expected at least 1")
        qrels = _qrels(given)
        before, after = (_evaluated(qrels, read_run(given.path(name)), given) for name in ("before", "after"))
        compared = compare_runs(before, after, seed=given.number("seed"), permutations=permutations)
        _print_grid(
            ["metric", "before", "after", "difference", "p-value", "better / worse / same"],
            [
                [
                    row.metric, f"{row.before:.4f}", f"{row.after:.4f}", f"{row.after - row.before:+.4f}",
                    _p(row.p_value), f"{row.wins} / {row.losses} / {row.ties}",
                ]
                for row in compared
            ],
        )  # fmt: skip
        print(f"{len(before.query_ids):,} judged queries; without results: {before.without_results:,} and {after.without_results:,}")
        print("p-values of a two-sided paired randomisation test over queries")
        print(json.dumps({row.metric: _rounded(row) for row in compared} | {"queries": len(before.query_ids)}))


def _rounded(row: Any) -> dict[str, Any]:
    values = {"before": round(row.before, 6), "after": round(row.after, 6), "difference": round(row.after - row.before, 6)}
    return {**values, "p": row.p_value, "wins": row.wins, "losses": row.losses, "ties": row.ties}


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.1e}"


def main() -> None:
    """Console script `retrieve`."""
    app()
