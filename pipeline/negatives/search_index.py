"""Stage `index`: an approximate index (IVF or HNSW) for each shard of the corpus's vectors. It exists only where `search.index` asks."""

from __future__ import annotations

from typing import Any

from data.config.settings import Experiment
from data.tables import schemas
from pipeline.stage import StageContext, Table
from retrieval.models.resolved import ResolvedModels

_OF_SEARCHING = {"ivf": ("probes",), "hnsw": ("width",)}


def searching_key(experiment: Experiment) -> dict[str, Any]:
    """The settings that decide what is found in it; nothing for exact search."""
    if experiment.search.index == "exact":
        return {}
    names = (*_OF_SEARCHING[experiment.search.index], "recall_queries")
    return {"search": {name: getattr(experiment.search, name) for name in names}}


def _key(experiment: Experiment, models: ResolvedModels) -> dict[str, Any]:
    from retrieval.search.index_table import building_key

    return building_key(experiment.search)


def _build(context: StageContext) -> None:
    from retrieval.search.index_table import index_parts

    vectors = context.inputs["embed.corpus"]
    rows = vectors.manifest.shards[context.shard].rows
    with context.writer(context.shard, schemas.INDEX) as writer:
        for part in index_parts(vectors.path(context.shard), context.experiment.search):
            writer.write_row_group(part)
        writer.figures["counts"] = {"in": rows, "kept": rows, "dropped": {}}
    context.report("vectors", rows)


TABLE = Table(stage="index", version=1, reads=("embed.corpus",), key=_key, build=_build, sharded_by="corpus")
