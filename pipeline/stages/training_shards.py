"""Stage `shards`: the self-contained training rows: the student's tokens, the kinds, the teacher's logits and C(q).

A row is a query and draw. With a curriculum a draw is an iteration, and the lists are those of `curriculum`, with their labels. Rows are
shuffled by a hash of seed and query id, and written in small row groups, since a trainer holds several of them at a time. The Arrow
schema's metadata under `training` says what a trainer must know before it reads a row: schema version, digest of the student's tokenizer,
teachers, draws. The pools say which passages are never negatives of a query, for losses over the batch's other passages.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.digests import canonical_json, hash64
from data.tables.schemas import GRADED_VERSION, LABELLED_VERSION, TRAINING_SCHEMAS, TRAINING_VERSION
from data.tables.shards import TRAINING_GROUP_ROWS
from pipeline.scoring.reading_lengths import longest_mixed
from pipeline.stage import StageContext, Table
from pipeline.stages.lists import export_of, marks_of_lists
from pipeline.stages.training_rows import Encode, Encoders, read_rows
from retrieval.model_files.model_lengths import check_length
from retrieval.models.marks import Marks
from retrieval.models.resolved import ResolvedModels
from retrieval.models.student import StudentSpec
from retrieval.models.tokenizer import Tokenizer, tokenizer_of


def _metadata(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    of_lists = _of_export(experiment) if experiment.lists.path else metadata_of_lists(experiment, models)
    return {"tokenizer": models.student.tokenizer_digest, **of_lists}


def metadata_of_lists(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    """What the shards say of the lists, whoever the student is."""
    of_all = {
        "teachers": [] if experiment.teacher.backend == "none" else [models.namespace],
        "draws": experiment.draws,
        "negatives_source": experiment.hard_negatives.canonical_source,
    }
    if experiment.curriculum.enabled:
        iterations = list(experiment.curriculum.iterations)
        return {**of_all, "schema_version": LABELLED_VERSION, "negatives": 0, "mask_ratios": [], "curriculum": iterations}
    negatives, ratios = experiment.hard_negatives.num_negatives, list(experiment.dark_examples.mask_ratios)
    version = GRADED_VERSION if experiment.hard_negatives.positive_grades else TRAINING_VERSION
    return {**of_all, "schema_version": version, "negatives": negatives, "mask_ratios": ratios}


def _of_export(experiment: Experiment) -> dict[str, Any]:
    """The same of exported lists: what the shards of the store that they came from say."""
    training = export_of(experiment).training
    names = ("teachers", "draws", "negatives_source", "negatives", "mask_ratios")
    found = {name: getattr(training, name) for name in names} | ({"order": training.order} if training.order else {})
    if training.curriculum:
        return {**found, "schema_version": LABELLED_VERSION, "curriculum": training.curriculum}
    return {**found, "schema_version": TRAINING_VERSION}


def _student_reads(experiment: Experiment, models: ResolvedModels) -> tuple[Marks, int]:
    """(what stands for the marks of dark examples, tokens of the longest mixed passage) in what the student reads."""
    if not experiment.lists.path:
        return models.student_marks, longest_mixed(models)
    given = experiment.dark_examples.mixed_tokens or export_of(experiment).training.mixed_tokens
    return marks_of_lists(models), given or models.student.passage_tokens


def _build(context: StageContext) -> None:
    experiment = context.experiment
    models = context.models
    student = models.student
    tokenizer = context.worker_cache.get_or_create("student tokenizer", lambda: tokenizer_of(student))
    metadata = _metadata(experiment, models)
    marks, longest = _student_reads(experiment, models)
    version = metadata["schema_version"]
    rows = read_rows(
        context.inputs,
        context.shard,
        _encoders(student, tokenizer, marks=marks, mixed_tokens=longest),
        labelled=version == LABELLED_VERSION,
        graded_by=experiment.ingest.train_split if version == GRADED_VERSION else None,
    )
    order = _shuffled(rows.query_ids.to_pylist(), rows.draws.tolist(), seed=experiment.seed)
    schema = TRAINING_SCHEMAS[version].with_metadata({"training": canonical_json(metadata)})
    with context.writer(context.shard, schema) as writer:
        for start in range(0, len(order), TRAINING_GROUP_ROWS):
            part = order[start : start + TRAINING_GROUP_ROWS]
            writer.write_row_group(rows.table(part))
            context.report("queries", len(part))
        counts = {"in": len(order), "kept": len(order), "dropped": {}}
        writer.figures["counts"] = {**counts, "candidates": len(rows.logits), "candidate tokens": rows.candidate_tokens}


def _encoders(student: StudentSpec, tokenizer: Tokenizer, *, marks: Marks, mixed_tokens: int) -> Encoders:
    """How the student reads queries, passages and mixed passages."""

    def encoder(prefix: str, max_tokens: int) -> Encode:
        return lambda texts: tokenizer.encode([prefix + marks.read(text) for text in texts], max_tokens=max_tokens)

    passage, mixed = (encoder(student.passage_prefix, longest) for longest in (student.passage_tokens, mixed_tokens))
    return Encoders(encoder(student.query_prefix, student.query_tokens), passage, mixed)


def _shuffled(query_ids: list[str], draws: list[int], *, seed: int) -> NDArray[np.int64]:
    """The lists' numbers in the order of a hash of seed, query and draw."""
    keys = [(hash64(seed, "order", query_id, draw), query_id, draw) for query_id, draw in zip(query_ids, draws, strict=True)]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)


def _key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    student = models.student
    marks, longest = _student_reads(experiment, models)
    check_length(longest, student.weights_folder, option="dark_examples.mixed_tokens")
    lengths = {"query_tokens": student.query_tokens, "passage_tokens": student.passage_tokens, "mixed_tokens": longest}
    prefixes = {"query_prefix": student.query_prefix, "passage_prefix": student.passage_prefix}
    graded = {"positive_grades": experiment.ingest.train_split} if experiment.hard_negatives.positive_grades else {}
    return {**_metadata(experiment, models), **lengths, **prefixes, "seed": experiment.seed, **marks.key, **graded}


OF_CURRICULUM = Table(stage="shards", version=3, reads=("curriculum", "pools.ranked"), key=_key, build=_build)


OF_LISTS = replace(OF_CURRICULUM, reads=("lists", "lists.never"))


def table(experiment: Experiment) -> Table:
    """The table of lists with one p+; without a teacher it has no logits to read, and logits and C(q) are no numbers."""
    scores = () if experiment.teacher.backend == "none" else ("teacher_scores", "confidence")
    promoted = ("hard_negatives",) if experiment.hard_negatives.promote_margin is not None else ()
    labels = ("ingest.qrels",) if experiment.hard_negatives.positive_grades else ()
    return replace(OF_CURRICULUM, reads=("dark_examples", *scores, "pools.ranked", *promoted, *labels))
