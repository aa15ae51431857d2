"""What there is of a method on a collection: the rows of the page."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from cells import Results, unpacked
from effects import Values
from methods import METHODS
from study import Plan

METRIC, SECOND, OF_ZERO_SHOT = "MRR@10", "nDCG@10", "nDCG@10"


@dataclass(frozen=True)
class Row:
    """What there is of a method on a collection."""

    cells: dict[int, dict[str, Any]]
    missing: list[int]

    def values(self, metric: str, entry: str = "test") -> Values:
        """[seeds, questions]."""
        return np.array([unpacked(cell[entry]["metrics"][metric]["values"]) for cell in self.cells.values() if entry in cell])

    def mean(self, metric: str) -> str:
        """Over the seeds, and their standard deviation."""
        means = [cell["test"]["metrics"][metric]["mean"] for cell in self.cells.values()]
        return f"{np.mean(means):.4f}" + (f" ± {np.std(means, ddof=1):.4f}" if len(means) > 1 else "")


def recipes_with_all_seeds(rows: dict[str, Row]) -> dict[str, Row]:
    """Those of what this project offers that can be compared: neither the start, nor an ablation, nor a peer, nor one of more steps."""
    return {name: row for name, row in offers_with_all_seeds(rows).items() if METHODS[name].longer == 1}


def offers_with_all_seeds(rows: dict[str, Row]) -> dict[str, Row]:
    """The same with those of more steps."""
    return {name: row for name, row in rows.items() if METHODS[name].trainings and not METHODS[name].ablation and not row.missing}


def rows_of(collection: str, results: Results, plan: Plan) -> dict[str, Row]:
    """Of all methods. Of cells of several settings those of most cells count, and of the questions those of most methods."""
    found = {
        name: {seed: cell for seed in plan.seeds(how) if (cell := results.cell(collection, name, seed))} for name, how in METHODS.items()
    }
    questions = _most([cell["test"]["ids"] for cells in found.values() for cell in cells.values()])
    rows = {}
    for name, cells in found.items():
        settings = _most([cell["settings"] for cell in cells.values()])
        kept = {seed: cell for seed, cell in cells.items() if cell["settings"] == settings and cell["test"]["ids"] == questions}
        rows[name] = Row(kept, [seed for seed in plan.seeds(METHODS[name]) if seed not in kept])
    return rows


def _most(values: list[str]) -> str | None:
    return Counter(values).most_common(1)[0][0] if values else None
