"""The fixtures of trainings."""

from __future__ import annotations

from support.training import (  # noqa: F401
    _one_thread,
    cross_encoder,
    experiment_file,
    make_cross_encoder,
    make_student,
    row_maker,
    shard_writer,
    shards,
    student,
)
