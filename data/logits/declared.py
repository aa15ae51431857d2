"""A declared teacher: one that is known by name alone, since its logits come from a file.

Its namespace in the logit store is the digest of what the user declares: nothing else of it can be read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from data.digests import json_digest
from data.errors import UserError

ScoreKind = Literal["logit", "probability", "cosine"]
NAMESPACE = "namespace:"  # before the start of a namespace, where `teacher.model` names one in place of a declared teacher


@dataclass(frozen=True)
class DeclaredTeacher:
    """Name, revision, and what kind its scores are of: a probability is stored with its sigmoid undone, a cosine as it is.

    Raises UserError for a name that `teacher.model` would read as something else.
    """

    name: str
    revision: str
    scores: ScoreKind = "logit"

    def __post_init__(self) -> None:
        if self.name.startswith(NAMESPACE):
            raise UserError(f"{self.name} names a teacher that the store has already; a declared teacher needs a name of its own")

    @property
    def key(self) -> dict[str, Any]:
        """All that decides a logit, as far as it is known."""
        return {"kind": "imported", "name": self.name, "revision": self.revision, "scores": self.scores}

    @property
    def namespace(self) -> str:
        """The folder of its logits in the store."""
        return json_digest(self.key)
