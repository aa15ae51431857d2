"""What recipes gained on the collections that were measured, and what that lets expect on another one.

`evidence.json` holds the measurements: `study` is written by recipes/study/evidence.py, `earlier` by hand.

What a recipe is expected to have over another one is sum(w D) / (1 + sum(w)), D its difference on a collection, w = 1 / (1 + d^2) how like
that one is (inverse distances, Shepard 1968). d^2 adds up squares of the distances in the teacher's certainty, the share of negatives above
p+ and the number of queries, in units of `_UNIT`. The 1 stands for a collection just like the new one on which there is no difference: what
was measured once, or far away, moves little. [ours]
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("evidence.json")
BASE = "hard_kd"  # advised unless another one is expected to be better: no recipe has the teacher read fewer pairs
_LISTS = "curriculum.enabled=false hard_negatives.draws=1"
_PLAIN = f"{_LISTS} hard_negatives.sampler=uniform dark_examples.reinforced=false dark_examples.mask_ratios=[]"
_DARK = f"{_LISTS} hard_negatives.sampler=uniform dark_examples.reinforced=true dark_examples.mask_ratios=[0.15,0.45]"
_PHASES = "of recipes/compare/compare.yaml"


@dataclass(frozen=True)
class Recipe:
    """A recipe as it was measured, and how it is asked for: words of a command line, or the phases of a file."""

    title: str
    how: str


RECIPES: dict[str, Recipe] = {
    "hard_kd": Recipe("Hard KD", f"train.recipe=hard_kd {_PLAIN}"),
    "adam_positive": Recipe(
        "ADAM with p+", f"train.recipe=adam train.objective.include_positive=true train.objective.supervised_weight=0.01 {_DARK}"
    ),
    "adam": Recipe("ADAM", f"train.recipe=adam train.objective.include_positive=false train.objective.supervised_weight=0.01 {_DARK}"),
    "listwise": Recipe(
        "list-wise KL",
        f"train.recipe=listwise train.objective.teacher_temperature=2 {_LISTS} hard_negatives.depth=30 hard_negatives.range_max=30 "
        "hard_negatives.num_negatives=7 hard_negatives.sampler=top:2,score_strata:5 dark_examples.reinforced=false "
        "dark_examples.mask_ratios=[]",
    ),
    "margin_mse": Recipe("MarginMSE", f"train.recipe=margin_mse {_PLAIN}"),
    "margin_mse_zscore": Recipe("MarginMSE of z-scores", f"train.recipe=margin_mse train.objective.score_transform=zscore {_PLAIN}"),
    "cl_drd": Recipe("CL-DRD", f"the phases cl_drd_coarse, cl_drd_finer and cl_drd {_PHASES}"),
    "prod": Recipe("PROD", f"the phases prod and prod_selected {_PHASES}"),
    "rand_kd": Recipe("Rand KD", f"train.recipe=rand_kd hard_negatives.source=random {_PLAIN}"),
}


@dataclass(frozen=True)
class Place:
    """Where a collection lies among others."""

    sure: float  # share of lists in which p+ has more than half of the teacher's probability
    above: float  # share of mined negatives with a higher logit than p+
    queries: int  # that are trained on, at least 1


_UNIT = Place(sure=0.15, above=0.08, queries=2)  # a distance of 1; of `queries` a factor
_WORTH = 0.005  # MRR@10: what is expected to be less is nothing


@dataclass(frozen=True)
class Measured:
    """A recipe on a collection. Gains are over the student that it starts from."""

    gain: float  # test MRR@10
    zero_shot: float | None = None  # nDCG@10 on TREC DL 2019, 43 queries that nothing is trained on, one seed
    rate: float | None = None  # the peak, as dev chose it; None where it was not chosen


@dataclass(frozen=True)
class Studied:
    """A collection on which recipes were measured under the same conditions, BASE among them."""

    collection: str
    place: Place
    recipes: dict[str, Measured]
    source: str  # where the measurement is described


@dataclass(frozen=True)
class Choice:
    """A recipe, and what it is expected to have over the one that it is compared with."""

    recipe: str
    more: float


def known_evidence(path: Path = FILE) -> list[Studied]:
    """All measurements that are in the file."""
    content = json.loads(path.read_text(encoding="utf-8"))
    return [studied_of(one) for one in (*content["study"], *content["earlier"])]


def studied_of(one: Mapping[str, Any]) -> Studied:
    """From what the file has of a collection."""
    recipes = {name: Measured(**measured) for name, measured in one["recipes"].items()}
    return Studied(one["collection"], Place(**one["place"]), recipes, one["source"])


def likeness(one: Place, other: Place) -> float:
    """From 1, the same, down to 0."""
    distances = (
        (one.sure - other.sure) / _UNIT.sure,
        (one.above - other.above) / _UNIT.above,
        math.log(one.queries / other.queries) / math.log(_UNIT.queries),
    )
    return 1 / (1 + sum(distance**2 for distance in distances))


def nearest(place: Place, studied: Collection[Studied], *, count: int) -> list[Studied]:
    """The collections that are most like this place, the most alike first; of one with several measurements the most like."""
    found: dict[str, Studied] = {}
    for one in sorted(studied, key=lambda one: -likeness(place, one.place)):
        found.setdefault(one.collection, one)
    return list(found.values())[:count]


def choose(place: Place, studied: Sequence[Studied]) -> Choice:
    """The recipe that is expected to be the best; BASE where no other one is expected to be better. Of equals the first of `RECIPES`."""
    found = [Choice(recipe, more) for recipe in RECIPES if (more := _over_base(recipe, place, studied)) is not None]
    best = max(found, key=lambda choice: choice.more, default=None)
    return best if best and best.more >= _WORTH else Choice(BASE, 0.0)


def _over_base(recipe: str, place: Place, studied: Sequence[Studied]) -> float | None:
    """What a recipe is expected to have over BASE; None where no collection has both."""
    both = [one for one in studied if recipe in one.recipes and BASE in one.recipes]
    weights = [likeness(place, one.place) for one in both]
    differences = [one.recipes[recipe].gain - one.recipes[BASE].gain for one in both]
    if not both:
        return None
    return sum(weight * difference for weight, difference in zip(weights, differences, strict=True)) / (1 + sum(weights))


def zero_shot_by_rate(studied: Sequence[Studied]) -> dict[float, list[float]]:
    """Gains on queries that nothing is trained on, rising, by the peak rate of the training; the lowest rate first."""
    found: dict[float, list[float]] = {}
    for one in studied:
        for measured in one.recipes.values():
            if measured.rate is not None and measured.zero_shot is not None:
                found.setdefault(measured.rate, []).append(measured.zero_shot)
    return {rate: sorted(found[rate]) for rate in sorted(found)}
