"""A run of several stages: `train.stages` as runs one after the other, each from the student of another, and what they end in.

OUTPUT/run.json                   the stages' names
OUTPUT/1-first/ 2-second/ ...     each a run like any other (see `trainer.loop`), with an optimizer and a schedule of its own
OUTPUT/student/                   the last one's, at the end (`dual_encoder/` where that is the task)
OUTPUT/result.json                written last: what each stage came to

A run without stages is one stage, in OUTPUT itself. A finished stage is passed over, an interrupted one goes on.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.config.settings import Experiment
from data.digests import hash64
from data.errors import UserError
from data.tables.shards import atomic_write
from trainer.saving.checkpoint import claim_output, read_record, remove_half_written, whole_folder
from trainer.saving.output_folder import RESULT_NAME, RESULT_REMEDY, check_names, check_place
from trainer.steps.distributed import Distributed

_SEED_BITS = 31


@dataclass(frozen=True)
class Stage:
    """One run of them."""

    name: str  # `1-first`; empty where the run has no stages
    experiment: Experiment  # as if there were no others
    shards_folder: Path
    followed: bool  # by another one

    @property
    def output(self) -> Path:
        """Its folder."""
        return Path(self.experiment.train.output)


def stages_of(experiment: Experiment, *, shards_folder: Path) -> list[Stage]:
    """The stages of a run, in order. Each after the first draws its order and dropout masks from a seed of its own."""
    if not experiment.train.stages:
        return [Stage("", experiment, shards_folder, followed=False)]
    stages: list[Stage] = []
    models = {"student": experiment.student.model}
    for number, (name, own) in enumerate(experiment.train.stages.items()):
        train = experiment.train.of_stage(name)
        start = own.get("start", "last")
        model = list(models.values())[-1] if start == "last" else models[start]
        seed = hash64(experiment.seed, "stage", number) % 2**_SEED_BITS if number else experiment.seed
        given = {} if model == experiment.student.model else {"revision": None}  # a folder is its own pin
        student = experiment.student.model_copy(update={"model": model, **given})
        own_experiment = experiment.model_copy(update={"train": train, "student": student, "seed": seed})
        folder, followed = Path(own.get("shards", shards_folder)), number + 1 < len(experiment.train.stages)
        stages.append(Stage(Path(train.output).name, own_experiment, folder, followed))
        models[name] = str(Path(train.output) / train.task)
    return stages


def check_outputs(experiment: Experiment, stages: list[Stage]) -> None:
    """Raises UserError where the run, or a stage of it, cannot or must not write."""
    check_place(Path(experiment.train.output))
    for train in (experiment.train, *(stage.experiment.train for stage in stages)):
        check_names(train)


def begin_chain(experiment: Experiment, stages: list[Stage], *, processes: Distributed) -> None:
    """Claim the run's folder where it has stages. Raises UserError where it holds another run."""
    output = Path(experiment.train.output)
    if experiment.train.stages and processes.first:
        claim_output(output, key={"stages": [stage.name for stage in stages]})
        remove_half_written(output)


def tell_begin(stage: Stage, *, processes: Distributed) -> None:
    """Say which stage begins, or was finished earlier."""
    if stage.name and processes.first:
        finished = (stage.output / RESULT_NAME).is_file()
        print(f"stage {stage.name}: {'finished already' if finished else f'from the student {stage.experiment.student.model}'}", flush=True)


def tell_end(stage: Stage, *, processes: Distributed) -> None:
    """Say what the dev set said at the end of a stage."""
    figures = _summary(stage)["dev"] if stage.name and processes.first else None
    if figures:
        print(f"stage {stage.name}: dev set {', '.join(f'{name} {value:.4f}' for name, value in figures.items())}", flush=True)


def end_chain(experiment: Experiment, stages: list[Stage], *, processes: Distributed) -> None:
    """The last student and the list of stages in the run's own folder."""
    output = Path(experiment.train.output)
    if experiment.train.stages and processes.first and not (output / RESULT_NAME).is_file():
        task = stages[-1].experiment.train.task
        with whole_folder(output / task) as folder:
            shutil.copytree(stages[-1].output / task, folder, dirs_exist_ok=True)
        listed = [_summary(stage) for stage in stages]
        content = {"stages": listed, "steps": sum(one["steps"] for one in listed), task: str(output / task)}
        atomic_write(output / RESULT_NAME, json.dumps(content, indent=1, sort_keys=True).encode())
        print(f"{task} of the last of {len(stages)} stages saved in {output / task}", flush=True)
    processes.wait()


def _summary(stage: Stage) -> dict[str, Any]:
    """Of the stage's result. Raises UserError where it cannot be read."""
    path, task = stage.output / RESULT_NAME, stage.experiment.train.task
    result = read_record(path, remedy=RESULT_REMEDY)
    try:
        kept = {name: result[name] for name in ("steps", "stopped_early", "seconds", task, "best", "fingerprint")}
        return {"name": stage.name, **kept, "dev": result["last_step"].get("dev")}
    except (KeyError, AttributeError) as error:
        raise UserError(f"{path} is not a run's result ({error!r}); {RESULT_REMEDY}") from error
