"""Recipes: named presets of `train.objective`, and what each demands of the training shards.

Precedence, the later wins: the settings' defaults (ADAM's letter), the recipe's preset, the file's `train.objective`, the command
line. The file's `train.objective` belongs to the file's own recipe: when the command line names another recipe, it is dropped.
A task other than `student` has a preset of its own, and its recipe is unused.
Each row of ADAM's Table 3 is one override of `adam`: see recipes/adam.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from data.config import experiment_file, settings
from data.config.settings import Experiment, Objective, Train
from data.errors import UserError
from trainer.input.stream import TrainingMetadata

_PLAIN_KD = {"include_positive": "true", "without": "reinforced,noisy,adaptive,supervised"}  # L_kd over {p+} and P- (Eq. 3)

# The labels alone, without a teacher.
_SUPERVISED = {"supervised_weight": "1", "without": "reinforced,noisy,adaptive,distillation"}
# PROD (Lin et al., WWW 2023): 0.1 CE + 0.9 T^2 KL, T = 4, over p+ and its negatives.
_PROD = {
    "supervised_weight": "0.1", "distillation_weight": "0.9", "temperature": "4", "temperature_squared": "true",
    "include_positive": "true", "without": "reinforced,noisy,adaptive",
}  # fmt: skip

# By recipe, and by task where that is not to distil into a student.
PRESETS: dict[str, dict[str, str]] = {
    "adam": {},
    "hard_kd": _PLAIN_KD,  # negatives mined
    "rand_kd": _PLAIN_KD,  # negatives drawn at random: the shards differ, not the loss
    "margin_mse": {**_PLAIN_KD, "distillation": "margin_mse"},  # Hofstaetter et al., 2020
    "listwise": {**_PLAIN_KD, "distillation": "listwise"},  # KL with two temperatures, over lists spread over the teacher's scores
    "cl_drd": {**_PLAIN_KD, "distillation": "curriculum"},  # Zeng et al., 2022; each iteration is a phase of its own
    "prod_dual": {**_PROD, "in_batch": "both"},  # phase T1: the teacher is `teacher_model`, the list all passages of the batch
    "prod": {**_PROD, "reference_kl_weight": "1"},  # the later steps: the query's own list, and the initial student as a second teacher
}
TASK_PRESETS: dict[str, dict[str, str]] = {
    "cross_encoder": _SUPERVISED,
    "dual_encoder": {**_SUPERVISED, "in_batch": "supervised"},
}


def load(args: dict[str, str]) -> Experiment:
    """The experiment of `config=FILE`, its recipe's preset and its overrides, in the precedence above; its seed is the training's.

    Raises UserError for all that `settings.load` refuses, and for what a recipe or a task cannot do without, or with.
    """
    values, overrides = experiment_file.layers(Experiment, args)
    if not {"phase", "step"} & args.keys() and (names := list(experiment_file.phases_of(Experiment, args["config"]))):
        raise UserError(f"config={args['config']} has phases, say which one to train: phase={', phase='.join(names)}")
    chosen = settings.merged(values, overrides).train  # checks the whole file, also what a change of recipe drops
    train: dict[str, Any] = values.setdefault("train", {})
    own = all(train.get(name, settings.Train.model_fields[name].default) == getattr(chosen, name) for name in ("task", "recipe"))
    objective = train.get("objective", {}) if own else {}
    train["objective"] = {**_preset(chosen, {*objective, *overrides.get("train", {}).get("objective", {})}), **objective}
    experiment = settings.merged(values, overrides)
    _check(experiment)
    seed = experiment.train.seed
    return experiment if seed is None else experiment.model_copy(update={"seed": seed})


def _preset(train: Train, given: Collection[str]) -> dict[str, str]:
    """What a recipe or a task sets of `train.objective`, of which these keys are `given`."""
    if train.task == "cross_encoder" and "distillation" in given and "without" not in given:
        return _PLAIN_KD
    return TASK_PRESETS.get(train.task, PRESETS[train.recipe])


def _check(experiment: Experiment) -> None:
    """Raises UserError for what a recipe, a task or a loss cannot do without, or with."""
    train, objective = experiment.train, experiment.train.objective
    try:
        objective.check_loss()
        objective.check_positive()
        objective.check_two_sides()
    except ValueError as error:
        raise UserError(f"train.objective: {error}") from error
    if train.task == "student" and train.recipe == "prod_dual" and objective.teacher_model is None:
        raise UserError("recipe=prod_dual distils a dual encoder: give its folder as train.objective.teacher_model=FOLDER")
    if train.task == "cross_encoder":
        _check_cross_encoder(experiment)


def _check_cross_encoder(experiment: Experiment) -> None:
    """Raises UserError for what is of a dual encoder alone."""
    train, objective = experiment.train, experiment.train.objective
    if not {"reinforced", "noisy"} <= set(objective.without) or objective.in_batch != "none":
        raise UserError("task=cross_encoder trains on p+ and its own negatives alone: leave train.objective.without and .in_batch to it")
    if objective.reference_kl_weight or objective.teacher_model:
        raise UserError(
            "task=cross_encoder learns from labels and from the shards' logits: leave train.objective.reference_kl_weight and "
            ".teacher_model out"
        )
    if "distillation" not in objective.without and objective.loss_traits.learns_from == "labels":
        raise UserError(
            f"task=cross_encoder reads lists of p+ and P-, which carry no labels for distillation={objective.distillation}: set kl, "
            "listwise or margin_mse"
        )
    if objective.dimensions:
        raise UserError("task=cross_encoder gives one number, no vector to be cut: leave train.objective.dimensions out")
    if experiment.student.lora.rank:
        raise UserError("task=cross_encoder trains all of teacher.model; adapters are of a student: set student.lora.rank=null")
    if train.dev:
        raise UserError("task=cross_encoder: a dev set measures dual encoders, by search; set train.dev=null")


def check_shards(experiment: Experiment, metadata: TrainingMetadata, *, grades: Collection[int] = ()) -> None:
    """Refuse shards of another kind than recipe and loss are about, or that lack the logits it learns from.

    `grades` are the labels that their p+ have, where they say so.
    """
    train, objective = experiment.train, experiment.train.objective
    check_lists(objective, labelled=metadata.has_labels, iterations=len(metadata.curriculum), draw=train.draw)
    if objective.in_batch != "none" and not metadata.has_never_ids:
        raise UserError(
            f"train.objective.in_batch={objective.in_batch}: these shards, of schema version {metadata.schema_version}, do not say which "
            "passages are labelled positives of a query, so its in-batch negatives would have some among them; make the shards again with "
            "`prep run config=FILE` (vectors and teacher logits are kept) and give the new folder as shards=DIR"
        )
    if objective.positive_weights:
        check_grades(objective.positive_weights, metadata, grades)
    if objective.confidence == "mean" and metadata.has_labels:
        raise UserError("train.objective.confidence=mean is over p+ and P-, and these shards hold a curriculum's lists: leave it out")
    if train.task == "student":
        check_negatives(train.recipe, source=metadata.negatives_source)
    from_shards = objective.loss_traits.learns_from == "logits" and objective.teacher_model is None
    if "distillation" not in objective.without and (from_shards or "adaptive" not in objective.without) and not metadata.teachers:
        raise UserError(
            "these shards have no teacher logits (teacher.backend=none): make others with a teacher, or train without: task=dual_encoder, "
            "task=cross_encoder, or train.objective.teacher_model=FOLDER with recipe=prod_dual"
        )


def check_grades(weights: Mapping[int, float], metadata: TrainingMetadata, grades: Collection[int]) -> None:
    """Refuse shards that do not say which grade a p+ has, or that have one which is not weighed."""
    if not metadata.has_grades:
        raise UserError(
            f"train.objective.positive_weights: these shards, of schema version {metadata.schema_version}, do not say which grade p+ has; "
            "make them again with `prep run config=FILE hard_negatives.positive_grades=true` (vectors and teacher logits are kept; lists "
            "of lists.path have no grades) and give the new folder as shards=DIR"
        )
    if missing := sorted(set(grades) - weights.keys()):
        promoted = " (0: promoted by the teacher)" if 0 in missing else ""
        raise UserError(
            f"train.objective.positive_weights weighs the grades {', '.join(map(str, sorted(weights)))}, and these shards have a p+ of "
            f"grade {', '.join(map(str, missing))}{promoted}, too: give each a weight"
        )
    if not any(weights[grade] for grade in grades):
        raise UserError(
            f"train.objective.positive_weights is 0 for each grade of these shards ({', '.join(map(str, sorted(grades)))}): give one of "
            "them a weight, or set without=supervised"
        )


def check_lists(objective: Objective, *, labelled: bool, iterations: int, draw: int | None) -> None:
    """Refuse shards whose lists are not of the kind that the loss is over.

    `iterations` of a curriculum are in the shards (0: they are of none), `draw` (`train.draw`) is the one to train on.
    """
    by_labels = objective.loss_traits.learns_from == "labels"
    if by_labels and not labelled:
        raise UserError(
            f"train.objective.distillation={objective.distillation} (recipe=cl_drd: curriculum) learns from labels, which these shards "
            "have not: make others with `prep run config=FILE curriculum.enabled=true` and give their folder as shards=DIR"
        )
    if by_labels and iterations > 1 and draw is None:
        raise UserError(
            f"these shards hold {iterations} iterations of a curriculum, and each wants a training of its own that starts from the last "
            "one's student: make each a phase of the file, as recipes/cl_drd does, or train one of them with train.draw=0"
        )
    if labelled and (objective.uses_positive or objective.in_batch != "none"):
        raise UserError(
            "these shards hold lists with labels, which have no one p+ for a supervised loss and no in-batch negatives: use "
            "recipe=cl_drd, or set train.objective.without=supervised train.objective.in_batch=none"
        )


def check_negatives(recipe: str, *, source: str) -> None:
    """Refuse shards whose `negatives_source` is not the one that the recipe is named after."""
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
