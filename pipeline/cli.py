"""The command `prep`: run, phases, plan, advise, status, path, inspect, report, import, export and cache. All arguments are `key=value`."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from data.command import exit_codes
from data.config.arguments import Args as OwnArgs
from data.config.arguments import path_among
from data.config.fields import parse_arguments, unknown_key
from data.config.settings import Experiment, load, store_given
from data.errors import UserError
from data.files.outputs import is_standard_output
from data.files.paths import expanded
from data.remote.cache import output_file
from data.store.paths import address_of, shown
from data.store.place import open_place
from data.terminal import printable

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None, help=__doc__)

Args = Annotated[
    list[str] | None, typer.Argument(metavar="config=FILE [phase=NAME] [key=value ...]", help="overrides are dotted.key=value")
]


def _experiment(args: list[str] | None, **own: str) -> tuple[Experiment, OwnArgs]:
    """The experiment, and the command's own args (with their defaults) taken out of the overrides."""
    parsed = parse_arguments(args or [])
    taken = OwnArgs({name: parsed.pop(name, default) for name, default in own.items()})
    return load(parsed), taken


@app.command()
def run(args: Args = None) -> None:
    """Run stages in order, only what is missing or stale.  [stage=NAME|all] [part=K/N] [claims=on|off]

    Jobs on one store share what there is to do: what one does it claims, and what a dead one had claimed another does. claims=off does all
    of it alone. part=K/N, K from 0 on, builds the shards whose number leaves the remainder K when it is divided by N, for job arrays.
    """
    with exit_codes():
        experiment, own = _experiment(args, stage="all", part="", claims="on")
        from pipeline.run import run as run_stages
        from pipeline.sharing.parts import Part

        part, claims = Part.parse(own["part"]), own.one_of("claims", "on", "off") == "on"
        if part and not claims:
            raise UserError(f"part={own['part']} claims=off: parts share work that comes before shards by claims; leave claims=off out")
        built = run_stages(experiment, stage=own["stage"], say=_say, claims=claims, part=part)
        _say(f"done: {built} shards built" if built else "done: nothing to do")


@app.command()
def phases(args: Args = None) -> None:
    """Run the phases of a file in order, each with its training and evaluation; finished ones are passed over.  [phases=NAME,NAME]"""
    with exit_codes():
        parsed = parse_arguments(args or [])
        names = [name.strip() for name in parsed.pop("phases", "").split(",") if name.strip()]
        from pipeline.phases import run_phases

        raise typer.Exit(run_phases(parsed, names=names, say=_say))


def _say(line: str) -> None:
    print(printable(line), flush=True)


@app.command()
def plan(args: Args = None) -> None:
    """What `run` would build, why each shard is stale, and with stage=teacher_scores or pools what it costs.  [stage=NAME|all] [gpus=N]"""
    with exit_codes():
        experiment, own = _experiment(args, stage="all", gpus="0")
        from pipeline.plan import Planner, tables, tables_to_run

        planner = Planner(experiment)
        selected = tables_to_run(experiment, own["stage"])
        if own["stage"] == "teacher_scores":  # the whole bill of the teacher
            selected = [table for table in tables(experiment) if table.scores_pairs_of]
        notes: list[str] = []
        for planned in planner.plan_all(selected):
            if planned.table.notes and not planned.complete:
                notes += planned.table.notes(experiment, planner.models)
            label = f"{planned.table.label:<16}"
            if planned.waits_for:
                _say(f"{label} waits for {planned.waits_for}: what it needs is known once that is complete")
            elif planned.complete:
                _say(f"{label} complete, {planned.shard_count} shards, {planned.stored.manifest.rows:,} rows")
            elif not planned.stale:
                _say(f"{label} all shards built, the manifest is missing and would be written")
            else:
                _say(f"{label} would build {len(planned.stale)} of {planned.shard_count} shards")
                for shards, reason in _by_reason(planned.stale):
                    _say(f"{'':<16}   {shards}: {reason}")
            if planned.table.scores_pairs_of and (planned.stale or planned.waits_for):
                from pipeline.report.cost import format_cost

                for line in format_cost(planner.models, planned, measuring=own["stage"] != "all", gpus=own.number("gpus")):
                    _say(f"{'':<16} {line}")
            if planned.table.stage == "pools" and planned.stale:
                from pipeline.report.search_cost import format_search_cost

                for line in format_search_cost(experiment, planned, measuring=own["stage"] == "pools"):
                    _say(f"{'':<16} {line}")
        for note in dict.fromkeys(notes):
            _say(f"note: {note}")


def _by_reason(stale: dict[int, str]) -> list[tuple[str, str]]:
    """Shards that share a reason, as `shard 0-3, 7`, each with the reason."""
    grouped: dict[str, list[list[int]]] = {}
    for shard, reason in stale.items():
        ranges = grouped.setdefault(reason, [])
        if ranges and shard == ranges[-1][1] + 1:
            ranges[-1][1] = shard
        else:
            ranges.append([shard, shard])
    return [("shard " + ", ".join(_range(*one) for one in ranges), reason) for reason, ranges in grouped.items()]


def _range(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}-{last}"


@app.command()
def advise(args: Args = None) -> None:
    """Which recipe and rules suit this collection and teacher, from a sample that is scored now.  [budget_pairs=10000]

    Nothing is paid twice: the run that follows reads these logits from the store.
    """
    with exit_codes():
        from pipeline.advice.command import BUDGET_PAIRS, run_advice

        experiment, own = _experiment(args, budget_pairs=str(BUDGET_PAIRS))
        run_advice(experiment, budget_pairs=own.number("budget_pairs", least=1), say=_say)


@app.command()
def status(args: Args = None) -> None:
    """Each table: complete or not, rows, what was dropped and why, the time it took, where it lies."""
    with exit_codes():
        experiment, _ = _experiment(args)
        from rich.console import Console
        from rich.table import Table as Grid
        from rich.text import Text

        from pipeline.plan import Planner, tables

        grid = Grid("table", "state", "rows", "dropped", "worker seconds", "folder")
        for planned in Planner(experiment).plan_all(tables(experiment)):
            manifest = planned.manifest
            counts = manifest.counts.get("dropped", {}) if manifest else {}
            dropped = ", ".join(f"{reason}: {count:,}" for reason, count in counts.items())
            rows, seconds = (f"{manifest.rows:,}", f"{manifest.seconds:.1f}") if manifest else ("", "")
            folder = "" if planned.waits_for else address_of(planned.folder) or os.path.relpath(planned.folder)
            state = f"waits for {planned.waits_for}" if planned.waits_for else f"{len(planned.stale)} shards stale"
            cells = (planned.table.label, "complete" if planned.complete else state, rows, dropped, seconds, folder)
            grid.add_row(*(Text(printable(cell)) for cell in cells))  # as Text: brackets are no markup
        Console(width=None if sys.stdout.isatty() else 200).print(grid)


@app.command()
def path(args: Args = None) -> None:
    """Print where a stage's output lies, a line for each of its tables.  stage=NAME [table=NAME]"""
    with exit_codes():
        experiment, own = _experiment(args, stage="shards", table="")
        from pipeline.plan import Planner, selected_tables

        named = {table.name or table.stage: table for table in selected_tables(experiment, own["stage"])}
        chosen = [table for name, table in named.items() if own["table"] in ("", name)]
        if not chosen:
            raise unknown_key(f"table={own['table']}", valid=[f"table={name}" for name in named])
        lines: list[bytes] = []
        for planned in Planner(experiment).plan_all(chosen):
            if planned.waits_for or planned.manifest is None:
                raise UserError(f"{planned.table.label} is not complete yet: prep run stage={planned.table.stage}")
            lines.append(os.fsencode(shown(planned.folder)) + b"\n")  # its own bytes, whatever the terminal's encoding
        sys.stdout.flush()
        sys.stdout.buffer.write(b"".join(lines))  # all or none: `$(prep path ...)` sees no exit code


@app.command()
def inspect(args: Args = None) -> None:
    """Show one query: positive, negatives, mixed and masked passages, teacher logits, C(q).  [query=ID] [width=N]"""
    with exit_codes():
        experiment, own = _experiment(args, query="", width="0")
        from pipeline.report.inspect import show

        show(experiment, query_id=own["query"] or None, width=own.number("width"))


@app.command()
def report(args: Args = None) -> None:
    """Write one HTML file: score distributions, C(q), counts and times a stage, browsable queries.  [out=FILE]"""
    with exit_codes():
        experiment, own = _experiment(args, out="report.html")
        from pipeline.report.page import write_report

        with output_file(expanded(own["out"], key="out"), option="out", kind="html") as out:
            write_report(experiment, out)
        if not is_standard_output(own["out"]):
            _say(f"wrote {own['out']}")


@app.command(name="import")
def import_lists(args: Annotated[list[str] | None, typer.Argument(metavar="FILE|FOLDER|hf://DATASET key=value ...")] = None) -> None:
    """Scored lists of others become a collection, a run, and logits of a declared teacher.  format=NAME out=FOLDER [teacher=NAME ...]"""
    with exit_codes():
        from pipeline.interchange.importing import run_import

        run_import(path_among(args), say=_say)


@app.command()
def export(args: Args = None) -> None:
    """Write a store's lists as other trainers read them, or the pairs that have no logit.  format=NAME out=FOLDER [licence=... draw=all]"""
    with exit_codes():
        from pipeline.interchange.exporting import OPTIONS, run_export

        experiment, own = _experiment(args, **OPTIONS)
        run_export(experiment, own, say=_say)


@app.command()
def cache(
    action: Annotated[str, typer.Argument(help="stats, verify, compact, gc, export or import")],
    args: Annotated[list[str] | None, typer.Argument(metavar="[PATH] config=FILE|store=FOLDER key=value ...")] = None,
) -> None:
    """Look after the store of teacher logits: `prep cache stats|verify|compact|gc config=FILE [namespace=START] [yes=true]`.

    Between stores: `prep cache export out=FILE|FOLDER [namespace=START] [texts=true] [licence=LINE]`, and `prep cache import FILE|FOLDER
    [namespace=START] [conflicts=refuse|keep] [teacher=NAME revision=1 scores=logit]`.
    """
    with exit_codes():
        from pipeline.interchange.logits_between_stores import COMMANDS
        from pipeline.logit_cache import ACTIONS

        if action not in (*ACTIONS, *COMMANDS):
            raise unknown_key(f"cache {action}", valid=[f"cache {name}" for name in (*ACTIONS, *COMMANDS)])
        defaults = COMMANDS[action].arguments if action in COMMANDS else {"namespace": "", "yes": "false"}
        parsed = parse_arguments(path_among(args) if action == "import" else args or [])
        own = OwnArgs({name: parsed.pop(name, default) for name, default in defaults.items()})
        is_folder = "store" in parsed and "config" not in parsed
        if is_folder and (others := parsed.keys() - {"store"}):
            raise unknown_key(min(others), valid=["store", "config", *defaults])
        experiment = None if is_folder else load(parsed)
        place = open_place(experiment.store if experiment else store_given(parsed["store"]))
        place.refresh()
        root = place.root
        if action in COMMANDS:
            COMMANDS[action].run(root, own, experiment, _say)
        else:
            ACTIONS[action](root, own["namespace"], own["yes"] == "true", _say)
