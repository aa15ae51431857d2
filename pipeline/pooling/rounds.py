"""What of the pools is done before their shards, once for all of them: the rounds of `pools.ranked`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from data.config.settings import Experiment
from data.store import mirror
from pipeline.pooling.asked import piece_name, write_asked
from pipeline.pooling.blocks import Block, Cut, cut_search
from pipeline.pooling.run_by_shard import RUN, split_run
from pipeline.stage import PIECES, Cutting, Piece, Round, StageContext, Stored

_NARROW = 4  # a block of queries is searched for single shards where less than a quarter of it is to be built


def rounds_of(experiment: Experiment) -> tuple[Round, ...]:
    """The rounds for an experiment's sources."""
    by_student = _searches_blocks(experiment)
    by_run = any(source.name == "run" for source in experiment.hard_negatives.sources)
    before = (Round(_cut_preparation, _prepare),) if by_student or by_run else ()
    return (*before, Round(_cut_search, _search)) if by_student else before


def blocks_to_merge(context: StageContext) -> list[Block] | None:
    """The blocks whose pieces have the student's results for the task's shard; None where its search does not go by blocks."""
    if not _searches_blocks(context.experiment):
        return None
    cut = _cut(context.experiment, context.inputs)
    whole = cut.queries_with(context.shard)
    is_whole = any(mirror.exists(context.piece_path(Block(whole, vectors).name)) for vectors in cut.vectors)
    queries = whole if is_whole else range(context.shard, context.shard + 1)
    return [Block(queries, vectors) for vectors in cut.vectors]


def _searches_blocks(experiment: Experiment) -> bool:
    return any(source.name == "student" for source in experiment.hard_negatives.sources) and not experiment.uses_index


def _cut_preparation(cutting: Cutting) -> list[Piece]:
    """What is asked for each shard that is searched for, and the run, which takes longest."""
    experiment, number = cutting.experiment, cutting.round
    by_run = any(source.name == "run" for source in experiment.hard_negatives.sources)
    run = [Piece(number, RUN, {"run": True})] if by_run else []
    blocks = _blocks_of_queries(cutting) if _searches_blocks(experiment) else []
    return [*run, *(Piece(number, piece_name(shard), {"shard": shard}) for queries in blocks for shard in queries)]


def _prepare(context: StageContext, piece: Piece) -> None:
    (split_run if "run" in piece.values else write_asked)(context, piece)


def _cut_search(cutting: Cutting) -> list[Piece]:
    """Blocks of vectors one after the other: a worker that goes on with the same one has it in memory."""
    vectors = _cut(cutting.experiment, cutting.inputs).vectors
    blocks = [Block(queries, part) for part in vectors for queries in _blocks_of_queries(cutting)]
    return [Piece(cutting.round, block.name, {"queries": _ends(block.queries), "vectors": _ends(block.vectors)}) for block in blocks]


def _search(context: StageContext, piece: Piece) -> None:
    from pipeline.pooling.block_search import search_block

    search_block(context, piece, Block(range(*piece.values["queries"]), range(*piece.values["vectors"])))


def _ends(part: range) -> list[int]:
    return [part.start, part.stop]


def _cut(experiment: Experiment, inputs: Mapping[str, Stored]) -> Cut:
    settings = experiment.hard_negatives
    queries, vectors = (inputs[label].manifest.shards for label in ("embed.queries", "embed.corpus"))
    return cut_search(queries, vectors, limit=settings.queries, depth=settings.depth, memory_gb=experiment.search.memory_gb)


def _blocks_of_queries(cutting: Cutting) -> list[range]:
    """The blocks of queries that have a shard to be built: whole, so that each run and each job has the same; of a table of which only a
    little is to be built again the shards alone, unless a whole block was begun."""
    cut = _cut(cutting.experiment, cutting.inputs)
    found: list[range] = []
    for queries in cut.queries:
        mine = sorted(set(cutting.shards) & set(queries))
        if len(mine) * _NARROW >= len(queries) or (mine and _is_begun(cutting.folder, queries, cut)):
            found.append(queries)
        else:
            found += (range(shard, shard + 1) for shard in mine)
    return found


def _is_begun(folder: Path, queries: range, cut: Cut) -> bool:
    return any(mirror.exists(folder / PIECES / f"{Block(queries, vectors).name}.parquet") for vectors in cut.vectors)
