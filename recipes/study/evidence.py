"""What the results say of each recipe, as `prep advise` reads it.

    python recipes/study/evidence.py [--results recipes/study/results] [--out pipeline/advice/evidence.json]

The part `study` of the file is written anew, the rest stays. A recipe counts where all its seeds are there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cells import Results
from rows import METRIC, OF_ZERO_SHOT, Row, recipes_with_all_seeds, rows_of
from study import HERE, Plan

from data.tables.shards import atomic_write
from pipeline.advice.evidence import BASE, FILE, RECIPES, Place, Studied, choose, known_evidence, studied_of

SOURCE = "docs/study.md"
NO_RECIPE = "none"  # the teacher's order of the student's passages is no better than the student's own
KNOWN_BEFORE = ("medquad", "scifact")  # had results when the weights of the advice were set: for these it is no test of them


def of_results(results: Results, plan: Plan) -> list[dict[str, Any]]:
    """Of each collection that has what `prep advise` found, and BASE, an entry of the file."""
    found = []
    for name in plan.sizes["collections"]:
        rows, advice = rows_of(name, results, plan), results.advice(name)
        recipes = {recipe: _measured(row, rows["start"]) for recipe, row in recipes_with_all_seeds(rows).items() if recipe in RECIPES}
        if advice is not None and rows["start"].cells and BASE in recipes:
            found.append({"collection": name, "place": asdict(_place(advice["facts"])), "recipes": recipes, "source": SOURCE})
    return found


def of_others(collection: str, results: Results, plan: Plan) -> list[Studied]:
    """All evidence but that of one collection: what its advice would be were it a new one."""
    earlier = [one for one in known_evidence() if one.source != SOURCE]
    return [one for one in (*map(studied_of, of_results(results, plan)), *earlier) if one.collection != collection]


def advised(collection: str, results: Results, plan: Plan) -> str | None:
    """The recipe that `prep advise` names for a collection by the evidence of all others, NO_RECIPE, or None where it was not asked.

    What it looks at was there before anything was trained.
    """
    known = results.advice(collection)
    if known is None:
        return None
    headroom = known["facts"]["headroom"]
    if headroom["teacher"] <= headroom["student"]:
        return NO_RECIPE
    return choose(_place(known["facts"]), of_others(collection, results, plan)).recipe


def _place(facts: Mapping[str, Any]) -> Place:
    return Place(facts["lists"]["sure"], round(facts["lists"]["above"]["negative"], 4), facts["queries"])


def _measured(row: Row, start: Row) -> dict[str, float]:
    first = next(iter(row.cells.values()))
    measured = {"gain": _gain(row, start, METRIC, "test"), "rate": float(first["rate"])}
    if len(row.values(OF_ZERO_SHOT, "zero_shot")) and len(start.values(OF_ZERO_SHOT, "zero_shot")):
        measured["zero_shot"] = _gain(row, start, OF_ZERO_SHOT, "zero_shot")
    return measured


def _gain(row: Row, start: Row, metric: str, entry: str) -> float:
    return round(float(row.values(metric, entry).mean() - start.values(metric, entry).mean()), 4)


def main(words: list[str]) -> int:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--settings", type=Path, default=HERE)
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args(words)
    content = json.loads(FILE.read_text(encoding="utf-8"))
    content["study"] = of_results(Results(args.results), Plan(args.settings))
    atomic_write(args.out, (json.dumps(content, indent=1, sort_keys=True) + "\n").encode())
    print(f"{args.out} is written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
