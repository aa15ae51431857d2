"""Run what is missing of the study, until the time is up. From the repository's root, after demo/prepare.py and study/student.py:

    python recipes/study/run.py COLLECTIONS [--only medquad,scifact] [--methods adam,hard_kd] [--hours 1.5] [--plan]

COLLECTIONS is a folder with medquad, scifact, ... in BEIR form, each a folder or NAME.tar.gz. The results are small files in
recipes/study/results, to be committed as they come, and with them the teacher's logits, which no later sitting pays again; models and
stores lie in runs/study and may be lost: what has a result is not run again. The same command goes on where the last one stopped, was
killed, or ended on another machine; commands with other collections may run at the same time. `python recipes/study/table.py` writes the
page.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import median

from cells import Results
from methods import METHODS
from sitting import Sitting, TimeUp
from study import HERE, CollectionStudy, NotNow, Plan

from data.errors import EXIT_COMPLETE, EXIT_INTERRUPTED, UserError

# Processor seconds without bf16, used until cells say more: a training, an evaluation of a student, the data of a collection.
FIRST_GUESS = {"train": 240.0, "evaluate": 200.0, "data": 3000.0}


def main(words: list[str]) -> int:
    """Returns the exit code: 0, also where the time was up; 75 where it was interrupted."""
    args = _arguments(words)
    try:
        return _run(args)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted; the same command goes on")
        return EXIT_INTERRUPTED


def _arguments(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("collections", type=Path, help="folder of the collections")
    parser.add_argument("--only", default="", help="collections, with commas; all unless given")
    parser.add_argument("--methods", default="", help="methods, with commas; all unless given")
    parser.add_argument("--hours", type=float, default=None, help="length of the sitting; to the end unless given")
    parser.add_argument("--plan", action="store_true", help="only say what is missing, and about how long it takes")
    parser.add_argument("--settings", type=Path, default=HERE, help="folder of sizes.yaml and study.yaml")
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the results")
    parser.add_argument("--work", type=Path, default=Path("runs/study"), help="folder of stores and models")
    return parser.parse_args(words)


def _run(args: argparse.Namespace) -> int:
    plan, results = Plan(args.settings), Results(args.results)
    names = _among(args.only, list(plan.sizes["collections"]), "--only")
    methods = _runnable(_among(args.methods, list(METHODS), "--methods"), plan)
    sitting = Sitting(args.hours, args.work / f"commands-{args.only or 'all'}.log")
    studies = [_opened(name, args, plan, results, sitting) for name in names]
    for study in studies:
        if stale := study.stale():
            print(f"{study.name}: {len(stale)} cells are of other settings or models, and are run again: {', '.join(stale)}")
    hours = sum(_told(study, methods, plan, results) for study in studies)
    print(f"together about {hours:.1f} hours" + (f"; this sitting ends after {args.hours:g}" if args.hours else ""))
    if args.plan:
        return EXIT_COMPLETE
    print(f"what the commands say: {sitting.log}")
    store, logits = f"store={args.work / 'store'}", args.results / "logits"
    try:
        if logits.is_dir():
            sitting.command("prep", "cache", "import", str(logits), store, "conflicts=keep")
        for study in studies:
            study.advise()
            for method, seed in _missing(study, methods, plan):
                _make(study, method, seed)
    except TimeUp:
        left = sum(len(_missing(study, methods, plan)) for study in studies)
        print(f"the time is up; {left} cells are missing, the same command goes on")
    finally:
        if (args.work / "store" / "teacher_logits").is_dir():
            Sitting(None, sitting.log).command("prep", "cache", "export", store, f"out={logits}")
    return EXIT_COMPLETE


def _opened(name: str, args: argparse.Namespace, plan: Plan, results: Results, sitting: Sitting) -> CollectionStudy:
    return CollectionStudy(
        name, source=args.collections, plan=plan, results=results, work=args.work, sitting=sitting, say=lambda line: print(line, flush=True)
    )


def _make(study: CollectionStudy, method: str, seed: int) -> None:
    try:
        study.make(method, seed)
    except NotNow as reason:
        print(f"{study.name}, {METHODS[method].title}, seed {seed} is left out: {reason}")


def _among(text: str, known: list[str], option: str) -> list[str]:
    """The names in `text`, in the order of `known`; all where it is empty."""
    asked = [name for name in text.split(",") if name]
    if wrong := [name for name in asked if name not in known]:
        raise UserError(f"{option}: there is no {', '.join(wrong)}; expected some of {', '.join(known)}")
    return [name for name in known if not asked or name in asked]


def _runnable(methods: list[str], plan: Plan) -> list[str]:
    """Those that the installed version knows; of the others it is said why they are left out."""
    kept = []
    for name in methods:
        if reason := plan.reason_not(name):
            print(f"{METHODS[name].title} is left out: the installed version cannot run it ({reason})")
        else:
            kept.append(name)
    return kept


def _missing(study: CollectionStudy, methods: list[str], plan: Plan) -> list[tuple[str, int]]:
    """Cells in the order of work: the first seed of all methods, then the second."""
    cells = [(seed, place, name) for place, name in enumerate(methods) for seed in plan.seeds(METHODS[name])]
    rank = {seed: place for place, seed in enumerate(plan.sizes["seeds"])}
    ordered = sorted(cells, key=lambda cell: (rank.get(cell[0], 0), cell[1]))
    return [(name, seed) for seed, _, name in ordered if not study.is_there(name, seed)]


def _told(study: CollectionStudy, methods: list[str], plan: Plan, results: Results) -> float:
    """Say what is missing of a collection; returns the hours."""
    missing = _missing(study, methods, plan)
    measured = [cell for name in METHODS for seed in plan.sizes["seeds"] if (cell := results.cell(study.name, name, seed))]
    guess = {key: _measured([cell["seconds"].get(key) for cell in measured], first) for key, first in FIRST_GUESS.items()}
    tries = 0
    seconds = 0.0
    for name in dict.fromkeys(name for name, _ in missing):
        how = METHODS[name]
        own = [cell["seconds"]["train"] for cell in measured if cell["method"] == name and "train" in cell["seconds"]]
        training = _measured(own, guess["train"])
        cells = sum(method == name for method, _ in missing)
        if not how.trainings and not how.peer:
            continue
        left = 0 if how.rate_of else len(plan.rates) - len(study.tried(name))
        tries += left
        seconds += training * (left + cells - (left > 0))  # the best try of the first seed is its cell's training
    seconds += guess["evaluate"] * len(missing)
    if missing and not measured:
        seconds += FIRST_GUESS["data"]
    hours = seconds / 3600 / plan.sizes["threads"]
    print(f"{study.name}: {len(missing)} cells and {tries} tries on dev are missing, about {hours:.1f} hours")
    return hours


def _measured(seconds: list[float | None], first: float) -> float:
    known = [value for value in seconds if value is not None]
    return median(known) if known else first


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
