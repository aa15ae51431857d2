from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
import yaml

from data.config import settings
from data.config.settings import Objective
from data.errors import UserError
from trainer.recipes import PRESETS, check_lists, check_negatives, load

RECIPES = Path(__file__).parents[2] / "recipes"
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


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"distillation": "margin_mse"}, r"set include_positive=true, or leave distillation out and use recipe=margin_mse"),
        ({"distillation": "margin_mse", "without": "adaptive,supervised"}, "P~ has no p[+]"),
        ({"distillation": "margin_mse", "without": "reinforced"}, "P~ has no p[+]"),
        ({"distillation": "margin_mse", "include_positive": "true", "temperature": "4"}, "temperature=4 has no effect .*margin_mse"),
        ({"distillation": "curriculum", "without": "supervised", "temperature": "2"}, "temperature=2 has no effect .*curriculum"),
        (
            {"supervised_weight": "1", "without": "distillation", "temperature": "0.5"},
            "temperature=0.5 has no effect .*without=distillation",
        ),
    ],
)
def test_a_loss_that_is_not_what_it_is_called_is_refused(file: Path, objective: dict[str, str], said: str) -> None:
    """Prevents: MarginMSE whose margins are to the first negative, since P~ has no p+; a temperature that nothing reads."""
    with pytest.raises(UserError, match=said):
        load({"config": str(file), **{f"train.objective.{name}": value for name, value in objective.items()}})


def test_margin_mse_in_every_form_that_has_its_positive(file: Path) -> None:
    """Prevents: a refusal of lists that hold p+, or of a temperature that the term of the student's start reads."""
    words = {"config": str(file), "train.objective.distillation": "margin_mse", "train.objective.include_positive": "true"}
    for more in (
        {},
        {"train.objective.without": "noisy"},
        {"train.objective.reference_kl_weight": "1", "train.objective.temperature": "4"},
    ):
        assert load({**words, **more}).train.objective.has_positive
    assert load({"config": str(file), "recipe": "margin_mse"}).train.objective.has_positive
    with pytest.raises(UserError, match="temperature=4 has no effect"):
        load({"config": str(file), "recipe": "margin_mse", "train.objective.temperature": "4"})


@pytest.mark.parametrize(
    ("objective", "said"),
    [
        ({"teacher_temperature": "2"}, "teacher_temperature=2 has no effect with distillation=kl: set distillation=listwise"),
        (
            {"teacher_temperature": "2", "distillation": "listwise", "without": "distillation", "supervised_weight": "1"},
            "distillation: set",
        ),
        ({"score_transform": "zscore", "without": "distillation", "supervised_weight": "1"}, "score_transform=zscore .*nothing is learned"),
        ({"score_transform": "minmax", "distillation": "curriculum", "without": "supervised"}, "score_transform=minmax .*leave it out"),
        ({"score_transform": "zscore", "in_batch": "distillation"}, "needs a logit of each passage.*in_batch=none or supervised"),
        ({"confidence": "mean", "without": "adaptive"}, "confidence and share_over are of the selection"),
        ({"share_over": "run", "without": "adaptive"}, "confidence and share_over are of the selection"),
        ({"positive_weights": "1:0.5,2:1", "without": "supervised"}, "positive_weights are of the supervised loss"),
        ({"positive_weights": "1:0.5,2:1", "supervised_weight": "0", "without": "noisy"}, "positive_weights are of the supervised loss"),
        ({"positive_weights": "1:0"}, "positive_weights are all 0"),
        ({"positive_weights": "1:-1"}, "greater than or equal to 0"),
        ({"positive_weights": "good"}, "positive_weights: expected names and values"),
    ],
)
def test_a_setting_without_effect_is_refused(file: Path, objective: dict[str, str], said: str) -> None:
    """Prevents: a run that is reported to have a temperature, a transform or weights which nothing in it reads."""
    with pytest.raises(UserError, match=said):
        load({"config": str(file), **{f"train.objective.{name}": value for name, value in objective.items()}})


def test_listwise_and_its_temperatures(file: Path) -> None:
    """Prevents: dark examples or the supervised loss left in a list-wise baseline, and weights that only a command line can give."""
    objective = load({"config": str(file), "recipe": "listwise", "train.objective.teacher_temperature": "3"}).train.objective
    assert objective.distillation == "listwise" and objective.without == ALL and objective.has_positive
    assert (objective.temperature, objective.teacher_temperature, objective.score_transform) == (1.0, 3.0, "none")
    margins = load({"config": str(file), "recipe": "margin_mse", "train.objective.score_transform": "zscore"}).train.objective
    assert (margins.distillation, margins.score_transform) == ("margin_mse", "zscore")
    given = load({"config": str(file), "train.objective.positive_weights": "{1: 0.5, 2: 1.0}"}).train.objective.positive_weights
    file.write_text(file.read_text().replace("supervised_weight: 0.5,", "supervised_weight: 0.5, positive_weights: {1: 0.5, 2: 1},"))
    assert given == load({"config": str(file)}).train.objective.positive_weights == {1: 0.5, 2: 1.0}


def test_a_cross_encoder_learns_from_logits_where_a_distillation_is_named(tmp_path: Path) -> None:
    """Prevents: a loss that is named and not taken, and a cross-encoder of the labels that learns from logits it was not given."""
    file = tmp_path / "e.yaml"
    file.write_text("store: s\ningest: {path: p}\nstudent: {model: m}\nteacher: {model: t}\n")
    words = {"config": str(file), "task": "cross_encoder"}
    assert "distillation" in load(words).train.objective.without and load(words).train.objective.supervised_weight == 1
    for loss in ("kl", "listwise", "margin_mse"):
        objective = load({**words, "train.objective.distillation": loss}).train.objective
        assert objective.without == ALL and objective.distillation == loss and objective.has_positive
    both = {"train.objective.without": "reinforced,noisy,adaptive", "train.objective.distillation": "kl"}
    assert load({**words, **both}).train.objective.uses_positive
    for more, said in (
        (
            {"train.objective.distillation": "curriculum", "train.objective.without": ",".join(ALL)},
            "carry no labels for distillation=curriculum",
        ),
        ({"train.objective.without": "adaptive"}, "its own negatives alone"),
        ({"train.objective.distillation": "kl", "train.objective.reference_kl_weight": "1"}, "reference_kl_weight and .teacher_model out"),
        ({"train.objective.distillation": "kl", "train.objective.in_batch": "both"}, "its own negatives alone"),
    ):
        with pytest.raises(UserError, match=said):
            load({**words, **more})


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


def test_a_file_with_phases_is_not_trained_without_one(file: Path) -> None:
    """The rest of such a file is no training: it would be ADAM's defaults on whatever shards are given."""
    file.write_text(file.read_text() + "phases: {first: {train: {recipe: prod}}, second: {train: {epochs: 1}}}\n")
    with pytest.raises(UserError, match="phase=first, phase=second"):
        load({"config": str(file)})
    first = load({"config": str(file), "phase": "first"}).train
    assert (first.recipe, first.objective.temperature, first.epochs) == ("prod", 4, 7)
    assert load({"config": str(file), "phase": "second"}).train.recipe == "adam"


def test_the_ladder_holds_the_paper_s_values() -> None:
    """Another schedule under the paper's name, by a slip in a file that nobody runs to its end."""
    published = RECIPES / "prod" / "msmarco.yaml"
    loaded = {name: load({"config": str(published), "phase": name}) for name in yaml.safe_load(published.read_text())["phases"]}
    schedule = {
        name: (one.train.steps, one.train.learning_rate, one.train.warmup_steps, one.train.batch_queries) for name, one in loaded.items()
    }
    distil = (40_000, 5e-5, 4000)
    assert schedule == {
        "dev": (None, 5e-5, 100, 128),
        **dict.fromkeys(("w1_teacher", "w1"), (40_000, 2e-5, 4000, 128)), **dict.fromkeys(("w2_teacher", "w2"), (10_000, 2e-5, 1000, 128)),
        "t1": (*distil, 128), "c1": (6000, 1e-5, 1000, 256), "t2": (*distil, 64), "c2": (6000, 5e-6, 600, 256), "t3": (*distil, 64),
        **dict.fromkeys(("d1", "d2", "d3"), (2000, 1e-5, 200, 64)),
    }  # fmt: skip
    for name in ("t1", "t2", "t3", "d1"):
        objective = loaded[name].train.objective
        weights = (objective.supervised_weight, objective.distillation_weight, objective.reference_kl_weight)
        assert weights == (0.1, 0.9, 0.0 if name == "t1" else 1.0)
        assert (objective.temperature, objective.temperature_squared, objective.in_batch) == (4, True, "both" if name == "t1" else "none")
    lists = loaded["d1"].hard_negatives
    assert (lists.depth, lists.range_max, lists.num_negatives, lists.select, lists.sampler) == (1000, 100, 15, "prod", "top")
    assert all((one.train.clip_norm, one.train.weight_decay) == (2.0, 0) for one in loaded.values())
    assert (loaded["t3"].student.query_tokens, loaded["t3"].student.passage_tokens, loaded["t3"].teacher.max_tokens) == (32, 144, 160)


def test_lists_must_be_those_of_the_loss(file: Path) -> None:
    """Prevents: a supervised loss over a list that has no one p+, or a loss of labels over lists that have none."""
    curriculum = load({"config": str(file), "recipe": "cl_drd"}).train.objective
    assert curriculum.distillation == "curriculum" and curriculum.without == ALL
    check_lists(curriculum, labelled=True, iterations=3, draw=0)
    check_lists(curriculum, labelled=True, iterations=1, draw=None)
    check_lists(curriculum, labelled=True, iterations=0, draw=None)  # labels of someone else
    with pytest.raises(UserError, match=r"3 iterations.*a phase of the file"):
        check_lists(curriculum, labelled=True, iterations=3, draw=None)
    with pytest.raises(UserError, match=r"curriculum\.enabled=true"):
        check_lists(curriculum, labelled=False, iterations=0, draw=0)
    with pytest.raises(UserError, match="recipe=cl_drd"):
        check_lists(Objective(), labelled=True, iterations=3, draw=0)
    kl_over_the_list = load({"config": str(file), "recipe": "hard_kd"}).train.objective
    check_lists(kl_over_the_list, labelled=True, iterations=3, draw=None)
    for words in ({"train.objective.without": "noisy"}, {"train.objective.in_batch": "distillation"}):
        with pytest.raises(UserError, match="curriculum"):
            load({"config": str(file), "recipe": "cl_drd", **words})


def test_a_training_s_own_seed_is_its_seed_alone(file: Path) -> None:
    """A seed that changes the data too, or that is noted and not used."""
    own = load({"config": str(file), "seed": "3", "train.seed": "7"})
    assert own.seed == 7 and load({"config": str(file), "seed": "3"}).seed == 3
    assert settings.load({"config": str(file), "seed": "3", "train.seed": "7"}).seed == 3


def test_a_recipe_is_a_name_that_the_settings_have() -> None:
    """A preset that no file can name, or a name without one."""
    assert list(get_args(settings.Train.model_fields["recipe"].annotation)) == list(PRESETS)
