"""Stage `teacher_scores`: the teacher's raw logit of every (query, candidate) pair, each distinct pair scored once, ever.

    distinct pairs of the shard -> look up in the logit store -> score what is missing -> append -> join back

The unit of scoring is a bucket of the shard (all its pairs whose key begins with one hex digit): it is appended whole or not at
all, so a killed job loses at most the bucket in flight, and the batches of a bucket are the same before and after a kill.
Shards hold different query texts (`ingest` sees to that), so no pair is wanted by two shards.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data import schemas
from data.digests import DigestCache, pair_key
from data.errors import RunFailed
from data.logit_store import BUCKETS, LogitStore, bucket_of
from data.settings import Experiment
from pipeline.stage import Table, Task
from retrieval.cross_encoder import TeacherSpec, load_cross_encoder, resolve_teacher, score_pairs
from retrieval.tokenizer import PairEncoding, Tokenizer


def _spec(experiment: Experiment) -> TeacherSpec:
    return resolve_teacher(experiment.teacher, device=experiment.runner.device)


def _build(task: Task) -> None:
    experiment = task.experiment
    spec = _spec(experiment)
    digests = DigestCache(task.logit_store / "digests.json")
    store = LogitStore(task.logit_store, spec.namespace(digests))
    store.describe(key=spec.key(digests), name=spec.name)
    teacher = task.workshop.keep(("teacher", spec), lambda: _Teacher(spec, experiment))

    candidates = task.inputs["dark_examples"].read(task.shard)
    pairs, pair_of_row = distinct_pairs(candidates.column("query").to_pylist(), candidates.column("text").to_pylist())
    encoded = teacher.encode(pairs)
    keys = [pair_key(query, text) for query, text in pairs]
    logits, scored = score_missing(keys, encoded, store=store, teacher=teacher, task=task)

    task.figures.update({"pairs": len(pairs), "cached": len(pairs) - scored, "scored": scored})
    tokens = np.array([len(pair.ids) for pair in encoded], dtype=np.int32)
    truncated = np.array([pair.truncated for pair in encoded], dtype=bool)
    table = pa.table(
        [
            *(candidates.column(name) for name in ("query_id", "draw", "position")),
            pa.array(logits[pair_of_row]),
            pa.array(tokens[pair_of_row]),
            pa.array(truncated[pair_of_row]),
        ],
        schema=schemas.TEACHER_SCORES,
    )
    counts = {"in": table.num_rows, "kept": table.num_rows, "dropped": {}, "distinct pairs": len(pairs), "truncated": int(truncated.sum())}
    task.write(table, {**counts, "tokens": int(tokens.sum())})


class _Teacher:
    """The teacher's tokenizer, and the model once it is needed: a warm store never loads it."""

    def __init__(self, spec: TeacherSpec, experiment: Experiment) -> None:
        self._spec, self._experiment = spec, experiment
        self._tokenizer = Tokenizer(spec.folder)
        self._model: Any = None

    def encode(self, pairs: list[tuple[str, str]]) -> list[PairEncoding]:
        return self._tokenizer.encode_pairs(pairs, max_tokens=self._spec.max_tokens)

    def score(self, pairs: list[PairEncoding], *, progress: Any) -> NDArray[np.float32]:
        from retrieval.batching import DEFAULT_BATCH_TOKENS

        runner = self._experiment.runner
        batch_tokens = self._experiment.teacher.batch_tokens or DEFAULT_BATCH_TOKENS[runner.device]
        if self._model is None:
            self._model = load_cross_encoder(self._spec, device=runner.device, threads=runner.threads)
        return score_pairs(self._model, pairs, batch_tokens=batch_tokens, pad_id=self._tokenizer.pad_id, progress=progress)


def distinct_pairs(queries: list[str], texts: list[str]) -> tuple[list[tuple[str, str]], NDArray[np.int64]]:
    """The distinct (query, text) pairs in order of first sight, and for each row the place of its pair."""
    place: dict[tuple[str, str], int] = {}
    rows = np.fromiter(
        (place.setdefault(pair, len(place)) for pair in zip(queries, texts, strict=True)), dtype=np.int64, count=len(queries)
    )
    return list(place), rows


def score_missing(
    keys: list[bytes], encoded: list[PairEncoding], *, store: LogitStore, teacher: _Teacher, task: Task
) -> tuple[NDArray[np.float32], int]:
    """[n] logits of all pairs, from the store where it has them, and the number of pairs that had to be scored."""
    logits = store.lookup(keys)
    missing = np.isnan(logits)
    task.report("pairs", int((~missing).sum()))
    scored = 0
    for bucket in range(BUCKETS):
        # In key order, so that the batches do not depend on the order of the rows.
        rows = sorted((row for row in np.flatnonzero(missing).tolist() if bucket_of(keys[row]) == bucket), key=keys.__getitem__)
        if rows:
            fresh = teacher.score([encoded[row] for row in rows], progress=lambda count: task.report("pairs", count))
            if not np.isfinite(fresh).all():
                broken = int((~np.isfinite(fresh)).sum())
                raise RunFailed(f"the teacher gave {broken} logits that are not finite numbers; try teacher.precision=fp32")
            store.append([keys[row] for row in rows], fresh)
            logits[rows] = fresh
            scored += len(rows)
    return logits, scored


def _key(experiment: Experiment, digests: DigestCache) -> dict[str, Any]:
    return {"teacher": _spec(experiment).key(digests)}


TABLE = Table(
    stage="teacher_scores", name="", version=1, reads=("dark_examples",), key=_key,
    shard_count=lambda experiment: experiment.ingest.query_shards, build=_build, uses_device=True,
)  # fmt: skip
