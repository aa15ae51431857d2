"""The results: one small JSON file a cell (collection, method, seed), and the tries of a method before its first one.

    RESULTS/COLLECTION/METHOD-SEED.json     the figures; values of each question as 16-bit numbers, deflated
    RESULTS/COLLECTION/METHOD.tries.json    what each try reached on dev
    RESULTS/logits                          the teacher's, of all collections, as `prep cache export` writes them
    RESULTS/COLLECTION/budget.json          processor seconds of one run of ADAM, which the peer has, of Hard KD's data, and the processor
    RESULTS/COLLECTION/advice.json          what `prep advise` said, before anything was trained

`settings` is a digest of all that decides the figures. A file with another one is stale: read as if it were not there.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.digests import json_digest
from data.tables.shards import atomic_write

FORMAT = 1
_UNIT = 1e4  # values are kept to four places: MRR@10 of a question to 0.00005


def packed(values: Sequence[float] | NDArray[np.float64]) -> str:
    """Values from 0 to 1 as text, four places of each."""
    whole = np.rint(np.asarray(values, dtype=np.float64) * _UNIT)
    if whole.size and not (whole.min() >= 0 and whole.max() <= _UNIT):
        raise ValueError("values from 0 to 1 are expected")
    return base64.b64encode(zlib.compress(whole.astype("<u2").tobytes(), 9)).decode()


def unpacked(text: str) -> NDArray[np.float64]:
    """The values of `packed`, to four places."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<u2") / _UNIT


def judged(per_query: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The entry of a collection in a cell: means, values by the order of the question ids, and their digest.

    Args:
        per_query: question -> metric -> value, as `retrieve evaluate` writes it.
    """
    names = sorted(per_query)
    metrics = sorted(per_query[names[0]])
    columns = {metric: [per_query[name][metric] for name in names] for metric in metrics}
    return {
        "questions": len(names),
        "ids": json_digest(names),
        "metrics": {metric: {"mean": float(np.mean(column)), "values": packed(column)} for metric, column in columns.items()},
    }


@dataclass(frozen=True)
class Results:
    """The folder of results."""

    folder: Path

    def path(self, collection: str, method: str, seed: int) -> Path:
        """Of a cell."""
        return self.folder / collection / f"{method}-{seed}.json"

    def cell(self, collection: str, method: str, seed: int) -> dict[str, Any] | None:
        """What was measured, by whatever settings."""
        return self._read(self.path(collection, method, seed))

    def tries(self, collection: str, method: str) -> dict[str, Any] | None:
        """What was tried on dev, by whatever settings."""
        return self._read(self.folder / collection / f"{method}.tries.json")

    def write_cell(self, collection: str, method: str, seed: int, content: dict[str, Any]) -> None:
        """Whole or not at all."""
        self._write(self.path(collection, method, seed), content)

    def write_tries(self, collection: str, method: str, content: dict[str, Any]) -> None:
        """Whole or not at all."""
        self._write(self.folder / collection / f"{method}.tries.json", content)

    def advice(self, collection: str) -> dict[str, Any] | None:
        """What `prep advise` found and said, by whatever settings."""
        return self._read(self.folder / collection / "advice.json")

    def write_advice(self, collection: str, content: dict[str, Any]) -> None:
        """Whole or not at all."""
        self._write(self.folder / collection / "advice.json", content)

    def budget(self, collection: str) -> dict[str, Any] | None:
        """What one run of ADAM took, on whatever processor."""
        return self._read(self.folder / collection / "budget.json")

    def write_budget(self, collection: str, content: dict[str, Any]) -> None:
        """Whole or not at all."""
        self._write(self.folder / collection / "budget.json", content)

    def _read(self, path: Path) -> dict[str, Any] | None:
        if not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            return None  # a broken file is a missing one: it is written again
        return content if isinstance(content, dict) and content.get("format") == FORMAT else None

    def _write(self, path: Path, content: dict[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, (json.dumps({"format": FORMAT, **content}, indent=1, sort_keys=True) + "\n").encode())


def chosen(tries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The try that is best on dev; of equal ones the lower rate."""
    return min(tries, key=lambda one: (-one["dev"], float(one["rate"])))
