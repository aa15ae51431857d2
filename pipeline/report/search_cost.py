"""What an exact search will take, by the processor and by GPUs, as lines of text for `prep plan`."""

from __future__ import annotations

from data.config.settings import Experiment
from pipeline.executors.resources import device_is_here
from pipeline.plan import TablePlan
from pipeline.progress import duration
from retrieval.search.devices.choice import Work, choose
from retrieval.search.searcher import gpus

_VECTORS = ("embed.queries", "embed.corpus")


def format_search_cost(experiment: Experiment, planned: TablePlan, *, measuring: bool) -> list[str]:
    """How large the search of pools is; with `measuring` also how long one worker like this machine computes, and with what."""
    if experiment.uses_index or not planned.stale or not all(label in planned.inputs for label in _VECTORS):
        return []
    queries, corpus = (planned.inputs[label].manifest for label in _VECTORS)
    if not corpus.rows or not queries.rows:
        return []
    size = round(sum(shard.bytes for shard in corpus.shards) / corpus.rows / 2)  # vectors hardly compress, and ids are short beside them
    asked = min(queries.rows, experiment.hard_negatives.queries or queries.rows) * len(planned.stale) // planned.shard_count
    work = Work(max(1, asked), corpus.rows, size, experiment.hard_negatives.depth)
    what = f"exact search of at most {work.queries:,} queries among {work.rows:,} passages"
    if not measuring:
        return [f"{what}; `prep plan stage=pools` measures how long it takes"]
    runner = experiment.runner
    if not device_is_here(runner.device):
        return [f"{what}; hours are not known, the workers' device is not on this machine"]
    made = choose(work, gpus() if runner.device == "cuda" else (), threads=runner.threads)
    words = [f"about {duration(made.processor_seconds)} of a processor's {runner.threads} threads"]
    if made.device_seconds is not None:
        words.append(f"about {duration(made.device_seconds)} of this machine's GPUs, the vectors once read")
    if runner.device == "cuda":
        words.append("the GPUs search" if made.by_devices else "the processor searches, being faster")
    return [f"{what}: {'; '.join(words)}"]
