"""The cost of scoring as lines of text, for `prep plan`."""

from __future__ import annotations

import contextlib
from pathlib import Path

import polars as pl

from data.config.settings import Experiment
from data.errors import UserError
from pipeline.executors.addresses import cluster_address
from pipeline.executors.resources import device_is_here, usable_cpus, workers_that_fit
from pipeline.plan import Planner, TablePlan, table_named
from pipeline.pooling.judged_queries import labels_above_0
from pipeline.progress import duration
from pipeline.scoring.calibration import SECONDS, Speed, load_gpu_speeds, load_speed, measure, save_speed
from pipeline.scoring.cost import Cost, at_most, at_most_of_pools, estimate_cost, first_filled_shard
from pipeline.scoring.missing_pairs import missing_words, ways
from retrieval.compute import precision
from retrieval.models.resolved import ResolvedModels

_PAIRS_NOT_KNOWN = "nothing to pay; which pairs have no logit is known after {}"
_NOTHING_TO_PAY = "all pairs have a logit that was imported: nothing to pay"


def format_cost(models: ResolvedModels, planned: TablePlan, *, measuring: bool, gpus: int) -> list[str]:
    """What is known of the cost of a table of teacher scores: pairs, tokens, time here and on so many GPUs.

    With `measuring` a teacher that has not been timed here is timed now, for ten seconds.
    """
    experiment = models.experiment
    if planned.waits_for:
        return _upper_bound(experiment, planned) if models.teacher.reads_texts else [_PAIRS_NOT_KNOWN.format(planned.table.scores_pairs_of)]
    assert planned.table.scores_pairs_of is not None
    candidates = planned.inputs[planned.table.scores_pairs_of]
    if not all(map(candidates.has, range(len(candidates.manifest.shards)))):
        return [f"the cost is known once the missing shards of {planned.table.scores_pairs_of} are built again"]
    stale = list(planned.stale)
    lines: list[str] = []
    cost = estimate_cost(models, candidates, stale, warn=lines.append)
    if not models.teacher.reads_texts:
        return [*lines, f"{cost.requested:,} pairs, {missing_words(cost)}. {ways(models)}" if cost.to_score else _NOTHING_TO_PAY]
    lines.append(str(cost))
    if cost.to_score and models.teacher.is_remote:
        lines.append("hours: not known, they are the server's, of which nothing is asked for a plan")
    elif cost.to_score:
        lines += [_here(models, cost, first_filled_shard(candidates, stale), shards=len(stale), measuring=measuring)]
        lines += _on_gpus(models, cost, gpus, shards=len(stale)) if gpus else []
    return lines


def _upper_bound(experiment: Experiment, scored: TablePlan) -> list[str]:
    """From the labels alone, while the negatives are not known."""
    planned = Planner(experiment).plan(table_named(experiment, "ingest.qrels"))
    if not planned.complete:
        return []
    labels = labels_above_0(planned.stored).filter(pl.col("split") == experiment.ingest.train_split)["query_id"]
    of_pools = scored.table.label == "pool_scores"
    queries = labels.n_unique()
    pairs = (at_most_of_pools if of_pools else at_most)(experiment, queries, labels=len(labels))
    return [_at_most_words(experiment, pairs, of_pools=of_pools, after=scored.table.scores_pairs_of)]


def _at_most_words(experiment: Experiment, pairs: int, *, of_pools: bool, after: str | None) -> str:
    """With `positives=each` a promoted passage has lists of its own, and how many there are the teacher says first."""
    settings = experiment.hard_negatives
    promotes = not of_pools and settings.promote_margin is not None and settings.positives == "each"
    beside = " beside those of promoted passages" if promotes else ""
    return f"at most {pairs:,} pairs{beside}; the exact cost is known after {after}"


def _here(models: ResolvedModels, cost: Cost, candidates: Path, *, shards: int, measuring: bool) -> str:
    experiment = models.experiment
    speed = load_speed(models)
    if speed is None and not measuring:
        return f"hours: `prep plan stage=teacher_scores` measures this teacher here, in {SECONDS:.0f} s, once"
    runner = experiment.runner
    address = cluster_address(runner)
    if speed is None and (address or not _computes_here(models)):
        where = "the workers' device is not on this machine"
        return f"hours: not known, {where}; plan once on a machine like theirs, with this store"
    if speed is None:
        speed = measure(models, candidates)
        with contextlib.suppress(OSError):  # a store that can only be read: measured again next time
            save_speed(models, speed)
    if not device_is_here(runner.device):
        return f"about {_time(speed, cost, 1)} on one {speed.device}"
    workers = 1 if runner.kind == "local" else runner.workers or max(1, _room_here(experiment))
    workers = min(workers, shards)
    place = f"at {address.text}, if its machines are like this one" if address else "on this machine"
    return f"about {_time(speed, cost, workers)} {place} ({workers} workers, {speed})"


def _computes_here(models: ResolvedModels) -> bool:
    """Whether this machine has the workers' device, and that computes in the teacher's number format."""
    device = models.experiment.runner.device
    try:
        precision.resolve(models.teacher_precision or "fp32", device=device)
    except UserError:
        return False
    return device_is_here(device)


def _room_here(experiment: Experiment) -> int:
    """Workers that this machine has room for."""
    runner = experiment.runner
    if runner.device == "cpu":
        return workers_that_fit(cpus=usable_cpus(), gpus=0, threads=runner.threads, share=0)
    import torch

    return workers_that_fit(cpus=usable_cpus(), gpus=torch.cuda.device_count(), threads=runner.threads, share=runner.gpus)


def _on_gpus(models: ResolvedModels, cost: Cost, gpus: int, *, shards: int) -> list[str]:
    speeds = load_gpu_speeds(models)
    if not speeds:
        return [f"on {gpus} GPUs: not known, no GPU was measured yet; run this plan with runner.device=cuda where there is one"]
    return [f"about {_time(speed, cost, min(gpus, shards))} on {gpus} x {speed.device}" for speed in speeds]


def _time(speed: Speed, cost: Cost, workers: int) -> str:
    return duration(speed.seconds(cost, workers=workers))
