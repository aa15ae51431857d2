"""`prep import`: scored lists of others into a collection, a run, and logits of a declared teacher.

    OUT/corpus.jsonl, queries.jsonl                     texts in BEIR's layout, unless `collection=` gives them
    OUT/qrels/SPLIT.tsv                                 the positives of the lists
    OUT/lists.trec                                      the candidates of each query, without its positives, in the order of its list
    OUT/quarantine/                                     broken records, with file, line and reason
    OUT/experiment.yaml, OUT/import.json                settings to start from; what was imported
    STORE/teacher_logits/<namespace>/                   the scores as logits of the declared teacher

The lists are read once, a batch at a time. What has to meet, the candidates of a query and the texts of an id, is brought together by hash
on disk, so memory does not grow with the number of pairs. OUT appears whole or not at all, when the logits are in the store.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from data.errors import UserError
from data.files.leftovers import remove_leftovers, temporary_name
from data.formats.collection import Collection
from data.formats.scored_lists.batches import Companions, ListBatch
from data.logits.store import LogitStore
from data.store.paths import shown
from data.tables.shards import shard_name, write_shard
from pipeline.interchange.lists_in import joining
from pipeline.interchange.lists_in.collecting import Collector
from pipeline.interchange.lists_in.counting import ImportReport, Places
from pipeline.interchange.lists_in.first_texts import FirstTexts
from pipeline.interchange.lists_in.grouping import LOGITS, ROWS, Grouped, Rules, group
from pipeline.interchange.lists_in.in_order import in_order, write_lists
from pipeline.interchange.lists_in.request import ImportRequest
from pipeline.interchange.lists_in.spill import Spill
from pipeline.interchange.lists_in.starting_file import EXPERIMENT_NAME, RUN_NAME, read_import, write_experiment, write_import
from pipeline.interchange.lists_in.storing import NewLogits
from pipeline.stage import Say

_BUCKETS = 256  # of pairs and texts: a bucket of 100 M pairs is 40 MB
_QUARANTINE = "quarantine"
_OWN_SPLIT = (
    "a run asks for them, too, and stops; to train on those of the lists alone, copy OUT/qrels into the collection as a split of another "
    "name, and name it in ingest.train_split"
)


def run_import(args: list[str], *, say: Say) -> None:
    """Import what `path=` names."""
    if "format=pairs" in args:
        from pipeline.interchange.answers import import_pairs

        import_pairs(args, say=say)
        return
    request = ImportRequest.of(args)
    key = request.key()
    if _is_done(request, key):
        say(f"{request.out} is of this import already: nothing to do")
        return
    remove_leftovers(request.out.parent, of=request.out.name)
    folder = temporary_name(request.out)
    folder.mkdir()
    try:
        _Import(request, key, folder, say).run()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_done(request: ImportRequest, key: dict[str, Any]) -> bool:
    """Whether `out=` holds this import. Raises UserError where it holds something else."""
    out = request.out
    names = sorted(set(os.listdir(out)) - {_QUARANTINE}) if out.exists() else []
    if not names:
        return False
    there, logits = read_import(out)
    if there is None:
        raise UserError(f"out={out} is a folder with other files ({names[0]}); give a new or an empty one")
    if there != key:
        changed = [name for name in key if there.get(name) != key[name]]
        raise UserError(f"out={out} is of another import ({', '.join(changed)} differ): give another folder, or delete this one")
    if (request.teacher and request.store and logits) and not LogitStore(request.store, request.teacher.namespace).segment_paths():
        raise UserError(f"out={out} is of this import, whose logits are no longer in {shown(request.store)}: delete {out} and import again")
    return True


class _Pairs(NamedTuple):
    """Candidates with their keys: all rows of a query in one table."""

    tables: Iterator[pa.Table]
    in_order: bool  # whether queries come in the order of reading


class _Import:
    """One import, into a folder that becomes `out=` at the end."""

    def __init__(self, request: ImportRequest, key: dict[str, Any], folder: Path, say: Say) -> None:
        self._request, self._key, self._folder, self._say = request, key, folder, say
        self._spills = folder / "spills"
        self._spills.mkdir()
        self._report = ImportReport(Places(self._spills / "places"))

    def run(self) -> None:
        """All steps in order; nothing is seen outside of the folder before the last."""
        request, report = self._request, self._report
        collection = request.texts
        companions = None if collection else request.reader.companions(request.path, request.options)
        collected = self._collect(with_texts=collection is None and companions is None)
        pairs, rules, queries, passages = self._with_keys(collected, collection, companions)
        logits = Spill(self._spills / "logits", LOGITS, buckets=_BUCKETS)
        grouped = Grouped()
        lists = group(pairs.tables, logits, rules=rules, report=report, grouped=grouped)
        if not pairs.in_order:
            lists = in_order(lists, Spill(self._spills / "rows", ROWS, buckets=_BUCKETS), count=report.places.count)
        self._qrels.parent.mkdir()
        write_lists(lists, run=self._folder / RUN_NAME, qrels=self._qrels)
        new = NewLogits(request.store, request.teacher, say=self._say) if request.store and request.teacher and collected.scored else None
        if new:
            logits = new.check(logits, self._spills, report)
        self._refuse(collected)
        if queries and passages:
            self._write_collection(queries, passages)
        self._write_notes(grouped, scored=bool(collected.scored))
        added = new.append(logits) if new else 0
        shutil.rmtree(self._spills)
        _appear(self._folder, request.out)
        self._tell(collected, grouped, added)

    def _collect(self, *, with_texts: bool) -> Collector:
        request, report = self._request, self._report
        collector = Collector(
            self._spills,
            with_texts=with_texts,
            kind=request.kind,
            report=report,
            buckets=_BUCKETS if with_texts else joining.BUCKETS,
        )
        for batch in request.reader.read(request.path, request.options):
            if with_texts and not report.places.count:
                _refuse_ids_alone(batch, request)
            collector.add(batch)
            if collector.scored and request.teacher is None:
                raise UserError(
                    f"{request.given} has scores: say whose they are, teacher=NAME [revision=1] [scores=logit|probability|cosine], and "
                    "where they go, store=FOLDER or config=FILE"
                )
        if not report.read["lists"]:
            raise UserError(f"{request.given} holds no list (read as {request.reader.name})")
        return collector

    def _with_keys(
        self, collected: Collector, collection: Collection | None, companions: Companions | None
    ) -> tuple[_Pairs, Rules, FirstTexts | None, FirstTexts | None]:
        """The pairs with the keys of their logits, what decides about them, and the texts of the collection to be written."""
        none = np.empty(0, np.uint64)
        drop = self._request.drop_unscored and collected.scored > 0
        if collected.queries and collected.passages:
            self._need_positives(collected)
            wrong = collected.queries.settle(), collected.passages.settle()
            several = collected.pairs.finish()
            tables = collected.pairs.by_query() if several else collected.pairs.tables()
            return _Pairs(tables, in_order=not several), Rules(drop, *wrong), collected.queries, collected.passages
        queries = passages = None
        if collection is not None:
            source = joining.of_collection(collection, split=self._request.options.split)
        else:
            assert companions is not None
            self._need_positives(collected)
            queries, passages = (FirstTexts(self._spills, name, buckets=_BUCKETS) for name in ("queries", "passages"))
            source = joining.of_companions(companions, queries=queries, passages=passages, report=self._report)
        joiner = joining.Joiner(self._spills, source, self._report)
        pairs = joiner.join(collected.ids)
        if joiner.judged_elsewhere:
            self._report.told["positives of the lists that the collection does not label, now candidates"] = joiner.judged_elsewhere
        if joiner.unscored_labels and collected.scored:
            self._report.told[f"positives of the collection that no list scores: {_OWN_SPLIT}"] = joiner.unscored_labels
        for texts in filter(None, (queries, passages)):
            if len(wrong_texts := texts.settle()):
                self._report.told["records beside the lists with another text for an id; the first stays"] += len(wrong_texts)
        return _Pairs(pairs, in_order=False), Rules(drop, none, none), queries, passages

    def _need_positives(self, collected: Collector) -> None:
        """Without a positive nothing can be trained. Where every record is broken, that is what is said."""
        if not collected.positives and self._report.read["candidates"] > self._report.broken_candidates:
            self._refuse_broken()  # a positive may be among the broken ones
            said = "says of no candidate that it is relevant" if collected.judged == 0 else "has negatives alone"
            raise UserError(
                f"{self._request.given} {said}: give the collection that it is of, collection=FOLDER, whose qrels say which passages are "
                "positives"
            )

    def _refuse(self, collected: Collector) -> None:
        """Raises UserError where too much is broken, or nothing is left; then the broken records lie in OUT/quarantine."""
        request, report = self._request, self._report
        self._refuse_broken()
        if not report.kept["positives"]:
            where = f"the collection's qrels of split {request.options.split!r} label" if request.collection else "the lists have"
            raise UserError(f"{request.given}: {where} no candidate of any list as a positive: do they belong together?")

    def _refuse_broken(self) -> None:
        report = self._report
        try:
            report.check(max_bad_fraction=self._request.max_bad_fraction, quarantine=_quarantine(self._request.out))
        except UserError:
            write_shard(_quarantine(self._request.out), report.faults, {"counts": report.counts})
            raise

    @property
    def _qrels(self) -> Path:
        return self._folder / "qrels" / f"{self._request.options.split}.tsv"

    def _write_collection(self, queries: FirstTexts, passages: FirstTexts) -> None:
        passages.write(self._folder / "corpus.jsonl")
        queries.write(self._folder / "queries.jsonl")
        self._report.kept["passages"] = passages.kept

    def _write_notes(self, grouped: Grouped, *, scored: bool) -> None:
        report = self._report
        if report.is_broken:
            write_shard(_quarantine(self._folder), report.faults, {"counts": report.counts})
        write_import(self._folder, self._key, report.counts)
        write_experiment(self._folder, self._request, grouped, scored=scored)

    def _tell(self, collected: Collector, grouped: Grouped, added: int) -> None:
        request, report, say = self._request, self._report, self._say
        for what, count in sorted(report.told.items()):
            say(f"note: {count:,} {what}")
        if request.kind == "logit" and collected.scored > 1 and collected.lowest >= 0 and collected.highest <= 1:
            say("note: all scores lie between 0 and 1: these look like probabilities, whose sigmoid scores=probability undoes")
        if collected.scored and grouped.unscored:
            say(f"note: {grouped.unscored:,} positives and candidates of the run have no score: a run stops until they have one")
        if request.teacher and not collected.scored:
            say(f"note: no scores in it: nothing is stored for teacher={request.teacher.name}")
        if report.is_broken:
            say(f"broken and left out: {report.reasons}; listed in {_quarantine(request.out)}")
        if report.dropped:
            say(f"left out: {', '.join(f'{count:,} {reason}' for reason, count in sorted(report.dropped.items()))}")
        say(f"kept: {', '.join(f'{count:,} {what}' for what, count in report.kept.items())}, of {report.read['lists']:,} lists")
        if request.teacher and request.store and collected.scored:
            teacher, where = request.teacher, shown(request.store)
            say(f"stored {added:,} logits of {teacher.name}, revision {teacher.revision}, in {where} ({teacher.namespace[:12]})")
        models = "student" if collected.scored else "student and teacher"
        say(f"next: say which {models} in {request.out / EXPERIMENT_NAME}, then: prep run config={request.out / EXPERIMENT_NAME}")


def _quarantine(folder: Path) -> Path:
    return folder / _QUARANTINE / shard_name(0, 1)


def _refuse_ids_alone(batch: ListBatch, request: ImportRequest) -> None:
    queries, candidates = batch.queries, batch.candidates
    for what, table in (("queries", queries), ("candidates", candidates)):
        if table.num_rows and table.column("text").null_count == table.num_rows:
            raise UserError(
                f"{request.given} gives ids of {what} without texts ({batch.file}, read as {request.reader.name}): give the collection "
                "that has their texts, collection=FOLDER"
            )


def _appear(folder: Path, out: Path) -> None:
    """Give the finished folder its name. A quarantine of an import that was stopped makes room."""
    for path in [*folder.rglob("*")]:
        if path.is_file():
            with open(path, "rb+") as file:
                os.fsync(file.fileno())
    shutil.rmtree(out / _QUARANTINE, ignore_errors=True)
    try:
        os.rename(folder, out)
    except OSError as error:
        raise UserError(f"out={out} has come to hold something since the import began ({error.strerror}): start it again") from error
