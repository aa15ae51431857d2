from __future__ import annotations

from pathlib import Path

import pytest

from data.errors import UserError
from data.settings import Objective
from trainer.recipes import check_lists, check_negatives, load

ALL = ("reinforced", "noisy", "adaptive", "supervised")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "e.yaml"
    path.write_text(
        "store: s\ningest: {path: p}\nstudent: {model: m}\nteacher: {model: t}\n"
        "train: {objective: {supervised_weight: 0.5, without: [noisy]}, epochs: 7}\n"
    )
    return path


def test_defaults_are_the_paper() -> None:
    """A preset named after the paper takes its literal text."""
    objective = Objective()
    assert (objective.supervised_weight, objective.without, objective.include_positive, objective.reduction) == (0.01, (), False, "batch")
    assert (objective.count_epochs_from, objective.temperature, objective.in_batch) == (0, 1.0, "none")


def test_files_objective_wins_over_its_own_recipe(file: Path) -> None:
    """A preset that overwrites the file trains something else than the file says."""
    objective = load({"config": str(file)}).train.objective
    assert objective.supervised_weight == 0.5 and objective.without == ("noisy",)
    assert load({"config": str(file), "recipe": "adam"}).train.objective == objective


def test_other_recipe_drops_the_files_objective(file: Path) -> None:
    """`recipe=hard_kd` on an ablation file of adam would be neither."""
    train = load({"config": str(file), "recipe": "hard_kd"}).train
    assert train.objective.without == ALL and train.objective.include_positive and train.objective.supervised_weight == 0.01
    assert train.epochs == 7
    assert load({"config": str(file), "recipe": "rand_kd"}).train.objective == train.objective


def test_command_line_wins_over_all(file: Path) -> None:
    """An override that is lost to a preset."""
    words = {"config": str(file), "recipe": "hard_kd", "train.objective.without": "reinforced", "train.objective.temperature": "2"}
    objective = load(words).train.objective
    assert objective.without == ("reinforced",) and objective.temperature == 2 and objective.include_positive


@pytest.mark.parametrize("without", [ALL[:1], ALL[1:2], ALL[:2], ALL[:3], ALL])
def test_rows_of_table_3_are_one_override(file: Path, without: tuple[str, ...]) -> None:
    """An ablation that cannot be asked for by name."""
    assert load({"config": str(file), "train.objective.without": ",".join(without)}).train.objective.without == without


def test_faults_are_named(file: Path) -> None:
    """A misspelt recipe or key that trains the default."""
    with pytest.raises(UserError, match="hard_kd"):
        load({"config": str(file), "recipe": "hardkd"})
    with pytest.raises(UserError, match=r"train\.objective\.without"):
        load({"config": str(file), "train.objective.witout": "noisy"})
    file.write_text(file.read_text().replace("supervised_weight", "supervised_wight"))
    with pytest.raises(UserError, match="supervised_weight"):
        load({"config": str(file), "recipe": "hard_kd"})  # checked although the recipe drops it


def test_negatives_must_be_those_of_the_name() -> None:
    """Rand KD on mined negatives is Hard KD under another name."""
    with pytest.raises(UserError, match=r"hard_negatives\.source=random"):
        check_negatives("rand_kd", source="student")
    with pytest.raises(UserError, match="rand_kd"):
        check_negatives("hard_kd", source="random")
    for recipe, source in [("cl_drd", "student"), ("rand_kd", "random"), ("hard_kd", "bm25"), ("adam", "student"), ("adam", "random")]:
        check_negatives(recipe, source=source)


def test_lists_must_be_those_of_the_loss(file: Path) -> None:
    """A supervised loss over a list that has no one p+, or groups that are none."""
    curriculum = load({"config": str(file), "recipe": "cl_drd"}).train.objective
    assert curriculum.distillation == "curriculum" and curriculum.without == ALL
    check_lists(curriculum, iterations=3, draw=0)
    check_lists(curriculum, iterations=1, draw=None)
    with pytest.raises(UserError, match=r"3 iterations.*train\.stages"):
        check_lists(curriculum, iterations=3, draw=None)
    with pytest.raises(UserError, match=r"curriculum\.enabled=true"):
        check_lists(curriculum, iterations=0, draw=0)
    with pytest.raises(UserError, match="recipe=cl_drd"):
        check_lists(Objective(), iterations=3, draw=0)
    check_lists(load({"config": str(file), "recipe": "hard_kd"}).train.objective, iterations=3, draw=None)  # KL over the list
    for words in ({"train.objective.without": "noisy"}, {"train.objective.in_batch": "distillation"}):
        with pytest.raises(UserError, match="curriculum"):
            load({"config": str(file), "recipe": "cl_drd", **words})
