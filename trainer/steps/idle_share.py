"""How much of the processes' time a cut leaves idle, in tokens: each waits for the one that has most."""

from __future__ import annotations

from trainer.objective.plan import BatchWork
from trainer.processes.distributed import Distributed
from trainer.steps.micro_batches import MicroBatches, cut

NOTEWORTHY = 0.1  # of the processes' time


def piece_tokens(work: BatchWork, cut: MicroBatches) -> tuple[list[int], list[int]]:
    """Tokens that each chunk, and each group by itself, has to encode; not of groups that have none of their own."""
    is_shared = cut.is_shared(work)
    chunks = [work.tokens(cut.shared[rows]) for rows in cut.chunks]
    groups = [work.tokens(numbers[~is_shared[numbers]]) for numbers in map(work.needed, cut.groups)]
    return chunks, [tokens for tokens in groups if tokens]


def idle_share(work: BatchWork, cut: MicroBatches, *, processes: int) -> float:
    """The share of the time of so many processes, from 0 to 1, in which they wait for others: chunks first, then groups."""
    kinds = piece_tokens(work, cut)
    longest = sum(max(sum(costs[piece] for piece in share) for share in Distributed(0, processes).shares(costs)) for costs in kinds)
    return 1 - sum(map(sum, kinds)) / (processes * longest) if longest else 0.0


def idle_note(work: BatchWork, parts: MicroBatches, *, budget: int, pieces: int | None, processes: int) -> str | None:
    """What a person should know where processes wait for others in a step like this one; None where they hardly do."""
    idle = idle_share(work, parts, processes=processes)
    if idle < NOTEWORTHY:
        return None
    chunks, groups = piece_tokens(work, parts)
    said = f"{idle:.0%} of the time of {processes} processes is idle: a step is {len(groups)} groups and {len(chunks)} shared chunks"
    better = idle_share(work, cut(work, budget=budget, pieces=processes), processes=processes) if pieces != processes else idle
    if better > idle - NOTEWORTHY / 2:
        return f"{said}; more queries a batch (train.batch_queries) would fill them"
    return f"{said}; with train.pieces={processes} it is {better:.0%} (keyed: another run)"
