"""What recipes gained on the collections that were measured, and what that lets expect on another one.

`evidence.json` holds the measurements: `study` is written by recipes/study/evidence.py, `earlier` by hand. What a recipe has over Hard KD
is a mean over the collections it was measured on. One counts 1 / (1 + d^2) (inverse distances, Shepard 1968), where d^2 adds up squares
over the teacher's certainty, the share of negatives above p+ and the number of questions, each in units of `_UNIT`. With them counts, as
one collection that is the same as the new one, that there is no difference: what was measured far away, or once, moves little. [ours]
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("evidence.json")
BASE = "hard_kd"  # what others are compared with: it learns from the teacher, and has the least bill
_NO_DARK = "dark_examples.reinforced=false dark_examples.mask_ratios=[]"
# How each recipe is asked for. CL-DRD and PROD are several trainings in a row.
RECIPES: dict[str, str] = {
    "hard_kd": f"train.recipe=hard_kd {_NO_DARK}",
    "adam_positive": "train.recipe=adam train.objective.include_positive=true",
    "adam": "train.recipe=adam",
    "listwise": f"train.recipe=listwise train.objective.teacher_temperature=2 hard_negatives.depth=30 hard_negatives.range_max=30 "
    f"hard_negatives.num_negatives=7 hard_negatives.sampler=top:2,score_strata:5 {_NO_DARK}",
    "margin_mse": f"train.recipe=margin_mse {_NO_DARK}",
    "margin_mse_zscore": f"train.recipe=margin_mse train.objective.score_transform=zscore {_NO_DARK}",
    "cl_drd": f"the phases of recipes/cl_drd: train.recipe=cl_drd curriculum.enabled=true hard_negatives.depth=200 {_NO_DARK}",
    "prod": f"the phases of recipes/prod: train.recipe=prod {_NO_DARK}",
    "rand_kd": f"train.recipe=rand_kd hard_negatives.source=random {_NO_DARK}",
}
TITLES = {
    "hard_kd": "Hard KD", "adam_positive": "ADAM with p+", "adam": "ADAM", "listwise": "list-wise KL", "margin_mse": "MarginMSE",
    "margin_mse_zscore": "MarginMSE of z-scores", "cl_drd": "CL-DRD", "prod": "PROD", "rand_kd": "Rand KD",
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a collection lies among others."""

    sure: float  # share of lists in which p+ has more than half of the teacher's probability
    above: float  # share of mined negatives with a higher logit than p+
    queries: int  # that are trained on


_UNIT = Place(sure=0.15, above=0.08, queries=2)  # a distance of 1; of `queries` a factor
_NO_DIFFERENCE = 1.0  # weight of there being none
_WORTH = 0.005  # MRR@10 that is worth another bill
_WORTH_ELSEWHERE = 0.01  # nDCG@10 on other questions that is worth a word


@dataclass(frozen=True)
class Measured:
    """A recipe on a collection. Gains are over the student that it starts from."""

    gain: float  # test MRR@10
    zero_shot: float | None = None  # nDCG@10 on TREC DL 2019, which nothing is trained on


@dataclass(frozen=True)
class Studied:
    """A collection on which recipes were measured under the same conditions, BASE among them."""

    collection: str
    place: Place
    recipes: dict[str, Measured]
    source: str  # where the measurement is described


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


def choose(place: Place, studied: Sequence[Studied]) -> str:
    """The recipe that is expected to be the best on questions like those trained on; BASE where none is worth another bill."""
    best = _best(lambda recipe: _over(BASE, recipe, place, studied, lambda measured: measured.gain))
    return best[1] if best and best[0] >= _WORTH else BASE


def choose_for_others(place: Place, studied: Sequence[Studied], *, instead_of: str) -> str | None:
    """The recipe that is expected to be the best on other questions; None where it is hardly better than the one that is given."""
    best = _best(lambda recipe: _over(instead_of, recipe, place, studied, lambda measured: measured.zero_shot))
    return best[1] if best and best[0] >= _WORTH_ELSEWHERE else None


def nearest(place: Place, studied: Sequence[Studied], *, count: int) -> list[Studied]:
    """The collections that are most like this place, the most alike first."""
    return sorted(studied, key=lambda one: -likeness(place, one.place))[:count]


def _best(over: Callable[[str], float | None]) -> tuple[float, str] | None:
    """(what it has, recipe) of the best; of equals the first of `RECIPES`."""
    found = [(value, -place, recipe) for place, recipe in enumerate(RECIPES) if (value := over(recipe)) is not None]
    return (max(found)[0], max(found)[2]) if found else None


def _over(base: str, recipe: str, place: Place, studied: Sequence[Studied], figure: Callable[[Measured], float | None]) -> float | None:
    """What a recipe is expected to have over another one; None where no collection has both."""
    weights = differences = 0.0
    for one in studied:
        pair = [figure(one.recipes[name]) for name in (recipe, base) if name in one.recipes]
        if len(pair) == 2 and pair[0] is not None and pair[1] is not None:
            weight = likeness(place, one.place)
            weights, differences = weights + weight, differences + weight * (pair[0] - pair[1])
    return differences / (_NO_DIFFERENCE + weights) if weights else None
