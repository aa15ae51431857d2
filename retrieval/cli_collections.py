"""What `retrieve evaluate` and `retrieve compare` do with collections: arguments to settings, and folders of results."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from data.config.settings import Student
from data.errors import UserError
from data.files.paths import expanded
from data.remote.object_store import RemotePath, is_remote
from retrieval.cli_args import FileArgs, settings_of

if TYPE_CHECKING:
    from retrieval.evaluation.over_collections import How
    from retrieval.evaluation.results import Evaluated

OVER_COLLECTIONS = {
    "model": "", "collections": "", "vectors": "", **settings_of(Student), "precision": "auto", "batch_tokens": "0",
    "max_bad_fraction": "0.001",
}  # fmt: skip
OF_RUNS = ("qrels", "run", "corpus", "queries", "per_query", "index", "probes", "width", "missing")
_METRICS = "nDCG@10,MRR@10,Recall@100"
_STORE = "vectors"  # in the folder of results
_OWN = (_STORE, "runs", "per_query", "results.json")


def refuse_given(args: FileArgs, names: Mapping[str, str], why: str) -> None:
    """Raises UserError where an argument differs from its default `names[name]`, which says that it was given."""
    if given := [name for name, default in names.items() if args[name] != default]:
        raise UserError(f"{', '.join(f'{name}=' for name in given)} {why}")


def evaluate_collections(args: FileArgs, *, threads: int, note: Callable[[str], None]) -> None:
    """`retrieve evaluate model= collections= out=`."""
    if missing := [name for name in ("model", "collections", "out") if not args[name]]:
        raise UserError(f"missing {', '.join(f'{name}=...' for name in missing)}: a model is evaluated over collections into a folder")
    how = _how(args, threads=threads)
    # Texts are as long as the model's files say, as in published figures: ADAM's 32 tokens would cut the queries of ArguAna.
    student = args.section(Student, query_tokens="null", passage_tokens="null")
    store = expanded(args["vectors"], key="vectors") if args["vectors"] else ""
    if is_remote(store):
        raise UserError(f"vectors={store}: expected a folder of this machine or of a network file system")
    from retrieval.evaluation.suite import find_suite
    from retrieval.models.student import resolve_student

    spec = resolve_student(student)
    members = find_suite(args["collections"], splits=args["split"], note=note)
    count = "1 collection" if len(members) == 1 else f"{len(members)} collections"
    note(f"{count}; texts up to {spec.query_tokens} tokens (queries) and {spec.passage_tokens} (passages)")
    import torch

    from retrieval.evaluation.over_collections import evaluate_collections
    from retrieval.evaluation.printing import print_results

    torch.set_num_threads(threads)
    with args.output_folder("out", own=_OWN, kept=(_STORE,)) as out:
        results = evaluate_collections(members, student, how, out=out, store=Path(store or out / _STORE), note=note)
    print_results(results)


def _how(args: FileArgs, *, threads: int) -> How:
    """The settings of an evaluation, checked."""
    from retrieval.evaluation.metrics import cutoff_of
    from retrieval.evaluation.over_collections import How

    metrics = metrics_of(args, default=_METRICS)
    depth = args.number("depth", least=1)
    if deeper := [name for name in metrics if cutoff_of(name) > depth]:
        raise UserError(f"depth={depth}: {', '.join(deeper)} looks deeper; raise depth, or leave the metric out")
    return How(
        metrics=metrics,
        depth=depth,
        dimensions=args.number("dimensions", least=1) if args["dimensions"] else None,
        relevant_from=args.number("relevant_from", least=1),
        ignore_identical_ids=cast(Literal["auto", "true", "false"], args.one_of("ignore_identical_ids", "auto", "true", "false")),
        max_bad_fraction=_fraction(args, "max_bad_fraction"),
        precision=args.one_of("precision", "auto", "fp32", "bf16", "fp16"),
        device=args.one_of("device", "cpu", "cuda"),
        batch_tokens=args.number("batch_tokens") or None,
        threads=threads,
        memory_gb=args.positive("memory_gb"),
    )


def metrics_of(args: FileArgs, *, default: str) -> tuple[str, ...]:
    """The metrics of `metrics=`."""
    from retrieval.evaluation.metrics import parse_metrics

    try:
        return parse_metrics([name for name in (args["metrics"] or default).split(",") if name.strip()])
    except ValueError as error:
        raise UserError(f"metrics={args['metrics']}: {error}") from error


def _fraction(args: FileArgs, key: str) -> float:
    try:
        value = float(args[key])
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise UserError(f"{key}={args[key]}: expected a number from 0 to 1")
    return value


def evaluated_folder(args: FileArgs, key: str) -> Evaluated | None:
    """The results in the folder that an argument names; None where it names no folder."""
    from retrieval.evaluation.results import RESULTS, Evaluated

    given = expanded(args[key], key=key)
    if is_remote(given):
        remote = RemotePath.of(given)
        if remote.child(RESULTS).read() is None:
            return None
        read = lambda name: _there(remote.child(name).read(), f"{given}/{name}")  # noqa: E731
    elif not os.path.isdir(given):
        return None
    elif not os.path.exists(os.path.join(given, RESULTS)):
        raise UserError(f"{key}={given} is a folder without {RESULTS}: give a run file, or the out= of `retrieve evaluate collections=...`")
    else:
        read = lambda name: _local(Path(given) / name)  # noqa: E731
    return Evaluated(f"{key}={args[key]}", read)


def _there(content: bytes | None, place: str) -> bytes:
    if content is None:
        raise UserError(f"{place} is missing: evaluate again")
    return content


def _local(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return _there(None, str(path))


def compare_folders(before: Evaluated, after: Evaluated, args: FileArgs) -> None:
    """`retrieve compare before=FOLDER after=FOLDER`."""
    from retrieval.evaluation.printing import print_differences
    from retrieval.evaluation.results import compare_results

    metrics = metrics_of(args, default="nDCG@10")
    seed, permutations = args.number("seed"), args.number("permutations", least=1)
    print_differences([compare_results(before, after, metric, seed=seed, permutations=permutations) for metric in metrics])
