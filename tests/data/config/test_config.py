"""Settings: what a value becomes, and what an error says."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic.fields import FieldInfo

from data.config.experiment_file import read_yaml
from data.config.fields import Section, all_keys, keyed_values, parse_arguments, warn_once
from data.config.settings import Experiment, HardNegatives, Runner, load, merged, with_absolute_paths
from data.errors import EXIT_BAD_INPUT, UserError

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
        "teacher.model": "1e3", "student.model": "on", "train.learning_rate": "5e-5", "hard_negatives.num_negatives": "7",
        "student.normalize": "true", "dark_examples.reinforced": "false", "dark_examples.mask_ratios": "0.1, 0.2", "student.layers": "null",
    }  # fmt: skip
    read = load_with(file, **overrides)
    assert (read.teacher.model, read.student.model) == ("1e3", "on")
    assert read.train.learning_rate == 5e-5 and read.hard_negatives.num_negatives == 7
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
        ("hard_negatives.negativs", "hard_negatives.num_negatives"),
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
    [("seed", "one"), ("seed", "1.5"), ("hard_negatives.num_negatives", "0"), ("runner.kind", "slurm"), ("train.epochs", "null"),
     ("dark_examples.mask_ratios", "0.5,0.5"), ("dark_examples.mask_ratios", "1.5"), ("train.learning_rate", "nan")],
)  # fmt: skip
def test_a_wrong_value_names_its_key_and_itself(file: Path, key: str, value: str) -> None:
    """Prevents: a bad value that is cut or rounded to something else."""
    with pytest.raises(UserError) as caught:
        load_with(file, **{key: value})
    assert key in str(caught.value)


def test_poolings_are_named_as_in_sentence_transformers(file: Path) -> None:
    """Prevents: a pooling that no one has found out when the student is opened; one of several that is read over."""
    assert load_with(file, **{"student.pooling": "max+lasttoken"}).student.pooling == "max+lasttoken"
    for value in ("last", "cls+", "auto+mean", ""):
        with pytest.raises(UserError, match=r"student\.pooling: .*expected auto, cls, mean, max, mean_sqrt_len_tokens, weightedmean"):
            load_with(file, **{"student.pooling": value})


def test_faults_between_fields_are_told(file: Path) -> None:
    """Prevents: negatives drawn from an empty window of ranks."""
    with pytest.raises(UserError, match="range_max <= depth"):
        load_with(file, **{"hard_negatives.range_max": "200"})
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


@pytest.mark.parametrize(
    ("more", "key", "lines"),
    [
        ("seed: 1\nseed: 2\n", "seed", "6 and 7"),
        ("embed: {precision: fp32}\nteacher: {model: other}\n", "teacher", "5 and 7"),
        ("train:\n  epochs: 1\n  steps: 2\n  epochs: 3\n", "epochs", "7 and 9"),
        ("phases: {a: {train: {epochs: 1}}, b: {}, a: {}}\n", "a", "6 and 6"),
        ("phases:\n  a: {}\n  a: {}\n", "a", "7 and 8"),
        ('{"store": "a",\n"seed": 1,\n"seed": 2}', "seed", "2 and 3"),
    ],
)
def test_a_key_that_stands_twice_is_refused(file: Path, more: str, key: str, lines: str) -> None:
    """Prevents: the later section replacing the whole earlier one, or the later value, without a word."""
    file.write_text(more if more.startswith("{") else MINIMAL + more)
    with pytest.raises(UserError, match=f"the key {key} stands twice in one mapping, in lines {lines}: put them together"):
        load_with(file)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (MINIMAL + "x: &x {seed: 1}\ntrain: {<<: *x}\n", "line 7: merge keys"),
        (MINIMAL + "\tseed: 1\n", "readable YAML"),
        (MINIMAL + "---\nseed: 1\n", "readable YAML"),
        ("[" * 1000, "readable YAML"),
        ("a: &a [*a]\n", "readable YAML"),
        (MINIMAL.encode("utf-16"), "readable YAML"),
        ("- store\n", "it holds a list"),
        ("store\n", "it holds a single value"),
        ("", "it holds nothing"),
        ('{"architectures": ["BertModel"], "hidden_size": 3}', "is no experiment: it has the keys architectures, hidden_size"),
    ],
)
def test_a_file_of_another_kind_is_told(file: Path, content: str | bytes, words: str) -> None:
    """Prevents: a traceback, or an error about a key where the file is another one."""
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=words):
        load_with(file)
    with pytest.raises(UserError, match=r"is a folder, not a configuration file; found .*experiment\.yaml"):
        load({"config": str(file.parent)})


@pytest.mark.parametrize("null", ["", "~", "null"])
def test_a_section_without_keys_has_its_defaults(file: Path, null: str) -> None:
    """Prevents: a file that is refused since all keys of a section were commented out."""
    more = f"runner: {null}\n#  kind: local\ndev: {null}\nhard_negatives: {{false_negatives: {null}}}\n"
    file.write_text(f"{MINIMAL}{more}phases: {{a: {{train: {null}}}, b: {null}}}\n")
    assert load_with(file) == load_with(file, phase="a") == load_with(file, phase="b")
    assert load_with(file).runner == Runner() and load_with(file).dev.queries is None
    with pytest.raises(UserError, match="is a section"):
        load_with(file, embed="")


def test_what_is_missing_is_told_alone(tmp_path: Path) -> None:
    """Prevents: all other settings printed as what was found where a section is missing."""
    (tmp_path / "new.yaml").write_text("store: s\nstudent:\n  # model: x\nteacher: {model: t}\ningest: {path: c}\n")
    with pytest.raises(UserError) as caught:
        load({"config": str(tmp_path / "new.yaml")})
    assert str(caught.value).splitlines() == ["the configuration has faults:", "  student: Field required"]


ALL_PATHS = {
    "store": "store", "ingest.path": "collection", "student.model": "student", "teacher.model": "teacher", "embed.model": "miner",
    "hard_negatives.run_file": "a.run", "train.output": "out", "train.dev": "dev", "train.objective.teacher_model": "dual",
    "evaluation.out": "evaluated", "evaluation.rerank": "b.run", "teacher.template": "pairs.jinja", "lists.path": "lists",
    "dev.collections": "nano", "runner.working_dir": "code",
}  # fmt: skip


@pytest.mark.parametrize("start", ["~", "$PLACE", "${PLACE}"])
def test_homes_and_variables_are_replaced_in_every_path(file: Path, monkeypatch: pytest.MonkeyPatch, start: str) -> None:
    """Prevents: one path in the home folder and another in a folder called `~`, where its shards are looked for in vain."""
    for name in ("HOME", "PLACE"):
        monkeypatch.setenv(name, "/there")
    file.write_text(MINIMAL.replace("runs/store", f"{start}/store"))
    read = load_with(file, **{key: f"{start}/{name}" for key, name in ALL_PATHS.items()})
    assert load_with(file).store == "/there/store"
    found = [
        read.store, read.ingest.path, read.student.model, read.teacher.model, read.embed.model, read.hard_negatives.run_file,
        read.train.output, *read.train.dev, read.train.objective.teacher_model, read.evaluation.out, read.evaluation.rerank,
        read.teacher.template, read.lists.path, *read.dev.collections, read.runner.working_dir,
    ]  # fmt: skip
    assert found == [f"/there/{name}" for name in ALL_PATHS.values()]
    marked = {
        name for name, field in fields(Experiment) if isinstance(field.json_schema_extra, dict) and field.json_schema_extra.get("path")
    }
    assert marked == set(ALL_PATHS)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("a", ["a"]), ("~/a, $PLACE/b", ["/there/a", "/there/b"]), ("[a,b]", ["a", "b"]), ("a\nb\n", ["a", "b"]), ("x[12]", ["x[12]"]),
        ("", []), ("null", []), ("~", []), ("none", []), (["~/a,b", "c"], ["/there/a,b", "c"]), ([], []),
    ],
)  # fmt: skip
def test_lists_of_paths(file: Path, monkeypatch: pytest.MonkeyPatch, written: Any, read: list[str]) -> None:
    """Prevents: a second folder that stays in a folder called `~`, what `prep path` prints taken for one folder, a pattern without its
    bracket, and a null that becomes a folder."""
    for name in ("HOME", "PLACE"):
        monkeypatch.setenv(name, "/there")
    values = {"ingest": {"path": "x"}, "student": {"model": "x"}, "teacher": {"model": "x"}, "store": "x"}
    experiment = merged({**values, "train": {"dev": written}}, {})
    assert list(experiment.train.dev) == read
    absolute = with_absolute_paths(experiment).train.dev
    assert list(absolute) == [str(Path(path).absolute()) for path in read]


@pytest.mark.parametrize("key", ["store", "train.output", "evaluation.out"])
@pytest.mark.parametrize(
    ("value", "words"), [("$NOWHERE/x", "NOWHERE is not set"), ("${EMPTY}/x", "EMPTY is not set"), ("~nobody9/x", "no home")]
)
def test_what_a_path_lacks_is_named(file: Path, monkeypatch: pytest.MonkeyPatch, key: str, value: str, words: str) -> None:
    """Prevents: a folder called `$HOME`, or one at the root of the disk, since a variable is empty."""
    monkeypatch.setenv("EMPTY", "")
    with pytest.raises(UserError, match=f"(?s){re.escape(key)}=.*{words}"):
        load_with(file, **{key: value})


def test_what_is_no_home_and_no_variable_stays(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: addresses and hub ids that change, and a null that becomes the home folder."""
    monkeypatch.setenv("BUCKET", "mine")
    read = load_with(file, **{"ingest.path": "s3://$BUCKET/~/c", "train.dev": "~", "student.model": "org/name~x", "store": "a~$/b"})
    assert (read.ingest.path, read.train.dev, read.student.model, read.store) == ("s3://mine/~/c", (), "org/name~x", "a~$/b")
    for empty in ("", "~", "null"):
        with pytest.raises(UserError, match="store is empty: give a path"):
            load_with(file, store=empty)


def test_workers_get_absolute_paths(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a worker in another folder that looks for the collection there, or a hub id or a template's name that becomes a path."""
    monkeypatch.chdir(tmp_path)
    for folder in ("local", "zerank-2"):
        (tmp_path / folder).mkdir()
    read = with_absolute_paths(load_with(file, **{"embed.model": "local", "teacher.template": "zerank-2"}))
    assert read.teacher.template == "zerank-2"
    assert (read.store, read.ingest.path) == (str(tmp_path / "runs/store"), str(tmp_path / "collection"))
    assert (read.student.model, read.embed.model) == ("a/student", str(tmp_path / "local"))
    assert with_absolute_paths(read) == read
    (tmp_path / "rankllama").mkdir()  # as a clone of the model has
    named = with_absolute_paths(load_with(file, **{"teacher.template": "rankllama"}))
    assert named.teacher.template == "rankllama"


def test_a_path_that_is_no_text_is_told(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a traceback where a path of another encoding becomes JSON for a worker."""
    with pytest.raises(UserError, match=r"store=.*is no text"):
        load_with(file, store="a\udcff")
    (folder := Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))).mkdir()
    monkeypatch.chdir(folder)
    with pytest.raises(UserError, match=r"store=.*is no text"):
        with_absolute_paths(load_with(file))


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


RECIPES = [
    path
    for path in sorted((Path(__file__).parents[3] / "recipes").rglob("*.yaml"))
    if path.parent.name != "kubernetes" and path.name != "sizes.yaml"  # these are no experiments
]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_recipes_load(recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: a recipe with a key that was renamed, which nobody notices until a cluster job starts."""
    warn_once.cache_clear()
    for name in ("FOLDER", "OUT", "SEED"):
        monkeypatch.setenv(name, "0")
    assert load({"config": str(recipe)}).store and not capsys.readouterr().err


def float_keys(model: type[Section], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Dotted keys of all settings that are numbers with fractions, alone or in a list, and whether they are in a mapping."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from float_keys(field.annotation, f"{prefix}{name}.")
        elif "float" in str(field.annotation):
            yield f"{prefix}{name}", str(field.annotation).startswith("dict")


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "1e999"])
def test_numbers_are_finite(file: Path, value: str) -> None:
    """Prevents: train.learning_rate=inf, which makes every parameter NaN, and a threshold of nan, which no number is above or below."""
    keys = dict(float_keys(Experiment))
    assert {"train.learning_rate", "train.clip_norm", "hard_negatives.simans_a", "dark_examples.mask_ratios", "runner.gpus"} <= set(keys)
    for key, of_mapping in keys.items():
        with pytest.raises(UserError, match=rf"{key}\b.*(finite number|greater than)"):
            load_with(file, **{key: f"1: {value}" if of_mapping else value})


@pytest.mark.parametrize("key", ["train.threads", "train.workers", "runner.threads"])
def test_threads_that_no_machine_has_are_refused(file: Path, key: str) -> None:
    """Prevents: a process that OpenMP ends without a word, or with a segmentation fault, when it is refused the threads."""
    with pytest.raises(UserError, match=f"{key}: .*less than or equal to 1024"):
        load_with(file, **{key: "100000"})
