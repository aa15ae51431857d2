"""Dev sets of small collections (`dev.collections`), each whole: all of its passages, all judged queries of one split.

So their figures are those that are published of the collections (NanoBEIR's thirteen), with texts cut to the student's lengths.
Broken records are counted, listed and refused as `pipeline.stages.ingest` does.
"""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from data.config.settings import Experiment
from data.digests import canonical_json, json_digest
from data.errors import RunFailed, UserError
from data.formats.collection import Collection, find_collection
from data.formats.ir_datasets_copy import is_ir_datasets
from data.formats.readers import Fault, read_corpus
from data.formats.record_counts import RecordCounts
from data.remote.object_store import is_remote
from data.store.paths import shown
from data.tables import schemas
from data.tables.shards import write_shard
from pipeline.stage import StageContext, Table
from pipeline.stages.dev.rows import metadata, row_groups, token_key
from pipeline.stages.ingest import check_bad_fraction, check_judgements, ingest_corpus, ingest_queries, known_labels
from pipeline.stages.ingest_tables import corpus_files, quarantine_file, query_files
from retrieval.models.resolved import ResolvedModels

_SETTING = "dev.collections"
_NAME_CHARS = 50  # 200 bytes at most; the rest of a file's 255 is the fingerprint's
_sized: set[tuple[str, int]] = set()  # (digest of a collection, passages at most) that this process has counted


@dataclass(frozen=True)
class Source:
    """A folder of a collection, and what its dev set is called."""

    name: str
    path: str


def tables(experiment: Experiment) -> list[Table]:
    """A table for each collection. Raises UserError where two would have one name."""
    return [_table(source) for source in sources(experiment)]


def _table(source: Source) -> Table:
    return Table(
        stage="dev", name=source.name, version=1, reads=(), key=partial(_key, source), build=partial(_build, source), sharded_by="nothing"
    )


def sources(experiment: Experiment) -> list[Source]:
    """The collections by name, in the order of the setting; a folder that is named twice, or by two patterns, once.

    Raises UserError where two folders, or one and the dev set of `dev.queries`, would have one name.
    """
    paths = dict.fromkeys(path for given in experiment.dev.collections for path in _expanded(given))
    found = [Source(_name(path), path) for path in paths]
    by_name: dict[str, str] = {"dev": "dev.queries"} if experiment.dev.queries else {}
    for source in found:
        other = by_name.setdefault(source.name.casefold(), source.path)
        if other != source.path:
            raise UserError(
                f"{_SETTING}: {source.path} and {other} would both be the dev set {source.name}, and nobody could tell their figures "
                "apart: give one of the folders another name (a symbolic link will do)"
            )
    return found


def _expanded(given: str) -> list[str]:
    """The folders of a pattern. One that matches nothing stays, to be refused when it is read."""
    if is_remote(given):
        return [given.rstrip("/")]
    if os.path.exists(given) or not glob.has_magic(given):
        return [os.path.abspath(given)]
    return [os.path.abspath(path) for path in sorted(glob.glob(given)) if os.path.isdir(path)] or [given]


def _name(path: str) -> str:
    """The folder's name in characters that are safe in the names of files, tables and curves."""
    name = unicodedata.normalize("NFC", path.rstrip("/").rpartition("/")[2])
    return re.sub(r"[^\w.-]", "_", name)[:_NAME_CHARS] or "_"


def _collection(source: Source, experiment: Experiment) -> tuple[Collection, str]:
    """The collection with the one split that is searched for, and the split's name.

    Raises UserError, naming the setting: no such folder, no collection in it, no such split, the split that is trained on.
    """
    if is_remote(source.path) and glob.has_magic(source.path):
        raise UserError(f"{_SETTING}: {source.path}: a pattern is of local folders; name those of an object store one by one")
    if not is_remote(source.path) and not is_ir_datasets(source.path) and not os.path.isdir(source.path):
        what = "no folder is called so" if glob.has_magic(source.path) else "no such folder"
        raise UserError(f"{_SETTING}: {source.path}: {what}; give folders in BEIR or MS MARCO layout, or a pattern of theirs as nano/*")
    try:
        collection = find_collection(source.path)
    except RunFailed:
        raise
    except UserError as error:
        raise UserError(f"{_SETTING}: {error}{_below(source.path)}") from error
    split = _split(collection, experiment)
    trained_on = experiment.ingest.path
    if trained_on and os.path.realpath(trained_on) == os.path.realpath(source.path) and split == experiment.ingest.train_split:
        raise UserError(f"{_SETTING}: {source.path}: its split {split} is trained on (ingest.train_split); set dev.collections_split")
    return replace(collection, qrels={split: collection.qrels[split]}), split


def _below(path: str) -> str:
    """What to say of a folder that holds collections, and is none."""
    below = sorted(Path(path).iterdir()) if not is_remote(path) else []
    for folder in below:
        with contextlib.suppress(UserError):
            if folder.is_dir() and find_collection(folder):
                return f"; the folder {folder.name} below it is a collection: for all of them set {_SETTING}={path}/*"
    return ""


def _split(collection: Collection, experiment: Experiment) -> str:
    settings, there = experiment.dev, list(collection.qrels)
    wanted = settings.collections_split or settings.split
    if wanted in there:
        return wanted
    if len(there) == 1 and settings.collections_split is None:
        return there[0]
    raise UserError(f"{_SETTING}: {collection.folder} has no qrels of split {wanted}, it has {', '.join(there)}: set dev.collections_split")


def _key(source: Source, experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    collection, split = _collection(source, experiment)
    check_judgements(collection, split=split, setting=_SETTING)
    of_corpus, others = ({name: models.digests.file(file) for name, file in of(collection).items()} for of in (corpus_files, query_files))
    _check_size(collection, json_digest(of_corpus), experiment)
    return {
        "collection": {"format": collection.format, "corpus": of_corpus, "queries": others},
        "split": split,
        **token_key(models.student),
    }


def _check_size(collection: Collection, digest: str, experiment: Experiment) -> None:
    """Raises UserError where the corpus is too large, before any other stage works for hours. `digest` is that of its files."""
    most = experiment.dev.max_passages
    if (digest, most) in _sized:
        return
    passages = (record for _, record in read_corpus(collection) if not isinstance(record, Fault))
    if next(itertools.islice(passages, most, None), None) is not None:
        raise UserError(
            f"{_SETTING}: {collection.folder} has more than {most:,} passages, which every evaluation would encode: take a sample of it, "
            "or raise dev.max_passages"
        )
    _sized.add((digest, most))


class _Rows(list[Sequence[Any]]):
    """Rows of a small table, as a sink."""

    def add(self, row: Sequence[Any]) -> None:
        """Append one."""
        self.append(row)


def _build(source: Source, context: StageContext) -> None:
    collection, split = _collection(source, context.experiment)
    passages, queries = _Rows(), _Rows()
    reports = [ingest_corpus(collection, [passages]), ingest_queries(collection, [queries])]
    texts: dict[str, str] = {row[0]: row[1] for row in passages}
    asked: dict[str, str] = {row[0]: row[1] for row in queries}
    _refuse_too_many(context, reports)  # a broken file of queries, not the judgements that name none of them
    labels, report = known_labels(collection, asked.keys(), texts.keys())
    reports.append(report)
    _refuse_too_many(context, reports)
    _warn_of_some(context, reports)
    grades: dict[str, dict[str, int]] = {}
    for (_, query_id, doc_id), label in sorted(labels.items()):
        if label > 0:
            grades.setdefault(query_id, {})[doc_id] = label
    if not grades:
        where = f"split {split} of {collection.folder}"
        raise UserError(f"{_SETTING}: {where} has no label above 0 of a query and a passage that are there: {report.said}")
    doc_ids, student = sorted(texts), context.models.student
    told = metadata(student, split=split, name=source.name)
    with context.writer(0, schemas.DEV.with_metadata({"dev": canonical_json(told)})) as writer:
        ordered = {query_id: asked[query_id] for query_id in sorted(grades)}
        for table in row_groups(ordered, grades, doc_ids, [texts[doc_id] for doc_id in doc_ids], student=student):
            writer.write_row_group(table)
            context.report("rows", table.num_rows)
        writer.figures["counts"] = _counts(reports, without_positive=len(asked) - len(grades))


def _refuse_too_many(context: StageContext, reports: Sequence[RecordCounts]) -> None:
    """List the broken records, and raise UserError where they are too many of a file's."""
    quarantine = quarantine_file(context.folder)
    faults = pa.concat_tables([report.faults for report in reports])
    write_shard(quarantine, faults, {"fingerprint": context.fingerprint, "counts": [report.counts for report in reports]})
    for report in reports:
        check_bad_fraction(report, settings=context.experiment.ingest, quarantine=quarantine)


def _warn_of_some(context: StageContext, reports: Sequence[RecordCounts]) -> None:
    if broken := [report for report in reports if report.bad]:
        of, all_of = sum(report.bad for report in broken), sum(report.counts["in"] for report in reports)
        reasons, where = ", ".join(report.reasons for report in broken), shown(quarantine_file(context.folder))
        context.warn(f"{context.table.label}: {of:,} of {all_of:,} records are broken and left out ({reasons}); listed in {where}")


def _counts(reports: Sequence[RecordCounts], *, without_positive: int) -> Mapping[str, Any]:
    """Of passages, queries and judgements together; a query whose labels are all 0 is left out, too."""
    dropped = Counter[str]({"query without a label above 0": without_positive} if without_positive else {})
    for report in reports:
        dropped.update(report.dropped)
    read = sum(report.counts["in"] for report in reports)
    return {"in": read, "kept": read - dropped.total(), "dropped": dict(sorted(dropped.items()))}
