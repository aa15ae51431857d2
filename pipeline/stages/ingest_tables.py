"""The three tables of stage `ingest`, and their quarantine: `pipeline.stages.ingest` with files around it.

A large corpus is read in ranges, by several workers: `pipeline.stages.ingest_ranges`.

Each table's folder has `quarantine/part-00000-of-00001.parquet`: its broken records with file, line and reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.config.settings import Experiment
from data.formats.collection import Collection, find_collection, numbered_files
from data.formats.record_counts import RecordCounts
from data.store.paths import shown
from data.tables import schemas
from data.tables.shards import ShardWriter, shard_name, write_shard
from pipeline.stage import StageContext, Table
from pipeline.stages.ingest import Sinks, check_bad_fraction, check_splits, ingest_corpus, ingest_qrels, ingest_queries
from pipeline.stages.ingest_ranges import CorpusInRanges
from retrieval.models.resolved import ResolvedModels


def _collection(experiment: Experiment) -> Collection:
    collection = find_collection(experiment.ingest.collection, format=experiment.ingest.format)
    check_splits(collection, settings=experiment.ingest)
    return collection


def quarantine_file(folder: Path) -> Path:
    """The quarantine of an ingested table."""
    return folder / "quarantine" / shard_name(0, 1)


def _build(context: StageContext, *, schema: pa.Schema, ingest: Callable[[Collection, Sinks], RecordCounts]) -> None:
    """Write the task's shards in one pass over the files. Too many broken records leave a quarantine and no shard."""
    collection = _collection(context.experiment)
    with contextlib.ExitStack() as stack:
        sinks: list[ShardWriter | None] = [None] * context.shard_count
        for shard in context.shards:
            sinks[shard] = stack.enter_context(context.writer(shard, schema))
        report = ingest(collection, sinks)
        _settle(context, report)
        context.report("records", report.counts["in"])
        if sinks[0] is not None:  # the counts are of the whole table; one shard carries them
            sinks[0].figures["counts"] = report.counts


def _settle(context: StageContext, report: RecordCounts) -> None:
    """Write the quarantine, and refuse too many broken records, or tell of some."""
    quarantine = quarantine_file(context.folder)
    write_shard(quarantine, report.faults, {"fingerprint": context.fingerprint, "counts": report.counts})
    check_bad_fraction(report, settings=context.experiment.ingest, quarantine=quarantine)
    if report.bad:
        left_out = f"{report.bad:,} of {report.counts['in']:,} records are broken and left out ({report.reasons})"
        context.warn(f"{context.table.label}: {left_out}; listed in {shown(quarantine)}")


_RANGES = CorpusInRanges(settle=_settle)


def _build_corpus(context: StageContext) -> None:
    if _RANGES.are_cut(context.experiment):
        _RANGES.build(context)
    else:
        _build(context, schema=schemas.CORPUS, ingest=ingest_corpus)


def _build_qrels(context: StageContext) -> None:
    corpus, queries = context.inputs["ingest.corpus"].paths(), context.inputs["ingest.queries"].paths()
    ingest = partial(ingest_qrels, settings=context.experiment.ingest, corpus=corpus, queries=queries)
    _build(context, schema=schemas.QRELS, ingest=ingest)


def _key(files: Callable[[Collection], dict[str, Path]], experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    collection = _collection(experiment)
    return {"format": collection.format, "files": {name: models.digests.file(file) for name, file in files(collection).items()}}


def corpus_files(collection: Collection) -> dict[str, Path]:
    """Of the passages, by names that do not depend on where the collection lies."""
    return numbered_files("corpus", collection.corpus)


def query_files(collection: Collection) -> dict[str, Path]:
    """With the qrels, which decide which queries are kept."""
    return {**{f"queries{place}": file for place, file in enumerate(collection.queries)}, **_qrels_files(collection)}


def _qrels_files(collection: Collection) -> dict[str, Path]:
    return {name: file for split, files in collection.qrels.items() for name, file in numbered_files(split, files).items()}


CORPUS = Table(
    stage="ingest", name="corpus", version=1, reads=(), key=partial(_key, corpus_files),
    build=_build_corpus, sharded_by="corpus", builds_all_shards=True, rounds=_RANGES.rounds(), groups=_RANGES.groups,
)  # fmt: skip
QUERIES = Table(
    stage="ingest", name="queries", version=1, reads=(), key=partial(_key, query_files),
    build=partial(_build, schema=schemas.QUERIES, ingest=ingest_queries), builds_all_shards=True,
)  # fmt: skip
QRELS = Table(
    stage="ingest", name="qrels", version=1, reads=("ingest.corpus", "ingest.queries"),
    key=partial(_key, _qrels_files), build=_build_qrels, sharded_by="nothing", builds_all_shards=True,
)  # fmt: skip
