"""Stage `shards`: the self-contained training rows: the student's tokens, the kinds, the teacher's logits and C(q).

A row is a query and draw. Rows are shuffled by a hash of seed and query id. The Arrow schema's metadata under `training` says
what a trainer must know before it reads a row: schema version, digest of the student's tokenizer, teachers, draws.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from data import schemas
from data.digests import DigestCache, canonical_json, hash64
from data.schemas import SCHEMA_VERSION, CandidateKind
from data.settings import Experiment
from pipeline.confidence import list_bounds
from pipeline.dark_examples import longest_mixed
from pipeline.stage import Table, Task
from retrieval.cross_encoder import resolve_teacher
from retrieval.model_lengths import check_length
from retrieval.student_spec import StudentSpec, resolve_student


def _metadata(experiment: Experiment, student: StudentSpec, digests: DigestCache) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "tokenizer": student.tokenizer_digest,
        "teachers": [resolve_teacher(experiment.teacher, device=experiment.runner.device).namespace(digests)],
        "draws": experiment.draws,
        "negatives_source": experiment.hard_negatives.source_words,
        "negatives": experiment.hard_negatives.negatives,
        "mask_ratios": list(experiment.dark_examples.mask_ratios),
    }


def _build(task: Task) -> None:
    from retrieval.tokenizer import Tokenizer

    experiment, student = task.experiment, resolve_student(task.experiment.student)
    tokenizer = task.workshop.keep("student tokenizer", lambda: Tokenizer(student.weights_folder, lower_case=student.lower_case))
    candidates = task.inputs["dark_examples"].read(task.shard)
    logits = task.inputs["teacher_scores"].read(task.shard, columns=["logit"]).column("logit").to_pylist()
    confidences = task.inputs["confidence"].read(task.shard, columns=["confidence"]).column("confidence").to_pylist()

    queries = candidates.column("query").to_pylist()
    query_tokens = _tokens(sorted(set(queries)), prefix=student.query_prefix, max_tokens=student.query_tokens, tokenizer=tokenizer)
    kinds = candidates.column("candidate_kind").to_pylist()
    texts = candidates.column("text").to_pylist()
    passage_tokens: dict[tuple[bool, str], list[int]] = {}
    for mixed, longest in ((False, student.passage_tokens), (True, longest_mixed(experiment))):
        distinct = sorted({text for text, kind in zip(texts, kinds, strict=True) if (kind == CandidateKind.REINFORCED_NEGATIVE) == mixed})
        found = _tokens(distinct, prefix=student.passage_prefix, max_tokens=longest, tokenizer=tokenizer)
        passage_tokens.update({(mixed, text): tokens for text, tokens in found.items()})

    ids = candidates.column("candidate_id").to_pylist()
    rows: list[dict[str, Any]] = []
    for place, ((query_id, draw), start, stop) in enumerate(list_bounds(candidates)):
        rows.append(
            {
                "query_id": query_id,
                "draw": draw,
                "query_tokens": query_tokens[queries[start]],
                "candidate_tokens": [passage_tokens[kinds[i] == CandidateKind.REINFORCED_NEGATIVE, texts[i]] for i in range(start, stop)],
                "candidate_kind": kinds[start:stop],
                "candidate_id": ids[start:stop],
                "teacher_logits": logits[start:stop],
                "confidence": confidences[place],
            }
        )
        task.report("queries", 1)
    rows.sort(key=lambda row: (hash64(experiment.seed, "order", row["query_id"], row["draw"]), row["query_id"], row["draw"]))
    digests = DigestCache.of_store(task.experiment.store)
    schema = schemas.TRAINING.with_metadata({"training": canonical_json(_metadata(experiment, student, digests))})
    tokens = sum(len(tokens) for row in rows for tokens in row["candidate_tokens"])
    counts = {"in": len(rows), "kept": len(rows), "dropped": {}, "candidates": len(ids), "candidate tokens": tokens}
    task.write(pa.Table.from_pylist(rows, schema=schema), counts)


def _tokens(texts: list[str], *, prefix: str, max_tokens: int, tokenizer: Any) -> dict[str, list[int]]:
    """Each distinct text's tokens, tokenised once."""
    encoded = tokenizer.encode([prefix + text for text in texts], max_tokens=max_tokens)
    return dict(zip(texts, encoded, strict=True))


def _key(experiment: Experiment, digests: DigestCache) -> dict[str, Any]:
    student, longest = resolve_student(experiment.student), longest_mixed(experiment)
    check_length(longest, student.weights_folder, option="dark_examples.mixed_tokens")
    lengths = {"query_tokens": student.query_tokens, "passage_tokens": student.passage_tokens, "mixed_tokens": longest}
    prefixes = {"query_prefix": student.query_prefix, "passage_prefix": student.passage_prefix}
    return {**_metadata(experiment, student, digests), **lengths, **prefixes, "seed": experiment.seed}


TABLE = Table(
    stage="shards", name="", version=1, reads=("dark_examples", "teacher_scores", "confidence"), key=_key,
    shard_count=lambda experiment: experiment.ingest.query_shards, build=_build,
)  # fmt: skip
