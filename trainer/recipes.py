"""Recipes: named presets of `train.objective`, and what each demands of the training shards.

Precedence, the later wins: the settings' defaults (ADAM's letter), the recipe's preset, the file's `train.objective`, the command
line. The file's `train.objective` belongs to the file's own recipe: when the command line names another recipe, it is dropped.

Each row of ADAM's Table 3 is one override of `adam`:

    without N_rein             train.objective.without=reinforced
    without N_mask             train.objective.without=noisy
    without both               train.objective.without=reinforced,noisy
    ... and adaptivity         train.objective.without=reinforced,noisy,adaptive
    ... and L_sup (Hard KD)    train.objective.without=reinforced,noisy,adaptive,supervised
"""

from __future__ import annotations

import copy
import difflib
from typing import Any

from data import settings
from data.errors import UserError
from data.settings import Experiment, Objective

_PLAIN_KD = {"include_positive": "true", "without": "reinforced,noisy,adaptive,supervised"}  # L_kd over {p+} and P- (Eq. 3)

PRESETS: dict[str, dict[str, str]] = {
    "adam": {},
    "hard_kd": _PLAIN_KD,  # negatives mined
    "rand_kd": _PLAIN_KD,  # negatives drawn at random: the shards differ, not the loss
    "margin_mse": {**_PLAIN_KD, "distillation": "margin_mse"},  # Hofstaetter et al., 2020
    "cl_drd": {**_PLAIN_KD, "distillation": "curriculum"},  # Zeng et al., 2022; its iterations are `train.stages`
}


def load(words: dict[str, str]) -> Experiment:
    """The experiment of `config=FILE`, its recipe's preset and its overrides, in the precedence above.

    Raises UserError for all that `settings.load` refuses, and for an unknown recipe, with the nearest names.
    """
    chosen = settings.load(words).train.recipe  # checks the whole file, also what a change of recipe drops
    if chosen not in PRESETS:
        near = difflib.get_close_matches(chosen, PRESETS, n=3, cutoff=0.3) or list(PRESETS)
        raise UserError(f"unknown recipe {chosen!r}; nearest: {', '.join(near)}")
    values, overrides = settings.read(words)
    train: dict[str, Any] = values.setdefault("train", {})
    own = train.get("recipe", settings.Train.model_fields["recipe"].default) == chosen
    train["objective"] = {**copy.deepcopy(PRESETS[chosen]), **(train.get("objective", {}) if own else {})}
    return settings.merged(values, overrides)


def check_lists(objective: Objective, *, groups: bool) -> None:
    """Refuse shards whose lists are not of the kind that the loss is over.

    Args:
        objective: The loss.
        groups: Whether the lists are the groups of a curriculum, as the shards' metadata say.
    """
    if objective.distillation == "curriculum" and not groups:
        raise UserError(
            "recipe=cl_drd (train.objective.distillation=curriculum) trains on lists in groups, which these shards have not: make others "
            "with `prep run config=FILE curriculum.enabled=true` and give their folder as shards=DIR"
        )
    if groups and (objective.uses_positive or objective.in_batch != "none"):
        raise UserError(
            "these shards hold the lists of a curriculum, which have no one p+ for a supervised loss and no in-batch negatives: use "
            "recipe=cl_drd, or set train.objective.without=supervised train.objective.in_batch=none"
        )


def check_negatives(recipe: str, *, source: str) -> None:
    """Refuse shards whose negatives are not those that the recipe is named after.

    Args:
        recipe: A name of `PRESETS`.
        source: `negatives_source` of the shards' metadata.
    """
    if recipe == "rand_kd" and source != "random":
        raise UserError(
            f"recipe=rand_kd trains on random negatives, these shards have source={source}: make others with "
            "`prep run config=FILE hard_negatives.source=random dark_examples.reinforced=false dark_examples.mask_ratios=[]` "
            "and give their folder as shards=DIR"
        )
    if recipe == "hard_kd" and source == "random":
        raise UserError(
            "recipe=hard_kd trains on mined negatives, these shards have source=random: use recipe=rand_kd, or make others with "
            "`prep run config=FILE hard_negatives.source=student` and give their folder as shards=DIR"
        )
