"""The figures of an evaluation over collections: their means, their file, and two of them side by side."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.errors import UserError
from retrieval.evaluation.metrics import Comparison, compared

FORMAT = 1
RESULTS = "results.json"


@dataclass(frozen=True)
class Figures:
    """The figures of one collection."""

    name: str
    group: str  # of collections that count as one in the mean; empty: none
    split: str
    queries: int  # judged ones
    passages: int
    without_results: int
    identical_ids_ignored: int
    dropped: dict[str, dict[str, int]]  # by file (corpus, queries, qrels) and reason
    tables: dict[str, str]  # folders below the store of texts and vectors
    metrics: dict[str, float]


@dataclass(frozen=True)
class Results:
    """What a student reaches on each collection."""

    model: str
    student: dict[str, Any]  # its key: digests and settings
    settings: dict[str, Any]
    collections: list[Figures]

    def groups(self) -> dict[str, dict[str, float]]:
        """Means over the collections of each group."""
        names = list(dict.fromkeys(one.group for one in self.collections if one.group))
        return {name: _mean([one.metrics for one in self.collections if one.group == name]) for name in names}

    def mean(self) -> dict[str, float]:
        """Unweighted means over collections, each group counting as one."""
        return _mean([*(one.metrics for one in self.collections if not one.group), *self.groups().values()])

    def as_json(self) -> dict[str, Any]:
        """The content of `results.json`."""
        collections = {one.name: {key: value for key, value in asdict(one).items() if key != "name"} for one in self.collections}
        of_model = {"format": FORMAT, "model": self.model, "student": self.student, "settings": self.settings}
        return {**of_model, "collections": collections, "groups": self.groups(), "mean": self.mean()}


def _mean(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


@dataclass(frozen=True)
class Differences:
    """One metric of two evaluations: rows for the collections that both have, the last one for their mean."""

    metric: str
    rows: list[Comparison]  # `metric` of each is the name of a collection, or `mean`
    left_out: list[str]  # collections that one of the two has alone


class Evaluated:
    """A folder of `retrieve evaluate collections=...`, read file by file. `read` gives a file of it by its name there."""

    def __init__(self, name: str, read: Callable[[str], bytes]) -> None:
        self.name = name
        self._read = read
        self.content: dict[str, Any] = self._json(RESULTS)
        if self.content.get("format") != FORMAT or not isinstance(self.content.get("collections"), dict):
            raise UserError(f"{name}/{RESULTS} is no result of `retrieve evaluate collections=...` (format {FORMAT})")

    @property
    def collections(self) -> dict[str, Any]:
        """The entries of `results.json`."""
        return dict(self.content["collections"])

    def values(self, collection: str, metric: str) -> dict[str, float]:
        """query_id -> value. Raises UserError where they are not those of `results.json`, as after a later evaluation that was killed."""
        per_query = self._json(f"per_query/{collection}.json")
        if not all(metric in values for values in per_query.values()):
            there = ", ".join(self.content["settings"]["metrics"])
            raise UserError(f"{self.name} has no {metric} of {collection}: it has {there}")
        found = {query: float(values[metric]) for query, values in per_query.items()}
        mean = self.collections[collection].get("metrics", {}).get(metric, math.nan)
        if not found or not math.isclose(math.fsum(found.values()) / len(found), mean, rel_tol=1e-9, abs_tol=1e-12):
            raise UserError(
                f"{self.name}/per_query/{collection}.json and its {RESULTS} are of two evaluations, of which the later was not finished: "
                "evaluate again"
            )
        return found

    def _json(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads(self._read(name))
        except ValueError as error:
            raise UserError(f"{self.name}/{name} is no readable JSON ({error}): evaluate again") from error
        if not isinstance(content, dict):
            raise UserError(f"{self.name}/{name} holds a {type(content).__name__}, an object was expected: evaluate again")
        return content


def compare_results(before: Evaluated, after: Evaluated, metric: str, *, seed: int = 0, permutations: int = 100_000) -> Differences:
    """The metric of each collection side by side, and of the mean, each with a paired randomisation test over queries.

    The mean is that of `Results.mean`, over the collections of both. Its test gives each query the weight that it has in it: signs are
    drawn for all queries of all collections at once.

    Raises UserError where nothing is in both, or a collection has other queries or another split in one of them.
    """
    for key in ("relevant_from", "ignore_identical_ids"):
        ways = [one.content.get("settings", {}).get(key) for one in (before, after)]
        if ways[0] != ways[1]:
            raise UserError(f"{before.name} was evaluated with {key}={ways[0]}, {after.name} with {ways[1]}: evaluate both alike")
    both = [name for name in before.collections if name in after.collections]
    left_out = [name for one, other in ((before, after), (after, before)) for name in one.collections if name not in other.collections]
    if not both:
        raise UserError(f"{before.name} and {after.name} have no collection in common: {', '.join(left_out)}")
    rows: list[Comparison] = []
    pairs: list[tuple[NDArray[np.float64], NDArray[np.float64]]] = []
    for name in both:
        values = _paired(name, before, after, metric)
        pairs.append(values)
        means = float(values[0].mean()), float(values[1].mean())
        rows.append(compared(name, means, values[1] - values[0], seed=seed, permutations=permutations))
    weights = _weights([str(before.collections[name].get("group", "")) for name in both])
    weighed = [weight / len(old) * (new - old) for weight, (old, new) in zip(weights, pairs, strict=True)]
    old_mean, new_mean = (float(sum(weight * one[side].mean() for weight, one in zip(weights, pairs, strict=True))) for side in (0, 1))
    rows.append(compared("mean", (old_mean, new_mean), np.concatenate(weighed), seed=seed, permutations=permutations))
    return Differences(metric, rows, left_out)


def _paired(name: str, before: Evaluated, after: Evaluated, metric: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    splits = [one.collections[name].get("split") for one in (before, after)]
    old, new = (one.values(name, metric) for one in (before, after))
    if splits[0] != splits[1] or old.keys() != new.keys():
        found = f"split {splits[0]} with {len(old):,} queries in {before.name}, {splits[1]} with {len(new):,} in {after.name}"
        raise UserError(f"{name} was evaluated on different queries: {found}; evaluate both alike")
    queries = sorted(old)
    return np.array([old[query] for query in queries]), np.array([new[query] for query in queries])


def _weights(groups: list[str]) -> list[float]:
    """What each collection weighs in the mean, by its group."""
    counted = len({group for group in groups if group}) + groups.count("")
    return [1 / counted / (groups.count(group) if group else 1) for group in groups]
