"""Settings: what a value becomes, and what an error says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic.fields import FieldInfo

from data.config import Section, all_keys, keyed_values, parse_arguments, read_yaml
from data.errors import EXIT_BAD_INPUT, UserError
from data.settings import Experiment, HardNegatives, Runner, load

MINIMAL = """
store: runs/store
ingest: {path: collection}
student: {model: a/student}
teacher: {model: a/teacher}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(MINIMAL)
    return path


def load_with(file: Path, **overrides: str) -> Experiment:
    return load({"config": str(file), **overrides})


def test_values_are_coerced_by_the_declared_type(file: Path) -> None:
    """Prevents: YAML's guessing, where a model named 1e3 is the number 1000 and 5e-5 a string."""
    overrides = {
        "teacher.model": "1e3", "student.model": "on", "train.learning_rate": "5e-5", "hard_negatives.negatives": "7",
        "student.normalize": "true", "dark_examples.reinforced": "false", "dark_examples.mask_ratios": "0.1, 0.2", "student.layers": "null",
    }  # fmt: skip
    read = load_with(file, **overrides)
    assert (read.teacher.model, read.student.model) == ("1e3", "on")
    assert read.train.learning_rate == 5e-5 and read.hard_negatives.negatives == 7
    assert read.student.normalize is True and read.dark_examples.reinforced is False and read.student.layers is None
    assert read.dark_examples.mask_ratios == (0.1, 0.2)


def test_the_file_is_read_like_the_command_line(file: Path) -> None:
    """Prevents: a value that means one thing in the file and another as an override."""
    more = "train: {learning_rate: 5e-5}\ndark_examples: {mask_ratios: [0.1, 0.2]}\nseed: 0x10\n"
    file.write_text(MINIMAL.replace("a/teacher", "1e3") + more)
    with pytest.raises(UserError, match="seed"):
        load_with(file)
    read = load_with(file, seed="3")
    assert read.teacher.model == "1e3" and read.train.learning_rate == 5e-5 and read.dark_examples.mask_ratios == (0.1, 0.2)


@pytest.mark.parametrize(("text", "expected"), [("", ()), ("[]", ()), ("[0.5]", (0.5,)), ("0.1,0.2", (0.1, 0.2))])
def test_lists(file: Path, text: str, expected: tuple[float, ...]) -> None:
    """Prevents: an empty list that cannot be said, so that masks cannot be switched off."""
    assert load_with(file, **{"dark_examples.mask_ratios": text}).dark_examples.mask_ratios == expected


def test_later_words_win_and_shorthands_are_spelt_out(file: Path) -> None:
    """Prevents: `runner=local` that is an error or, worse, ignored."""
    words = parse_arguments([f"config={file}", "seed=1", "seed=2", "runner=local", "recipe=hard_kd"])
    read = load(words)
    assert (read.seed, read.runner.kind, read.train.recipe) == (2, "local", "hard_kd")


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("hard_negatives.negativs", "hard_negatives.negatives"),
        ("learning_rate", "train.learning_rate"),
        ("teachr.model", "teacher.model"),
        ("train.objective.supervised_wieght", "train.objective.supervised_weight"),
    ],
)
def test_an_unknown_key_names_the_nearest(file: Path, key: str, nearest: str) -> None:
    """Prevents: a misspelt override that changes nothing, in a run of hours."""
    with pytest.raises(UserError) as caught:
        load_with(file, **{key: "1"})
    assert key.split(".")[0] in str(caught.value) and nearest in str(caught.value) and caught.value.exit_code == EXIT_BAD_INPUT


def test_an_unknown_section_in_the_file(file: Path) -> None:
    """Prevents: a whole section of settings that is never read."""
    file.write_text(MINIMAL + "hard_negative: {negatives: 7}\n")
    with pytest.raises(UserError, match="unknown key hard_negative; nearest: hard_negatives"):
        load_with(file)


@pytest.mark.parametrize("overrides", [{"train": "fast"}, {"train.objective": "kd"}])
def test_a_section_is_no_value(file: Path, overrides: dict[str, str]) -> None:
    """Prevents: a traceback where a user gave a section a value."""
    with pytest.raises(UserError, match="is a section: set one of its keys"):
        load_with(file, **overrides)


def test_a_value_is_no_section(file: Path) -> None:
    """Prevents: a traceback where a user went one dot too deep."""
    with pytest.raises(UserError, match="seed"):
        load_with(file, **{"seed": "1", "seed.value": "1"})


@pytest.mark.parametrize(
    ("key", "value"),
    [("seed", "one"), ("seed", "1.5"), ("hard_negatives.negatives", "0"), ("runner.kind", "slurm"), ("train.epochs", "null"),
     ("dark_examples.mask_ratios", "0.5,0.5"), ("dark_examples.mask_ratios", "1.5"), ("train.learning_rate", "nan")],
)  # fmt: skip
def test_a_wrong_value_names_its_key_and_itself(file: Path, key: str, value: str) -> None:
    """Prevents: a bad value that is cut or rounded to something else."""
    with pytest.raises(UserError) as caught:
        load_with(file, **{key: value})
    assert key in str(caught.value)


def test_faults_between_fields_are_told(file: Path) -> None:
    """Prevents: negatives drawn from an empty window of ranks."""
    with pytest.raises(UserError, match="last_rank <= depth"):
        load_with(file, **{"hard_negatives.last_rank": "200"})
    with pytest.raises(UserError, match="run_file=FILE"):
        load_with(file, **{"hard_negatives.source": "run"})


def test_missing_files_and_words(file: Path, tmp_path: Path) -> None:
    """Prevents: a mistyped file name that gives a traceback, without saying what there is."""
    with pytest.raises(UserError, match=r"experiment\.yaml"):
        read_yaml(tmp_path / "experimnt.yaml")
    with pytest.raises(UserError, match="config=FILE"):
        load({})
    with pytest.raises(UserError, match="expected key=value"):
        parse_arguments(["--stage", "embed"])
    with pytest.raises(UserError, match="expected key=value"):
        parse_arguments(["=1"])
    for content in ("[1, 2]", "", "a: [", "store: \xe9".encode("latin-1")):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(UserError, match=r"YAML|mapping"):
            read_yaml(file)


def test_execution_fields_are_not_keyed() -> None:
    """Prevents: a new batch size or path that throws away all outputs of a stage, or a keyed one that does not."""
    experiment = HardNegatives(source="run", run_file="a.run")
    assert "run_file" not in keyed_values(experiment) and keyed_values(experiment)["negatives"] == 10
    assert keyed_values(HardNegatives(), leave_out=("depth",)).keys() == keyed_values(HardNegatives()).keys() - {"depth"}
    assert keyed_values(Runner()) == {}


def fields(model: type[Section], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from fields(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


@pytest.mark.parametrize(("name", "field"), list(fields(Experiment)), ids=lambda value: value if isinstance(value, str) else "")
def test_every_field_has_a_meaning_and_a_mark(name: str, field: FieldInfo) -> None:
    """Prevents: a new setting that is neither keyed nor execution, so that changing it leaves stale shards in use."""
    assert field.description, f"{name} says nothing of its meaning"
    assert isinstance(field.json_schema_extra, dict) and isinstance(field.json_schema_extra.get("keyed"), bool), f"{name} has no mark"


def test_all_keys_are_settable_names() -> None:
    """Prevents: hints that name keys which do not exist."""
    assert [name for name, _ in fields(Experiment)] == all_keys(Experiment)


@pytest.mark.parametrize("recipe", sorted((Path(__file__).parents[2] / "recipes").rglob("*.yaml")), ids=lambda path: path.name)
def test_recipes_load(recipe: Path) -> None:
    """Prevents: a recipe with a key that was renamed, which nobody notices until a cluster job starts."""
    assert load({"config": str(recipe)}).store


STEPS = """
train: {epochs: 5, objective: {temperature: 2}}
steps:
  first: {train: {epochs: 1}}
  second: {teacher: {model: b/teacher}, train: {learning_rate: 1e-3, objective: {supervised_weight: 0.5}}}
"""


def test_a_step_lies_over_the_file_and_below_the_command_line(file: Path) -> None:
    """Prevents: a step that throws away the rest of a section, or wins over what a person typed."""
    file.write_text(MINIMAL + STEPS)
    assert load_with(file).train.epochs == 5
    assert load_with(file, step="first").train.epochs == 1
    second = load_with(file, step="second", **{"train.learning_rate": "1e-4"})
    assert (second.teacher.model, second.train.epochs, second.train.learning_rate) == ("b/teacher", 5, 1e-4)
    assert (second.train.objective.temperature, second.train.objective.supervised_weight) == (2, 0.5)


def test_an_unknown_step_is_told(file: Path) -> None:
    """Prevents: a misspelt step that quietly trains by the rest of the file."""
    with pytest.raises(UserError, match="no steps"):
        load_with(file, step="first")
    file.write_text(MINIMAL + STEPS)
    with pytest.raises(UserError, match=r"step=third: .* has the steps first, second"):
        load_with(file, step="third")
    file.write_text(MINIMAL + "steps: {first: {train: {epochz: 1}}}")
    with pytest.raises(UserError, match="epochs"):
        load_with(file, step="first")


def float_keys(model: type[Section], prefix: str = "") -> Iterator[str]:
    """Dotted keys of all settings that are numbers with fractions, alone or in a list."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from float_keys(field.annotation, f"{prefix}{name}.")
        elif "float" in str(field.annotation):
            yield f"{prefix}{name}"


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999"])
def test_numbers_are_finite(file: Path, value: str) -> None:
    """Prevents: train.learning_rate=inf, which makes every parameter NaN, and a threshold of nan, which no number is above or below."""
    keys = list(float_keys(Experiment))
    assert {"train.learning_rate", "train.clip_norm", "hard_negatives.simans_a", "dark_examples.mask_ratios", "runner.gpus"} <= set(keys)
    for key in keys:
        with pytest.raises(UserError, match=rf"{key}\b.*(finite number|greater than)"):
            load_with(file, **{key: value})
    with pytest.raises(UserError, match=r"train\.stages\.a: .*\n.*learning_rate: .*finite number"):
        load_with(file, **{"train.stages.a.learning_rate": value.lstrip("-")})


@pytest.mark.parametrize("key", ["train.threads", "train.workers", "runner.threads"])
def test_threads_that_no_machine_has_are_refused(file: Path, key: str) -> None:
    """Prevents: a process that OpenMP ends without a word, or with a segmentation fault, when it is refused the threads."""
    with pytest.raises(UserError, match=f"{key}: .*less than or equal to 1024"):
        load_with(file, **{key: "100000"})
