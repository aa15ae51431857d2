"""What `export.json` says of the training: all that training shards of a copy of the lists need, to be those of this store."""

from __future__ import annotations

from typing import Any

from pipeline.plan import Planner, table_named
from pipeline.scoring.reading_lengths import longest_mixed
from pipeline.stages.training_shards import metadata_of_lists


def training_of(planner: Planner) -> dict[str, Any]:
    """What training shards say of the lists, whoever the student is, and the digest that the order of training is drawn from."""
    experiment, models = planner.experiment, planner.models
    dark = experiment.dark_examples
    made: dict[str, Any] = {} if experiment.curriculum.enabled else {"reinforced": dark.reinforced}
    if made.get("reinforced") and (dark.mixed_tokens or models.has_student):
        made["mixed_tokens"] = longest_mixed(models)
    shards = planner.plan(table_named(experiment, "shards")) if models.has_student else None
    order = {"order": shards.stored.manifest.content_digest} if shards and shards.complete else {}
    return {**metadata_of_lists(experiment, models), **made, **order}
