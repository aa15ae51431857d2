"""What the scoring of a table will cost, said before it is paid: counted by the workers, shard by shard.

The keys that it takes are kept for those who score (`pipeline.scoring.pair_keys`). `prep plan`, which has no workers, counts by itself
(`pipeline.scoring.cost`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.scoring import reading_lengths
from pipeline.scoring.cost import Price, price_of
from pipeline.scoring.missing_pairs import refuse_missing
from pipeline.scoring.pair_keys import candidates_path, keys_name, write_keys
from pipeline.scoring.requested_pairs import look_up, open_teacher, store_of
from pipeline.stage import Cutting, Piece, Say, StageContext
from retrieval.models.resolved import ResolvedModels

_SEGMENTS_A_SHARD = 4  # of any shard's pairs, which each shard reads: more are merged


def merge_old_segments(models: ResolvedModels, shards: int, say: Say) -> None:
    """Merge the segments that each of so many shards would read whole, where there are many: imported ones, and those of early versions."""
    merged = store_of(models, warn=lambda line: say(f"warning: {line}")).merge_pile(None, most=max(64, _SEGMENTS_A_SHARD * shards))
    if merged:
        say(f"merged {merged:,} segments of the logit store, of which each shard would read all")


def cut(cutting: Cutting) -> list[Piece]:
    """A piece for each shard."""
    return [Piece(cutting.round, keys_name(shard), {"shard": shard, "shards": len(cutting.shards)}) for shard in cutting.shards]


def build(context: StageContext, piece: Piece) -> None:
    """Read the keys of a shard, and count against the logit store what is to be scored."""
    shard, models = piece.values["shard"], context.models
    pairs = write_keys(context, piece, shard)
    known, _ = look_up(models, pairs.keys, warn=context.warn, of=pairs.shards)
    teacher = context.worker_cache.get_or_create(("teacher", models.namespace), lambda: open_teacher(models))
    missing = np.isnan(known.logits)
    price = price_of(candidates_path(context, shard), pairs, missing, teacher, shards=piece.values["shards"], marks=models.teacher_marks)
    context.figures["price"] = asdict(price)
    context.report("rows read", price.requested)


def tell(cutting: Cutting, figures: Sequence[dict[str, Any]], say: Say, *, label: str) -> None:
    """Say how many pairs will be scored, and what the teacher would not read of them; of some shards, where other jobs count the rest.

    Raises UserError where the teacher is one of imported logits, and pairs have none.
    """
    models, (candidates,) = cutting.models, cutting.inputs.values()
    if not figures:
        return
    cost = sum((Price(**each["price"]) for each in figures), Price()).cost
    counted = f"{len(figures)} of {len(cutting.shards)} shards: " if len(figures) < len(cutting.shards) else ""
    if models.teacher.reads_texts:
        say(f"{label:<16} {counted}{cost}")
    else:
        refuse_missing(models, cost, candidates, cutting.shards, label=label)
        say(f"{label:<16} {counted}{cost.requested:,} pairs, {cost.distinct:,} distinct, all with imported logits")
    for line in reading_lengths.warnings(models, candidates, cutting.shards) if cost.to_score else ():
        say(f"warning: {line}")
