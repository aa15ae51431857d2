"""Stage `confidence`: C(q), the teacher's log-probability of p+ among {p+} and P- (ADAM, Eq. 7), and what the scores look like."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data.tables import schemas
from data.tables.schemas import CandidateKind
from pipeline.negatives.pool_pairs import begins_of
from pipeline.stage import StageContext, Table


def confidence(positive_logit: float, negative_logits: NDArray[np.float64]) -> float:
    """C(q) = log softmax of t(q, p+) over {p+} and P-, in nats (ADAM, Eq. 7). No dark examples enter it.

    A sum over P-: with fewer negatives it is higher, so queries whose lists are short are selected more often.
    Written as -log(1 + sum exp(t- - t+)), which keeps its digits when the teacher is sure and C(q) is close to 0.
    """
    if not len(negative_logits):
        return 0.0
    return -float(np.logaddexp(0.0, np.logaddexp.reduce(negative_logits - positive_logit)))


def entropy(logits: NDArray[np.float64]) -> float:
    """Entropy in nats of the softmax over the logits: how smooth the soft label is (ADAM 3.2)."""
    if not len(logits):
        return 0.0
    log_probabilities = logits - np.logaddexp.reduce(logits)
    return float(-(np.exp(log_probabilities) * log_probabilities).sum())


def describe_list(kinds: NDArray[np.int8], logits: NDArray[np.float64]) -> dict[str, Any]:
    """C(q) and the diagnostics of one query's list: `kinds` [K], `logits` [K]."""
    positive = float(logits[kinds == CandidateKind.POSITIVE][0])
    negatives = logits[kinds == CandidateKind.NEGATIVE]
    return {
        "confidence": confidence(positive, negatives),
        "positive_logit": positive,
        "negative_mean": float(negatives.mean()),
        "negative_max": float(negatives.max()),
        "positive_rank": 1 + int((negatives >= positive).sum()),
        "label_entropy": entropy(logits[kinds != CandidateKind.POSITIVE]),
    }


def _build(context: StageContext) -> None:
    scores = context.inputs["teacher_scores"].read(context.shard, columns=["query_id", "draw", "position", "logit"])
    kinds = context.inputs["dark_examples"].read(context.shard, columns=["candidate_kind"]).column("candidate_kind").to_numpy()
    logits = scores.column("logit").to_numpy().astype(np.float64)
    rows = [
        {"query_id": query_id, "draw": draw, **describe_list(kinds[start:stop], logits[start:stop])}
        for (query_id, draw), start, stop in list_bounds(scores)
    ]
    context.report("queries", len(rows))
    right = sum(row["positive_rank"] == 1 for row in rows)
    counts = {"in": len(rows), "kept": len(rows), "dropped": {}, "positive ranked first": right}
    context.write(pa.Table.from_pylist(rows, schema=schemas.CONFIDENCE), counts)


def list_bounds(table: pa.Table) -> list[tuple[tuple[str, int], int, int]]:
    """((query_id, draw), first row, row after the last) of each list: a list's rows stand together."""
    query_ids, draws = table.column("query_id").to_pylist(), table.column("draw").to_pylist()
    return [((query_ids[start], draws[start]), start, stop) for start, stop in itertools.pairwise([*begins_of(table), len(draws)])]


TABLE = Table(stage="confidence", version=1, reads=("dark_examples", "teacher_scores"), key=lambda experiment, models: {}, build=_build)
