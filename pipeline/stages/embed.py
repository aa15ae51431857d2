"""Stage `embed`: corpus and queries to fp16 vectors by the student, or by `embed.model`: a text shard in, a vector shard out."""

from __future__ import annotations

from typing import Any

from data.config.settings import Experiment
from data.digests import DigestCache
from pipeline.stage import StageContext, Table
from retrieval.compute import precision
from retrieval.models.student import EMBEDDING_VERSION, miner_of, resolve_student, student_notes


def _key(experiment: Experiment, digests: DigestCache, kind: str) -> dict[str, Any]:
    return {
        "student": resolve_student(miner_of(experiment), option=_option(experiment)).key(digests),
        "precision": precision.class_of(_precision(experiment, kind)),
    }


def _precision(experiment: Experiment, kind: str) -> str:
    settings = experiment.embed
    asked = settings.precision if kind == "corpus" else settings.query_precision
    return precision.resolve(asked, device=experiment.runner.device)


def _option(experiment: Experiment) -> str:
    return "embed.model" if experiment.embed.model else "student.model"


# A vector of a passage does not depend on how queries are read, and the other way round.
_CORPUS_ONLY, _QUERIES_ONLY = ("passage_prefix", "passage_tokens"), ("query_prefix", "query_tokens")


def _corpus_key(experiment: Experiment, digests: DigestCache) -> dict[str, Any]:
    return _without(_key(experiment, digests, "corpus"), _QUERIES_ONLY)


def _queries_key(experiment: Experiment, digests: DigestCache) -> dict[str, Any]:
    return _without(_key(experiment, digests, "queries"), _CORPUS_ONLY)


def _without(key: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {**key, "student": {name: value for name, value in key["student"].items() if name not in names}}


def _build(context: StageContext) -> None:
    from data.tables.schemas import embeddings
    from retrieval.compute.batching import DEFAULT_BATCH_TOKENS
    from retrieval.encoding.encode import embedded_groups
    from retrieval.encoding.text_encoder import TextEncoder

    experiment, kind = context.experiment, context.table.name
    device, computed = experiment.runner.device, _precision(experiment, kind)

    def load() -> TextEncoder:
        batch_tokens = experiment.embed.batch_tokens or DEFAULT_BATCH_TOKENS[device]
        return TextEncoder(miner_of(experiment), precision=computed, device=device, batch_tokens=batch_tokens, option=_option(experiment))

    encoder = context.worker_cache.get_or_create(f"{computed} encoder", load)
    texts = context.inputs[f"ingest.{kind}"].paths()[context.shard]
    context.figures["packed"] = encoder.packs
    schema = embeddings(encoder.size, id_name="doc_id" if kind == "corpus" else "query_id")
    with context.writer(context.shard, schema) as writer:
        for group in embedded_groups(encoder, texts, kind=kind, progress=lambda rows: context.report("texts", rows)):
            writer.write(group)
        writer.figures["counts"] = {"in": writer.rows, "kept": writer.rows, "dropped": {}}


CORPUS = Table(
    stage="embed", name="corpus", version=EMBEDDING_VERSION, reads=("ingest.corpus",), key=_corpus_key,
    shard_count=lambda experiment: experiment.ingest.corpus_shards, build=_build, uses_device=True,
    notes=lambda experiment: student_notes(miner_of(experiment), option=_option(experiment)),
    rounds_by_device=True,
)  # fmt: skip
QUERIES = Table(
    stage="embed", name="queries", version=EMBEDDING_VERSION, reads=("ingest.queries",), key=_queries_key,
    shard_count=lambda experiment: experiment.ingest.query_shards, build=_build, uses_device=True,
    rounds_by_device=True,
)  # fmt: skip
