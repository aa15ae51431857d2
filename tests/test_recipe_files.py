"""The recipes' files: what stands in them is taken by the commands, and is the paper's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer import Typer
from typer.testing import CliRunner

import pipeline.cli
import trainer.cli
from data.config.experiment_file import phases_of
from data.config.settings import Experiment, load
from data.digests import hash64
from data.errors import UserError
from data.tables.cl_drd_groups import labels_of
from pipeline.phases import run_phases
from pipeline.plan import tables_to_run
from trainer import recipes
from trainer.objective.losses import ordered_pairs
from trainer.reporting import dry_run

FOLDER = Path(__file__).parent.parent / "recipes"
# tests/test_queue_recipes.py has those of Kubernetes, tests/test_study.py the study's sizes
FILES = sorted(path for path in FOLDER.glob("*/*.yaml") if path.parent.name != "kubernetes" and path.name != "sizes.yaml")


@pytest.mark.medium
@pytest.mark.parametrize("file", FILES, ids=lambda path: path.name if path.stem == path.parent.name else f"{path.parent.name}/{path.name}")
def test_every_file_is_one_that_the_commands_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a key that was renamed in the code alone."""
    for name in ("FOLDER", "OUT", "SEED"):  # of recipes/compare
        monkeypatch.setenv(name, "0")
    phases = phases_of(Experiment, str(file))
    for phase in phases or [""]:
        recipes.load({"config": str(file), **({"phase": phase} if phase else {})})
    if phases:
        with pytest.raises(UserError, match="unknown key phases=none"):  # the last of the checks before work
            run_phases({"config": str(file)}, names=["none"], say=print)


def test_a_misspelt_key_of_a_later_phase_is_told_at_once(tmp_path: Path) -> None:
    """Prevents: a sequence that stops at its last phase, days after the first, for a letter."""
    text = (FOLDER / "prod" / "prod.yaml").read_text()
    (tmp_path / "prod.yaml").write_text(text.replace("{select: prod,", "{selekt: prod,"))
    with pytest.raises(UserError, match=r"unknown key hard_negatives\.selekt; nearest: hard_negatives\.select"):
        load({"config": str(tmp_path / "prod.yaml"), "phase": "w1"})


def test_only_the_lines_that_say_so_need_a_gpu() -> None:
    """Prevents: a job on a CPU node, as the comment allows, that is refused for want of a GPU."""
    text = (FOLDER / "adam" / "commands.sh").read_text()
    said = re.search(r"only (.*?) and train need the GPU", text)
    assert said
    experiment, built = load({"config": str(FOLDER / "adam" / "msmarco.yaml")}), set[str]()
    stages = re.findall(r"^prep run \$config stage=(\w+)$", text, re.MULTILINE)
    for stage in stages:
        tables = [table for table in tables_to_run(experiment, stage) if table.label not in built]
        assert any(table.uses_device for table in tables) == (stage in said[1].split(", ")), stage
        built |= {table.label for table in tables}
    assert "shards" in built and "pools.ranked" in built


@pytest.fixture
def msmarco(collection: Path, tmp_path: Path) -> Path:
    """The tiny collection in MS MARCO's layout."""
    folder = tmp_path / "msmarco"
    folder.mkdir()
    for source, target in (("corpus", "collection.tsv"), ("queries", "queries.train.tsv")):
        rows = [json.loads(line) for line in (collection / f"{source}.jsonl").read_text().splitlines()]
        (folder / target).write_text("".join(f"{row['_id']}\t{row['text']}\n" for row in rows))
    for split, target in (("train", "qrels.train.tsv"), ("dev", "qrels.dev.small.tsv")):
        lines = (collection / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]
        (folder / target).write_text("".join("{}\t0\t{}\t{}\n".format(*line.split("\t")) for line in lines))
    return folder


@pytest.mark.medium
@pytest.mark.parametrize(("name", "phase"), [("adam", ""), ("cl_drd", "coarse"), ("prod", "t1"), ("prod", "c1"), ("prod", "t3")])
def test_msmarco_settings_are_accepted(
    name: str, phase: str, msmarco: Path, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a file for days on a GPU that no command was ever given. Only names, sizes of models and shards, and the device differ."""
    other = {
        "store": tmp_path / "store", "ingest.path": msmarco, "student.model": models.student, "teacher.model": models.teacher,
        "student.passage_tokens": 96, "teacher.max_tokens": 126,  # the tiny models have 128 positions
        "ingest.corpus_shards": 2, "ingest.query_shards": 2, "runner.device": "cpu", "runner.kind": "local", "teacher.precision": "fp32",
        "train.device": "cpu", "train.output": tmp_path / "run",
    }  # fmt: skip
    if phase:
        other |= {"phase": phase, "embed.model": models.student, "student.query_prefix": "", "student.passage_prefix": ""}
    if phase == "c1":
        other["teacher.model"] = models.teacher
    if phase == "t1":
        other["train.objective.teacher_model"] = models.student
    words = [f"config={FOLDER / name / 'msmarco.yaml'}", *(f"{key}={value}" for key, value in other.items())]

    def done(app: Typer, command: str, *more: str) -> str:
        result = CliRunner().invoke(app, [command, *words, *more])
        assert result.exit_code == 0, f"{command}\n{result.output}\n{result.exception}"
        return result.output.strip()

    monkeypatch.setattr(dry_run, "_MEASURED_SECONDS", 0.1)
    assert "ingest.corpus    would build 2 of 2 shards" in done(pipeline.cli.app, "plan")
    done(pipeline.cli.app, "run")
    said = done(trainer.cli.app, "run", f"shards={done(pipeline.cli.app, 'path', 'stage=shards')}", "dry_run=true")
    told = {"t1": "recipe prod_dual", "c1": "task cross_encoder"}.get(phase, f"recipe {name}")
    assert told in said and not (tmp_path / "run").exists()


def test_cl_drd_holds_the_paper_s_values() -> None:
    """Prevents: another curriculum or schedule under the paper's name, by a slip in a file that nobody runs to its end."""
    file = FOLDER / "cl_drd" / "msmarco.yaml"
    loaded = [recipes.load({"config": str(file), "phase": name}) for name in ("coarse", "finer", "finest")]
    experiment, trains = loaded[0], [one.train for one in loaded]
    train = trains[0]
    assert [(one.draw, one.epochs, one.learning_rate) for one in trains] == [(0, 4, 7e-6), (1, 2, 3e-6), (2, 2, 3e-6)]
    assert all((one.warmup_steps, one.weight_decay, one.clip_norm, one.batch_queries) == (4000, 0.01, 1.0, 8) for one in trains)
    sizes = experiment.curriculum.sizes
    assert sizes == ((5, 12, 13), (10, 10, 10), (30, 0, 0))
    kinds = [[kind for kind, size in zip((4, 5, 6), groups, strict=True) for _ in range(size)] for groups in sizes]
    assert [ordered_pairs(labels_of(own)) for own in kinds] == [291, 345, 435]
    assert (experiment.curriculum.near_rank, experiment.curriculum.retrieved, experiment.hard_negatives.depth) == (50, 200, 200)
    assert (experiment.student.query_tokens, experiment.student.passage_tokens) == (30, 256)
    assert train.objective.distillation == "curriculum" and train.objective.in_batch == "none" and train.score_scale == 1
    small = yaml.safe_load((FOLDER / "cl_drd" / "cl_drd.yaml").read_text())
    assert small["curriculum"]["iterations"] == list(experiment.curriculum.iterations)


@pytest.mark.parametrize("name", ["cl_drd", "msmarco"])
def test_each_iteration_of_cl_drd_starts_from_the_one_before(name: str) -> None:
    """Prevents: an iteration from another student, in the order or with the dropout of the one before, or mined by another model."""
    file = str(FOLDER / "cl_drd" / f"{name}.yaml")
    loaded = [recipes.load({"config": file, "phase": name}) for name in ("coarse", "finer", "finest")]
    start = load({"config": file}).student.model
    assert [one.student.model for one in loaded] == [start, *(f"{one.train.output}/student" for one in loaded[:2])]
    assert [one.seed for one in loaded] == [0, *(hash64(0, "stage", number) % 2**31 for number in (1, 2))]  # as ever since
    assert all(one.embed.model == start for one in loaded)
