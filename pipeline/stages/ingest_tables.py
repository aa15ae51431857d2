"""The three tables of stage `ingest`, and their quarantine: `pipeline.stages.ingest` with files around it.

Each table's folder has `quarantine/part-00000-of-00001.parquet`: its broken records with file, line and reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.config.settings import Experiment
from data.formats.collection import Collection, find_collection
from data.tables import schemas
from data.tables.shards import ShardWriter, shard_name, write_shard
from pipeline.stage import StageContext, Table
from pipeline.stages.ingest import IngestReport, by_number, check_bad_fraction, check_splits, ingest_corpus, ingest_qrels, ingest_queries
from retrieval.models.resolved import ResolvedModels

Sinks = Sequence[ShardWriter | None]


def _collection(experiment: Experiment) -> Collection:
    collection = find_collection(experiment.ingest.path, format=experiment.ingest.format)
    check_splits(collection, settings=experiment.ingest)
    return collection


def quarantine_file(folder: Path) -> Path:
    """The quarantine of an ingested table."""
    return folder / "quarantine" / shard_name(0, 1)


def _write(context: StageContext, schema: pa.Schema, ingest: Callable[[Collection, Sinks], IngestReport]) -> None:
    """Write the task's shards in one pass over the files. Too many broken records leave a quarantine and no shard."""
    collection = _collection(context.experiment)
    quarantine = quarantine_file(context.folder)
    with contextlib.ExitStack() as stack:
        sinks: list[ShardWriter | None] = [None] * context.shard_count
        for shard in context.shards:
            sinks[shard] = stack.enter_context(context.writer(shard, schema))
        report = ingest(collection, sinks)
        write_shard(quarantine, report.faults, {"fingerprint": context.fingerprint, "counts": report.counts})
        check_bad_fraction(report, settings=context.experiment.ingest, quarantine=quarantine)
        if report.bad:
            left_out = f"{report.bad:,} of {report.counts['in']:,} records are broken and left out ({by_number(report.reasons)})"
            context.warn(f"{context.table.label}: {left_out}; listed in {quarantine}")
        context.report("records", report.counts["in"])
        if sinks[0] is not None:  # the counts are of the whole table; one shard carries them
            sinks[0].figures["counts"] = report.counts


def _build_corpus(context: StageContext) -> None:
    settings = context.experiment.ingest
    _write(context, schemas.CORPUS, lambda collection, sinks: ingest_corpus(collection, settings=settings, sinks=sinks))


def _build_queries(context: StageContext) -> None:
    settings = context.experiment.ingest
    _write(context, schemas.QUERIES, lambda collection, sinks: ingest_queries(collection, settings=settings, sinks=sinks))


def _build_qrels(context: StageContext) -> None:
    corpus, queries = context.inputs["ingest.corpus"].paths(), context.inputs["ingest.queries"].paths()
    settings = context.experiment.ingest
    _write(
        context,
        schemas.QRELS,
        lambda collection, sinks: ingest_qrels(collection, settings=settings, sink=sinks[0], corpus=corpus, queries=queries),
    )


def _contents(files: dict[str, Path], collection: Collection, models: ResolvedModels) -> dict[str, Any]:
    return {"format": collection.format, "files": {name: models.digests.file(file) for name, file in files.items()}}


def _corpus_key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    collection = _collection(experiment)
    return _contents({"corpus": collection.corpus}, collection, models)


def _queries_key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    collection = _collection(experiment)
    # The qrels decide which queries are kept.
    queries = {f"queries{place}": file for place, file in enumerate(collection.queries)}
    return _contents({**queries, **collection.qrels}, collection, models)


def _qrels_key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    collection = _collection(experiment)
    return _contents(dict(collection.qrels), collection, models)


CORPUS = Table(
    stage="ingest", name="corpus", version=1, reads=(), key=_corpus_key,
    shard_count=lambda experiment: experiment.ingest.corpus_shards, build=_build_corpus, builds_all_shards=True,
)  # fmt: skip
QUERIES = Table(
    stage="ingest", name="queries", version=1, reads=(), key=_queries_key,
    shard_count=lambda experiment: experiment.ingest.query_shards, build=_build_queries, builds_all_shards=True,
)  # fmt: skip
QRELS = Table(
    stage="ingest", name="qrels", version=1, reads=("ingest.corpus", "ingest.queries"), key=_qrels_key,
    shard_count=lambda experiment: 1, build=_build_qrels, builds_all_shards=True,
)  # fmt: skip
