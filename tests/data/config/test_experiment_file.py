"""The file of an experiment: phases over the rest of it, and names of the version before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from data.config.experiment_file import phases_of
from data.config.fields import build, keyed_values, warn_once
from data.config.settings import Experiment, load
from data.digests import json_digest
from data.errors import UserError
from trainer.device_defaults import with_device_defaults

MINIMAL = """
store: runs/store
ingest: {path: collection}
student: {model: a/student}
teacher: {model: a/teacher}
"""
PHASES = """
train: {epochs: 5, objective: {temperature: 2}}
phases:
  first: {train: {epochs: 1}}
  second: {teacher: {model: b/teacher}, train: {learning_rate: 1e-3, objective: {supervised_weight: 0.5}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    warn_once.cache_clear()
    path = tmp_path / "experiment.yaml"
    path.write_text(MINIMAL)
    return path


def load_with(file: Path, **overrides: str) -> Experiment:
    return load({"config": str(file), **overrides})


def test_a_phase_lies_over_the_file_and_below_the_command_line(file: Path) -> None:
    """Prevents: a phase that throws away the rest of a section, or wins over what a person typed."""
    file.write_text(MINIMAL + PHASES)
    assert load_with(file).train.epochs == 5
    assert load_with(file, phase="first").train.epochs == 1
    second = load_with(file, phase="second", **{"train.learning_rate": "1e-4"})
    assert (second.teacher.model, second.train.epochs, second.train.learning_rate) == ("b/teacher", 5, 1e-4)
    assert (second.train.objective.temperature, second.train.objective.supervised_weight) == (2, 0.5)
    assert list(phases_of(Experiment, str(file))) == ["first", "second"]


def test_an_unknown_phase_is_told(file: Path) -> None:
    """Prevents: a misspelt phase that quietly trains by the rest of the file."""
    with pytest.raises(UserError, match="has no phases"):
        load_with(file, phase="first")
    file.write_text(MINIMAL + PHASES)
    with pytest.raises(UserError, match=r"phase=frist; nearest: phase=first"):
        load_with(file, phase="frist")
    file.write_text(MINIMAL + "phases: {first: {train: {epochz: 1}}, second: {}}")
    with pytest.raises(UserError, match="epochz"):
        load_with(file, phase="second")
    for wrong in ("[a, b]", "{a: 1}"):
        file.write_text(MINIMAL + f"phases: {wrong}")
        with pytest.raises(UserError, match="phases is a mapping of names"):
            load_with(file)


def test_steps_are_phases_by_their_old_name(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: a file of the version before that trains by its head alone, and a warning at each reading."""
    file.write_text(MINIMAL + PHASES.replace("phases:", "steps:"))
    assert load_with(file, step="first") == load_with(file, phase="first")
    said = capsys.readouterr()
    assert not said.out and [line.split(";")[0] for line in said.err.splitlines()] == [
        "warning: step=first is now phase=first", f"warning: {file}: `steps` are now `phases`"
    ]  # fmt: skip
    with pytest.raises(UserError, match="leave one of them out"):
        load_with(file, step="first", phase="first")


def test_stages_of_a_training_are_shown_as_phases(file: Path) -> None:
    """Prevents: a file of the version before that is refused for a key, with no hint of what to write."""
    file.write_text(MINIMAL + "train: {stages: {coarse: {draw: 0}}}\n")
    with pytest.raises(UserError, match=r"(?s)train\.stages are now phases.*phases:\n  NAME:\n    student: {model: .*recipes/cl_drd"):
        load_with(file)


OLD: dict[str, Any] = {
    "hard_negatives": {
        "first_rank": "3", "last_rank": "50", "negatives": "7", "source": "student:3,bm25:1",
        "false_negatives": {"teacher_above": "9", "teacher_margin": "1.5", "student_margin": "0.1"},
    },
    "train": {"objective": {"keep_weight": "1"}},
}  # fmt: skip
NEW: dict[str, Any] = {
    "hard_negatives": {
        "range_min": "2", "range_max": "50", "num_negatives": "7", "source": "student:3,bm25:1",
        "false_negatives": {"max_score": "9", "absolute_margin": "1.5", "student_margin": "0.1"},
    },
    "train": {"objective": {"reference_kl_weight": "1"}},
}  # fmt: skip
# `json_digest` of the keyed values by the last version that had the old names: of the defaults, and of the settings above.
RECORDED = {
    "ingest": ("f346056c210a78a6cda1f39300e85161",) * 2,
    "student": ("6fdbf3fab85794e3d70ded6cd387eda7",) * 2,
    "teacher": ("a2adec1e01ecc6a5c8bcddd704cf1dfc",) * 2,
    "embed": ("14061113d2c89940ca584909bd8673b4",) * 2,
    "search": ("2d745356b13f4ea5d6ef5190eda2ebae",) * 2,
    "hard_negatives": ("ef5cb1c1deedf31f7ed58e0170949e53", "f010025dcbc1059cbabaf2e79fcc4920"),
    "hard_negatives.false_negatives": ("4a6e802910acd6a98499926fb219791f", "ac0c5f59b8e96f33b440d27bdf7edb44"),
    "dark_examples": ("fbe00ffc7518724fc26c55942eb40466",) * 2,
    "curriculum": ("b16f48be951f701671e6acfcd183eae0",) * 2,
    "dev": ("f391760b75a2a07d4deed3c6ebd60030",) * 2,
    "train": ("e873d59cedc86b6000b370b017d14839",) * 2,
    "train.objective": ("0c89f64dbfef3c4a6cdf59a65fcc64ec", "5aa5582174a3f4844a4247dadd7ff342"),
}


@pytest.mark.parametrize("settings", [{}, OLD, NEW], ids=["defaults", "old names", "new names"])
def test_a_new_name_leaves_fingerprints_as_they_were(settings: dict[str, Any]) -> None:
    """Prevents: a store of the version before of which every table is made again, and a run that cannot go on, for a word."""
    paths = {"store": "s", "ingest": {"path": "p"}, "student": {"model": "m"}, "teacher": {"model": "t"}}
    experiment = with_device_defaults(build(Experiment, {**paths, **settings}), processes=1)
    for name, recorded in RECORDED.items():
        section: Any = experiment
        for part in name.split("."):
            section = getattr(section, part)
        assert json_digest(keyed_values(section)) == recorded[bool(settings)], name


def test_what_came_later_is_keyed_where_it_is_used() -> None:
    """Prevents: a new rule that changes the negatives and not the fingerprint."""
    paths = {"store": "s", "ingest": {"path": "p"}, "student": {"model": "m"}, "teacher": {"model": "t"}}
    rules = build(Experiment, {**paths, "hard_negatives": {"false_negatives": {"relative_margin": "0.05"}}}).hard_negatives.false_negatives
    assert keyed_values(rules)["relative_margin"] == 0.05 and rules.uses_teacher


def test_old_names_are_read_with_a_warning(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: a rank that is taken for a count, a warning among the output that a shell reads, or one a reading."""
    file.write_text(MINIMAL + "hard_negatives: {first_rank: 3, last_rank: 50}\n")
    read = load_with(file, **{"hard_negatives.negatives": "7"}).hard_negatives
    load_with(file)
    assert (read.range_min, read.range_max, read.num_negatives) == (2, 50, 7)
    assert [(source.first_rank, source.last_rank) for source in read.sources] == [(3, 50)]
    said = capsys.readouterr()
    assert not said.out and [line.split(";")[0] for line in said.err.splitlines()] == [
        "warning: hard_negatives.first_rank=3 is now hard_negatives.range_min=2",
        "warning: hard_negatives.last_rank=50 is now hard_negatives.range_max=50",
        "warning: hard_negatives.negatives=7 is now hard_negatives.num_negatives=7",
    ]


def test_a_setting_under_both_its_names_is_refused(file: Path) -> None:
    """Prevents: one of two values that is dropped without a word. What a command line says wins over a file under any name."""
    file.write_text(MINIMAL + "hard_negatives: {negatives: 3, num_negatives: 4}\n")
    with pytest.raises(UserError, match=r"hard_negatives\.negatives is the old name of hard_negatives\.num_negatives"):
        load_with(file)
    file.write_text(MINIMAL + "hard_negatives: {negatives: 3}\n")
    assert load_with(file, **{"hard_negatives.num_negatives": "4"}).hard_negatives.num_negatives == 4
    with pytest.raises(UserError, match=r"hard_negatives\.range_min.*got 'one'"):
        load_with(file, **{"hard_negatives.first_rank": "one"})
    with pytest.raises(UserError, match=r"hard_negatives\.range_min"):
        load_with(file, **{"hard_negatives.first_rank": "0"})


@pytest.mark.parametrize("value", ["-0.1", "5", "95"])
def test_a_relative_margin_is_a_share(file: Path, value: str) -> None:
    """Prevents: 95 % given as 95, by which nothing is left, and a margin that lets in what lies above p+."""
    with pytest.raises(UserError, match="relative_margin"):
        load_with(file, **{"hard_negatives.false_negatives.relative_margin": value})
