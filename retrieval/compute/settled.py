"""What `precision=auto` means in a store: settled by the command that first computes with a model there, obeyed by all later ones.

    STORE/settled/<role>-<digest of the model>.json    {"precision": "bf16", "host": "node7"}, made by one command alone

So a plan, or a job of a queue, says the same on every processor. Where there is no note, a table or logits that a command of an earlier
version made settle it.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.digests import canonical_json, json_digest
from data.errors import DamagedShard, RunFailed
from data.store.place import open_place
from data.tables.manifest import MANIFEST_NAME, Manifest
from retrieval.compute.precision import class_of, class_on

FOLDER = "settled"
_CHOICES = ("bf16", "fp32")  # of `auto`


@dataclass(frozen=True)
class Note:
    """Of one role (`embed.corpus`, `teacher`) and one model; `key` is what a fingerprint holds of it, but for its precision."""

    store: str
    role: str
    key: dict[str, Any]

    @property
    def name(self) -> str:
        """Of its file in the store."""
        return f"{FOLDER}/{self.role}-{json_digest(self.key)}.json"

    def read(self) -> str | None:
        """What was settled, None where nothing was. Raises RunFailed where the file cannot be read."""
        content = open_place(self.store).read(self.name)
        if content is None:
            return None
        try:
            precision = json.loads(content)["precision"]
        except (ValueError, KeyError, TypeError):
            precision = None
        if precision not in _CHOICES:
            raise RunFailed(f"{self.store}/{self.name} is no readable note of a precision; delete it and start the same command again")
        return str(precision)

    def settle(self, precision: str) -> str:
        """Note it, if nobody did. Returns what holds now."""
        content = json.dumps({"precision": precision, "host": platform.node()}).encode()
        if open_place(self.store).put_if_absent(self.name, content):
            return precision
        return self.read() or precision

    def of_tables(self, *, own: str, device: str) -> str | None:
        """The precision of what an earlier version computed with this model on this kind of device, `own` where both are there; None where
        nothing is."""
        root = open_place(self.store).root
        there = _of_logits(root, self.key, device) if self.role == "teacher" else _of_vectors(root, self.key)
        return own if own in there else next((choice for choice in _CHOICES if choice in there), None)


def _of_logits(root: Path, key: dict[str, Any], device: str) -> set[str]:
    """By the names of the logits' folders."""
    namespaces = {choice: json_digest({**key, "precision": f"torch/{class_on(device, class_of(choice))}"}) for choice in _CHOICES}
    return {choice for choice, namespace in namespaces.items() if (root / "teacher_logits" / namespace).is_dir()}


def _of_vectors(root: Path, key: dict[str, Any]) -> set[str]:
    """By the manifests of the tables."""
    found: set[str] = set()
    for path in (root / "embed").glob(f"corpus-*/{MANIFEST_NAME}"):
        try:
            manifest = Manifest.read(path.parent)
        except DamagedShard:
            continue
        settings = manifest.key.get("settings", {}) if manifest else {}
        if canonical_json(settings.get("student")) == canonical_json(key):
            found |= {choice for choice in _CHOICES if settings.get("precision") == class_of(choice)}
    return found
