"""Stage `embed`: corpus and queries to fp16 vectors by the student, or by `embed.model`: a text shard in, a vector shard out."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from data.config.settings import Experiment
from data.tables.schemas import embeddings
from pipeline.stage import StageContext, Table
from retrieval.compute import precision
from retrieval.models.resolved import ResolvedModels
from retrieval.models.student import EMBEDDING_VERSION


def _key(kind: str, experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    return {"student": models.key_of_vectors(kind), "precision": precision.class_of(models.precision_of(kind))}


def _build(context: StageContext) -> None:
    from retrieval.compute.prefetch import behind
    from retrieval.encoding.encode import embedded_groups
    from retrieval.encoding.text_encoder import TextEncoder

    experiment = context.experiment
    kind = context.table.name
    device = experiment.runner.device
    computed = precision.resolve(context.models.precision_of(kind), device=device)

    def load() -> TextEncoder:
        return TextEncoder(context.models.miner, precision=computed, device=device, batch_tokens=experiment.embed.batch_tokens)

    encoder = context.worker_cache.get_or_create(f"{computed} encoder", load)
    texts = context.inputs[f"ingest.{kind}"].path(context.shard)
    context.figures["packed"] = encoder.packs
    schema = embeddings(encoder.size, id_name="doc_id" if kind == "corpus" else "query_id")
    with context.writer(context.shard, schema) as writer:
        with behind() as write_behind:
            for group in embedded_groups(encoder, texts, kind=kind, progress=lambda rows: context.report("texts", rows)):
                write_behind(writer.write, group)
        writer.figures["counts"] = {"in": writer.rows, "kept": writer.rows, "dropped": {}}


CORPUS = Table(
    stage="embed", name="corpus", version=EMBEDDING_VERSION, reads=("ingest.corpus",), key=partial(_key, "corpus"), build=_build,
    sharded_by="corpus", uses_device=True, rounds_by_device=True, notes=lambda experiment, models: list(models.miner.notes),
)  # fmt: skip
QUERIES = replace(CORPUS, name="queries", reads=("ingest.queries",), key=partial(_key, "queries"), sharded_by="queries", notes=None)
