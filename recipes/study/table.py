"""Write docs/study.md from the results.

    python recipes/study/table.py [--results recipes/study/results] [--out docs/study.md]

Nothing is written where there are no results. Cells that are missing, or of other settings than the rest of their method, are shown as
missing. See effects.py for what the intervals are.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

import numpy as np
from cells import Results
from effects import Effect, effect, holm
from evidence import KNOWN_BEFORE, NO_RECIPE, advised
from methods import METHODS
from rows import METRIC, OF_ZERO_SHOT, SECOND, Row, recipes_with_all_seeds, rows_of
from study import HERE, Plan
from summary import in_short

BASES = {"start": "start", "hard_kd": "Hard KD"}
MISSING = "missing"


def comparisons(rows: dict[str, Row]) -> dict[tuple[str, str], tuple[Effect, float]]:
    """(method, base) -> effect on the test questions and its p-value by Holm: all of a collection are one family."""
    pairs = [
        (name, base)
        for base in BASES
        for name in rows
        if name not in (base, "start") and METHODS[name].longer == 1 and rows[name].cells and rows[base].cells
    ]
    effects = [
        effect(rows[name].values(METRIC), rows[base].values(METRIC), without_seeds=not METHODS[base].trainings) for name, base in pairs
    ]
    return {pair: (one, adjusted) for pair, one, adjusted in zip(pairs, effects, holm([one.p_value for one in effects]), strict=True)}


def shown(compared: tuple[Effect, float] | None) -> str:
    """Difference, interval and p-value as a cell of the table."""
    if compared is None:
        return MISSING
    one, adjusted = compared
    if math.isnan(one.low):
        return f"{one.difference:+.4f} (one seed)"
    return f"{one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}], p {_p(adjusted)}"


def _p(value: float) -> str:
    return "< 0.0001" if value < 1e-4 else f"{value:.2g}"


def zero_shot(row: Row, start: Row) -> str:
    """The first seed's mean, and its difference to the start with an interval over the questions alone."""
    values = row.values(OF_ZERO_SHOT, "zero_shot")
    if not len(values):
        return MISSING
    base = start.values(OF_ZERO_SHOT, "zero_shot")
    if row is start or base.shape != values[:1].shape:
        return f"{values[0].mean():.4f}"
    # Both are taken as they are, without the chance in a training: two equal rows have no spread between seeds.
    one = effect(np.repeat(values[:1], 2, 0), base, without_seeds=True)
    return f"{values[0].mean():.4f}, {one.difference:+.4f} [{one.low:+.4f}, {one.high:+.4f}]"


def table(rows: dict[str, Row]) -> list[str]:
    """The lines of a collection's table."""
    compared = comparisons(rows)
    heads = [
        "method",
        "seeds",
        "rate",
        f"test {METRIC}",
        f"test {SECOND}",
        "against the start",
        "against Hard KD",
        f"zero-shot {OF_ZERO_SHOT}",
    ]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for name, row in rows.items():
        title = METHODS[name].title
        if not row.cells:
            lines.append(f"| {title} | {MISSING} |" + " |" * (len(heads) - 2))
            continue
        seeds = f"{len(row.cells)}" + (f", {MISSING}: {', '.join(map(str, row.missing))}" if row.missing else "")
        first = next(iter(row.cells.values()))
        against = ["" if name in ("start", base) or METHODS[name].longer > 1 else shown(compared.get((name, base))) for base in BASES]
        cells = [title, seeds, first.get("rate", ""), row.mean(METRIC), row.mean(SECOND), *against, zero_shot(row, rows["start"])]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def of_advice(rows: dict[str, Row], asked: str | None) -> str:
    """How far the recipe that is advised is from the best; a line of the page."""
    if asked is None:
        return f"`prep advise`: {MISSING}."
    line = "`prep advise`, by what it found before anything was trained and the other collections' results alone:"
    if asked == NO_RECIPE:
        return f"{line} no recipe, since the teacher is no better than the student."
    line = f"{line} {METHODS[asked].title}."
    whole = recipes_with_all_seeds(rows)
    if asked not in whole:
        return f"{line} It is not measured yet."
    best = max(whole, key=lambda name: whole[name].values(METRIC).mean())
    if best == asked:
        return f"{line} " + (
            f"That is the best of {len(whole)} methods that have all seeds."
            if whole.keys() - {asked}
            else "No other has all its seeds yet."
        )
    one = effect(whole[best].values(METRIC), whole[asked].values(METRIC))
    near = "within" if one.difference <= one.error else "more than"
    return (
        f"{line} The best of {len(whole)} methods that have all seeds, {METHODS[best].title}, is {one.difference:.4f} above it, {near} one "
        f"standard error ({one.error:.4f})."
    )


def _of_rules(name: str) -> str:
    """What must be known of the advice for a collection."""
    return " Its weights were set when these results were known, so this is no test of them." if name in KNOWN_BEFORE else ""


def page(results: Results, plan: Plan) -> str:
    """The whole page. Raises ValueError where there are no results."""
    found = {name: rows_of(name, results, plan) for name in plan.sizes["collections"]}
    found_any = {name: rows for name, rows in found.items() if any(row.cells for row in rows.values())}
    if not found_any:
        raise ValueError(f"{results.folder} holds no results: run `python recipes/study/run.py COLLECTIONS`")
    asked = {name: advised(name, results, plan) for name in found}
    budgets = {name: known for name in found if (known := results.budget(name))}
    sizes, lines = plan.sizes, ["# Does the method help here?\n", *in_short(found, asked, budgets), _head(plan)]
    for name, rows in found.items():
        lines.append(f"## {name}\n")
        if name not in found_any:
            lines.append(f"{MISSING.capitalize()}: not run yet.\n")
            continue
        cells = [cell for row in rows.values() for cell in row.cells.values()]
        own = {key: value for key, value in sizes["collections"][name].items() if key != "folder"}
        passages = "all passages" if own["passages"] is None else f"{own['passages']:,} passages"
        counts = f"{own['train']} training and {own['dev']} dev questions, {cells[0]['test']['questions']:,} test questions, {passages}"
        lines.append(f"{counts}. {_time(rows)}.\n")
        lines.append(f"{of_advice(rows, asked[name])}{_of_rules(name)}\n")
        lines += [*table(rows), ""]
        lines += [
            f"- {METHODS[m].title}, seed {s}: {cell['note']}."
            for m, row in rows.items()
            for s, cell in row.cells.items()
            if cell.get("note")
        ]
        if len(versions := {cell["version"] for cell in cells}) > 1:
            lines.append(f"- Cells are of several versions: {', '.join(sorted(versions))}.")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _time(rows: dict[str, Row]) -> str:
    """Hours that the results took: tries and cells, without the data that they share."""
    cells = [cell for row in rows.values() for cell in row.cells.values()]
    seconds = sum(sum(cell["seconds"].values()) for cell in cells)
    for row in rows.values():
        first = next((cell for cell in row.cells.values() if not cell.get("rate_of")), {})
        # All cells name the tries. The one that was chosen is the first seed's training.
        seconds += sum(one["seconds"] for one in first.get("tries", []) if one["rate"] != first["rate"])
    return f"Trained and judged in {seconds / 3600:.1f} hours of one processor core"


def _head(plan: Plan) -> str:
    sizes = plan.sizes
    return f"""## How it was measured

All methods from the same student and the same teacher, on the same training questions: {sizes["steps"]} steps of
{plan.file["train"]["batch_queries"]} questions each, {len(sizes["seeds"])} seeds. This page is written by a program from the results in
`recipes/study/results`:

```bash
python recipes/demo/prepare.py runs/demo                       # the teacher and InsuranceQA
python recipes/study/student.py runs/demo/models/student runs/study/models/student
python recipes/study/run.py COLLECTIONS --only medquad --hours 1.5    # again until nothing is missing; --plan tells the hours
python recipes/study/table.py
python recipes/study/evidence.py                               # what `prep advise` reads
```

- **Settings.** Each method has {len(sizes["rates"])} tries, the peak rates {", ".join(map(str, sizes["rates"]))}, with the first seed.
  Tries of Hard KD on SciFact and MedQuAD laid this grid, so it may fit others less.
  The best by MRR@10 on dev is taken. Ablations keep the rate of what they are ablations of. The test questions are searched
  afterwards, in the whole collection as named.
- **Seeds** decide order and dropout. The draw of negatives and masks is one for all, so nothing is scored twice; the chance in it is in
  no interval.
- **Differences** are of test MRR@10, with a 95 % interval over questions and seeds: mean squares of the two-way random model, degrees of
  freedom by Satterthwaite (`recipes/study/effects.py`). p-values are by Holm, all comparisons of a collection being one family.
- **Zero-shot** is {sizes["zero_shot"]["name"] if sizes.get("zero_shot") else "not measured"}, with the first seed; its interval is over the
  questions alone. It went with the peak rate more than with the method, so compare rows of the same rate.
- **Advice.** `prep advise` names a recipe by the results of the other collections alone, see [advice](advice.md). Rules that were replaced
  had named ADAM with p+ for each collection, before it was trained on.
- **sentence-transformers** has the processor time that one run of ADAM took, training data included (`recipes/study/peer.py`). Against it
  stands what dev chooses of the recipes whose data are in that time, and of Hard KD with {METHODS["hard_kd_longer"].longer} times the
  steps, which has no bill of dark examples. That row is compared with nothing else.
"""


def main(words: list[str]) -> int:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--settings", type=Path, default=HERE)
    parser.add_argument("--out", type=Path, default=Path("docs/study.md"))
    args = parser.parse_args(words)
    try:
        text = page(Results(args.results), Plan(args.settings))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    args.out.write_text(text, encoding="utf-8")
    print(f"{args.out} is written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
