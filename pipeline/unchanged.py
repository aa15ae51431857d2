"""Whether what lies outside the store is still what a table's fingerprint says: models, a collection, a run file.

A plan digests them once, and the work takes hours. Weights that are exchanged meanwhile would fill the other half of the table, under the
first ones' name. So the key is looked at again before each shard, before it gets its name, and before the table is sealed. Digests are
remembered by a file's size, times and inode: a look reads nothing again that was not touched.
"""

from __future__ import annotations

from typing import Any

from data.config.settings import Experiment
from data.digests import DigestCache, canonical_json
from data.errors import RunFailed
from pipeline.stage import Table

# Where a key's first part comes from, for people.
_OPTIONS = {
    "student": "embed.model or student.model", "teacher": "teacher.model", "teachers": "teacher.model", "files": "ingest.path",
    "run_digest": "hard_negatives.run_file", "tokenizer": "its model",
}  # fmt: skip


def refuse_changed(table: Table, planned: dict[str, Any], experiment: Experiment, digests: DigestCache) -> None:
    """Raises RunFailed where the table's settings key is not the planned one any more."""
    now = table.key(experiment, digests)
    if canonical_json(now) == canonical_json(planned):
        return
    names = [name for name in sorted({*planned, *now}) if planned.get(name) != now.get(name)]
    options = ", ".join(dict.fromkeys(_OPTIONS.get(name, name) for name in names))
    raise RunFailed(
        f"{table.label}: the files of {options} changed while this run was under way; nothing that was computed after that is kept; "
        "start the same command again"
    )
