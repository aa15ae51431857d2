"""What `retrieve` prints: grids for people, and on the last line JSON for programs."""

from __future__ import annotations

import json
import sys

from rich import box
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from retrieval.evaluation.metrics import Comparison, Evaluation
from retrieval.evaluation.results import Differences, Results


def _print_grid(columns: list[str], rows: list[list[str]]) -> None:
    grid = Grid(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        grid.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 120).print(grid)


def print_evaluation(evaluation: Evaluation) -> None:
    """The means, and what they were taken over."""
    means = {name: evaluation.mean(name) for name in evaluation.values}
    counts = {"queries": len(evaluation.query_ids), "without_results": evaluation.without_results, "unjudged": evaluation.unjudged}
    _print_grid(["metric", "mean"], [[name, f"{value:.4f}"] for name, value in means.items()])
    if 0 < evaluation.depth < 1000:
        print(f"the longest list has {evaluation.depth:,} passages: a recall at a deeper cutoff looks no further")
    print("{queries:,} judged queries, {without_results:,} without results; {unjudged:,} queries of the run unjudged".format(**counts))
    _print_own(evaluation)
    counts["identical_ids_ignored"] = evaluation.own_discarded
    print(json.dumps({**{name: round(value, 6) for name, value in means.items()}, **counts}))


def _print_own(evaluation: Evaluation) -> None:
    """What became of hits with the query's own id, where there are any."""
    what = "it counts (ignore_identical_ids=true leaves it out, as BEIR does)"
    if evaluation.own_discarded:
        what = "it is left out, as BEIR does (ignore_identical_ids=false counts it)"
    if evaluation.own_hits:
        print(f"{evaluation.own_discarded or evaluation.own_hits:,} queries find a passage with their own id: {what}")


def print_results(results: Results) -> None:
    """A row for each collection and group, the last one their mean."""
    names = list(results.collections[0].metrics)
    rows = [[one.name, one.split, f"{one.queries:,}", *_cells(one.metrics, names)] for one in results.collections]
    rows += [[f"{name} (mean)", "", "", *_cells(metrics, names)] for name, metrics in results.groups().items()]
    rows.append(["mean", "", "", *_cells(results.mean(), names)])
    _print_grid(["collection", "split", "queries", *names], rows)
    for one in results.collections:
        if one.without_results:
            print(f"{one.name}: {one.without_results:,} judged queries without results count with 0")
        if one.identical_ids_ignored:
            print(f"{one.name}: a passage with the query's own id is left out for {one.identical_ids_ignored:,} queries, as BEIR does")
    of_each = {one.name: _rounded(one.metrics) for one in results.collections}
    print(json.dumps({"mean": _rounded(results.mean()), "collections": of_each}))


def _cells(metrics: dict[str, float], names: list[str]) -> list[str]:
    return [f"{metrics[name]:.4f}" for name in names]


def _rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 6) for name, value in metrics.items()}


def print_differences(compared: list[Differences]) -> None:
    """Each metric of two evaluations over collections side by side."""
    for one in compared:
        columns = [f"{one.metric} of", "before", "after", "difference", "p-value", "better / worse / same"]
        _print_grid(columns, [_row_of(row)[0] for row in one.rows])
    if compared[0].left_out:
        print(f"left out, since one of the two has them alone: {', '.join(compared[0].left_out)}")
    print("p-values of a two-sided paired randomisation test over queries; in the mean each collection has the same weight")
    print(json.dumps({one.metric: {row.metric: _row_of(row)[1] for row in one.rows} for one in compared}))


def _row_of(row: Comparison) -> tuple[list[str], dict[str, float]]:
    """Two figures side by side, for people and for programs."""
    difference, outcomes = row.after - row.before, f"{row.wins} / {row.losses} / {row.ties}"
    means = {"before": round(row.before, 6), "after": round(row.after, 6), "difference": round(difference, 6)}
    figures = {**means, "p": row.p_value, "p_floor": row.p_floor, "wins": row.wins, "losses": row.losses, "ties": row.ties}
    return [row.metric, f"{row.before:.4f}", f"{row.after:.4f}", f"{difference:+.4f}", row.p_said, outcomes], figures


def print_comparison(compared: list[Comparison], before: Evaluation, after: Evaluation) -> None:
    """Each metric of two evaluations side by side."""
    both = [_row_of(row) for row in compared]
    rows, figures = [cells for cells, _ in both], {row.metric: of_row for row, (_, of_row) in zip(compared, both, strict=True)}
    _print_grid(["metric", "before", "after", "difference", "p-value", "better / worse / same"], rows)
    print(f"{len(before.query_ids):,} judged queries; without results: {before.without_results:,} and {after.without_results:,}")
    _print_own(max(before, after, key=lambda evaluation: evaluation.own_hits))
    print("p-values of a two-sided paired randomisation test over queries")
    print(json.dumps({**figures, "queries": len(before.query_ids)}))
