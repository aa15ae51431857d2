"""What `retrieve` prints: grids for people, and on the last line JSON for programs."""

from __future__ import annotations

import json
import sys
from typing import Any


def print_grid(columns: list[str], rows: list[list[str]]) -> None:
    """A table with a line under its head."""
    from rich import box
    from rich.console import Console
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(*columns, box=box.SIMPLE_HEAD)
    for row in rows:
        grid.add_row(*map(Text, row))
    Console(width=None if sys.stdout.isatty() else 120).print(grid)


def print_evaluation(evaluation: Any) -> None:
    """The means of an `Evaluation`, and what they were taken over."""
    means = {name: evaluation.mean(name) for name in evaluation.values}
    counts = {"queries": len(evaluation.query_ids), "without_results": evaluation.without_results, "unjudged": evaluation.unjudged}
    print_grid(["metric", "mean"], [[name, f"{value:.4f}"] for name, value in means.items()])
    if 0 < evaluation.depth < 1000:
        print(f"the longest list has {evaluation.depth:,} passages: a recall at a deeper cutoff looks no further")
    print("{queries:,} judged queries, {without_results:,} without results; {unjudged:,} queries of the run unjudged".format(**counts))
    _print_own(evaluation)
    counts["identical_ids_ignored"] = evaluation.own_left_out
    print(json.dumps({**{name: round(value, 6) for name, value in means.items()}, **counts}))


def _print_own(evaluation: Any) -> None:
    """What became of hits with the query's own id, where there are any."""
    if evaluation.own_left_out:
        print(
            f"{evaluation.own_left_out:,} queries find a passage with their own id: it is left out, as BEIR does "
            "(ignore_identical_ids=false counts it)"
        )
    elif evaluation.own_hits:
        print(
            f"{evaluation.own_hits:,} queries find a passage with their own id: it counts (ignore_identical_ids=true leaves it out, "
            "as BEIR does)"
        )


def print_comparison(compared: list[Any], before: Any, after: Any) -> None:
    """The `Comparison` of each metric, of two `Evaluation`s."""
    print_grid(
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
    _print_own(max(before, after, key=lambda evaluation: evaluation.own_hits))
    print("p-values of a two-sided paired randomisation test over queries")
    print(json.dumps({row.metric: _rounded(row) for row in compared} | {"queries": len(before.query_ids)}))


def _rounded(row: Any) -> dict[str, Any]:
    values = {"before": round(row.before, 6), "after": round(row.after, 6), "difference": round(row.after - row.before, 6)}
    return {**values, "p": row.p_value, "wins": row.wins, "losses": row.losses, "ties": row.ties}


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 0.0001 else f"{value:.1e}"
