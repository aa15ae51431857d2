"""Stage `pools`, table `ranked`: for each training query its labelled positives and a ranked pool from each source, without them.

What is never a negative of the query is removed: see `pipeline.negatives.never_negatives`. Nothing here depends on how many negatives are
drawn, how, or on the teacher: the search is done once for all that.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from data.config.negative_sources import SOURCES, Source
from data.config.registry import is_import_path
from data.config.settings import Experiment, HardNegatives
from data.errors import UserError
from data.formats.trec import check_run, read_entries
from data.remote.cache import local_file
from data.tables import schemas
from data.tables.ragged import bounds_of
from data.tables.shards import ROW_GROUP_ROWS
from pipeline.negatives.corpus import Corpus
from pipeline.negatives.never_negatives import IDENTICAL, REASONS, Never
from pipeline.negatives.search_index import searching_key
from pipeline.negatives.sources import PoolSource, Ranking, RunFile, ScoringSource, StudentSearch, make_source, plugin_keys
from pipeline.pooling.asked import Asked, TrainingQuery, corpus_of, find_asked, read_asked
from pipeline.pooling.blocks import Block
from pipeline.pooling.rounds import blocks_to_merge, rounds_of
from pipeline.stage import StageContext, Stored, Table
from retrieval.models.resolved import ResolvedModels

_RANKED_AT_ONCE = 1 << 23  # entries of a ranking in memory, about 40 bytes each while they are sorted
_WRITTEN_AT_ONCE = 1 << 20  # entries of a row group
REMOVED = "removed from pools"
NOTHING = "queries for which a source has no passage"
UNKNOWN = "entries of the run of unknown passages"
RECALL = "recall of the index on sampled queries"


def pool_of(rows: NDArray[np.int64], never: Never, *, depth: int, removed: Counter[str]) -> NDArray[np.int64]:
    """Places in a query's ranked list that stay when what is never its negative is removed, at most `depth`; counts why in `removed`.

    `rows` [k] are rows of the corpus, best first, -1 after the last.
    """
    found = rows[: int((rows >= 0).sum())]
    barred = np.isin(found, never.rows)
    removed.update(REASONS[reason] for reason in never.reasons[np.searchsorted(never.rows, found[barred])].tolist())
    return np.flatnonzero(~barred)[:depth]


def _build(context: StageContext) -> None:
    experiment, settings = context.experiment, context.experiment.hard_negatives
    corpus, blocks = corpus_of(context), blocks_to_merge(context)
    queries = context.inputs["ingest.queries"].read(context.shard)
    found = read_asked(context, context.shard) if blocks else find_asked(context, context.shard)
    asked, k = found.queries, found.k
    queries = queries.filter(pc.is_in(queries.column("query_id"), value_set=pa.array([one.query_id for one in asked], pa.string())))
    sources = {source: _source(source, context, queries, corpus, found, blocks) for source in settings.sources}
    student = next((source for source in sources.values() if isinstance(source, ScoringSource)), None)

    removed: Counter[str] = Counter()
    nothing: Counter[str] = Counter()
    with context.writer(context.shard, schemas.POOLS) as writer:
        for first, stop in _pieces(len(asked), _RANKED_AT_ONCE // k):
            rankings = {source: made.rank(first, stop, k=k) for source, made in sources.items()}
            for start, end in _pieces(stop - first, min(ROW_GROUP_ROWS, _WRITTEN_AT_ONCE // (k * len(sources)))):
                ranked = [(one, place) for place, one in enumerate(asked[first + start : first + end], start)]
                pools = [_pools_of(one, place, rankings, depth=settings.depth, removed=removed) for one, place in ranked]
                nothing.update(source.name for made in pools for source, rows in zip(sources, made.rows, strict=True) if not len(rows))
                of_student = [student.scores_of(first + place, one.positives) if student else None for one, place in ranked]
                writer.write_row_group(_table([one for one, _ in ranked], of_student, pools, corpus))
                context.report("queries", end - start)
        counts: dict[str, Any] = {"in": len(asked), "kept": len(asked), "dropped": {}, REMOVED: removed}
        counts |= {NOTHING: nothing} if nothing else {}
        counts.update((UNKNOWN, made.unknown) for made in sources.values() if isinstance(made, RunFile))
        if isinstance(student, StudentSearch):
            hits, total = student.recall(k=settings.depth, queries=experiment.search.recall_queries)
            counts[RECALL] = {"found": hits, "of": total}
        writer.figures["counts"] = counts


def _source(
    source: Source, context: StageContext, queries: pa.Table, corpus: Corpus, asked: Asked, blocks: list[Block] | None
) -> PoolSource:
    """What ranks; of `blocks` their results are merged."""
    if source.name == SOURCES[0] and blocks is not None:
        from pipeline.pooling.merged_search import MergedSearch

        return MergedSearch(context, blocks, asked, corpus)
    made = make_source(source.name, context, queries, corpus)
    if isinstance(made, StudentSearch):
        made.watch(asked.positives.values)
    return made


def _pieces(count: int, size: int) -> Iterator[tuple[int, int]]:
    size = max(1, size)
    return ((start, min(start + size, count)) for start in range(0, count, size))


class Pools(NamedTuple):
    """A query's pools, of each source in turn."""

    rows: list[NDArray[np.int64]]
    scores: list[NDArray[np.float32]]
    sources: list[NDArray[np.int8]]


def _pools_of(query: TrainingQuery, place: int, rankings: dict[Source, Ranking], *, depth: int, removed: Counter[str]) -> Pools:
    """The pools of the query at a place of the rankings."""
    pools = Pools([], [], [])
    for source, (rows, scores) in rankings.items():
        kept = pool_of(rows[place], query.never, depth=depth, removed=removed)
        pools.rows.append(rows[place][kept])
        pools.scores.append(scores[place][kept])
        pools.sources.append(np.full(len(kept), source.number, np.int8))
    return pools


def _table(mine: list[TrainingQuery], of_student: list[NDArray[np.float32] | None], pools: list[Pools], corpus: Corpus) -> pa.Table:
    def lists(lengths: list[int], values: pa.Array) -> pa.ListArray:
        return pa.ListArray.from_arrays(pa.array(bounds_of(np.array(lengths)).astype(np.int32)), values)

    lengths = [sum(map(len, one.rows)) for one in pools]
    rows, scores, sources = (np.concatenate(list(itertools.chain(*column))) for column in zip(*pools, strict=True))
    columns = [
        pa.array([query.query_id for query in mine], pa.string()),
        lists([len(query.positives) for query in mine], corpus.ids_of(np.concatenate([query.positives for query in mine]))),
        pa.array(of_student, pa.list_(pa.float32())),
        lists(lengths, corpus.ids_of(rows)),
        lists(lengths, pa.array(scores)),
        lists(lengths, pa.array(sources)),
        pa.array([sorted(corpus.ids_of(query.never.rows).to_pylist()) for query in mine], pa.list_(pa.string())),
    ]
    return pa.table(columns, schema=schemas.POOLS)


def window_places(numbers: NDArray[np.int8], source: Source) -> NDArray[np.int64]:
    """Places in a pool (its `ranked_sources`) that lie in the source's rank window, best first."""
    return np.flatnonzero(numbers == source.number)[source.first_rank - 1 : source.last_rank]


def _key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    settings = experiment.hard_negatives
    names = [source.name for source in settings.sources]
    key: dict[str, Any] = {"sources": names, "depth": settings.depth, "queries": settings.queries, "split": experiment.ingest.train_split}
    key |= searching_key(experiment) if "student" in names else {}
    plugins = plugin_keys(names)
    key |= {"plugins": plugins} if plugins else {}
    if "random" in names or plugins or settings.queries is not None:
        key["seed"] = experiment.seed
    if "run" in names:
        run_file = local_file(settings.run_file or "")
        check_run(run_file, option="hard_negatives.run_file")
        key["run_digest"] = models.digests.file(run_file)
    if "bm25" in names and settings.bm25_stopwords != HardNegatives.model_fields["bm25_stopwords"].default:
        key["bm25_stopwords"] = settings.bm25_stopwords
    if settings.ignore_identical_ids != "auto":
        key["ignore_identical_ids"] = settings.ignore_identical_ids
    return key


def _summary(experiment: Experiment, counts: dict[str, Any]) -> str:
    lines = []
    if unknown := counts.get(UNKNOWN):
        lines.append(f"{unknown:,} entries of hard_negatives.run_file name passages that are not in the corpus; they are left out")
    for name, queries in counts.get(NOTHING, {}).items():
        more = ", which get their negatives from the other sources" if len(experiment.hard_negatives.sources) > 1 else ""
        lines.append(f"{_setting_of(name, experiment)} has no passage for {queries:,} of {counts['in']:,} queries{more}")
    if identical := sum(counts[REMOVED].get(reason, 0) for reason in IDENTICAL):
        lines.append(
            f"{identical:,} passages that are the query itself, or have its text, are left out of the pools "
            "(hard_negatives.ignore_identical_ids=false keeps them)"
        )
    if recall := counts.get(RECALL):
        share = recall["found"] / max(1, recall["of"])
        lines.append(f"search.index found {share:.2%} of the {recall['of']:,} passages that exact search finds for sampled queries")
    return "; ".join(lines)


def _setting_of(name: str, experiment: Experiment) -> str:
    return f"hard_negatives.run_file={experiment.hard_negatives.run_file}" if name == "run" else f"hard_negatives.source={name}"


def _refuse(experiment: Experiment, stored: Stored) -> None:
    """A source that finds nothing at all would leave its share of the negatives to the others, or nothing to anyone."""
    counts, settings = stored.manifest.counts, experiment.hard_negatives
    for name, queries in counts.get(NOTHING, {}).items():
        if not queries or queries < counts["in"]:
            continue
        example = next(group.column("query_id")[0].as_py() for group in stored.row_groups(columns=["query_id"]) if group.num_rows)
        hint = f"all {settings.depth:,} that it finds for each are positives, or the query itself; raise hard_negatives.depth"
        if name == "run":
            entry = next(read_entries(local_file(settings.run_file or "")), None)
            its_first = f"its first line is of query {entry.query_id}; " if entry else ""
            hint = f"{its_first}give a run of these queries, with the ids of queries and passages that are in the collection"
        elif name == "bm25":
            stop_words = f"stop words aside (hard_negatives.bm25_stopwords={settings.bm25_stopwords})"
            hint = f"no passage has a word of theirs, {stop_words}; are queries and passages in one language?"
        elif is_import_path(name):
            hint = "its lists are empty, or hold nothing but positives and the query itself"
        found = f"{_setting_of(name, experiment)} has no passage for any of the {queries:,} training queries, such as {example}"
        raise UserError(f"{found}: {hint}")


def table(experiment: Experiment) -> Table:
    """The table for the sources of an experiment: only the student's search needs embeddings."""
    base = ("ingest.corpus", "ingest.queries", "ingest.qrels")
    student = any(source.name == SOURCES[0] for source in experiment.hard_negatives.sources)
    vectors = ("embed.corpus", "embed.queries", *(["index"] if experiment.uses_index else [])) if student else ()
    return Table(
        stage="pools", name="ranked", version=2, reads=(*base, *vectors), key=_key, build=_build, uses_device=student,
        rounds=rounds_of(experiment), summary=partial(_summary, experiment), refuse=partial(_refuse, experiment),
    )  # fmt: skip
