"""Choices by name or import path: who is asked for is who comes, or a word of what is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.config import negative_sources
from data.config.registry import Registry, check_name, plugin_call
from data.config.settings import HardNegatives, Objective
from data.config.traits import LOSSES, SAMPLERS, LossTraits, traits_of
from data.errors import RunFailed, UserError
from pipeline.negatives import samplers, sources
from trainer.objective.losses import DISTILLATION_LOSSES

LAB = """
import math

def loss(*tensors, temperature): pass
loss.learns_from, loss.version = "labels", "b2"

def misspelt(): pass
misspelt.learn_from = "labels"

def wrong(): pass
wrong.learns_from = "label"

def pairs_of_logits(): pass
pairs_of_logits.averages_over = "pairs"

def text_for_a_set(window): pass
text_for_a_set.needs = "teacher_logits"

class Sampler:
    needs = {"student_scores"}
    version = 3
    name = "of its author"
    def __call__(self, window): pass
sampler = Sampler()
odd = Sampler()
odd.version = math.inf
number = 7
"""


@pytest.fixture
def lab(plugin_folder: Callable[..., Path]) -> Path:
    return plugin_folder({"mylab/things.py": LAB, "mylab/broken.py": "import nowhere_at_all", "mylab/faulty.py": "1 / 0"})


def test_names_of_settings_are_those_that_are_registered() -> None:
    """Prevents: a built-in that the settings let through and nobody knows, or that nobody can ask for."""
    assert list(DISTILLATION_LOSSES.built_in) == list(LOSSES) and list(samplers.SAMPLERS.built_in) == list(SAMPLERS)
    assert list(sources.SOURCES.built_in) == list(negative_sources.SOURCES)


@pytest.mark.parametrize(
    ("make", "words"),
    [(lambda: Objective(distillation="margin_mes"), "nearest: margin_mse"), (lambda: HardNegatives(sampler="simons"), "nearest: simans"),
     (lambda: HardNegatives(source="studnt:2"), "nearest: student"),
     (lambda: check_name("mylab.x", ["kl"], kind="loss"), "package.module:object"),
     (lambda: Objective(distillation="mylab:"), "no loss")],
)  # fmt: skip
def test_an_unknown_name_is_told_with_the_nearest(make: Callable[[], Any], words: str) -> None:
    """Prevents: a misspelt name that is found out after days of work, or a refusal that leaves its reader to guess."""
    with pytest.raises(ValueError, match=words):
        make()


@pytest.mark.parametrize(
    ("name", "words"),
    [("nowhere_at_all.losses:kl", "has no module nowhere_at_all: install it there, or put its folder on PYTHONPATH"),
     ("mylab.nothing:kl", "has no module mylab.nothing"),
     ("mylab.broken:kl", "importing mylab.broken ends in ModuleNotFoundError: .*nowhere_at_all"),
     ("mylab.faulty:kl", "importing mylab.faulty ends in ZeroDivisionError"),
     ("mylab.things:los", "mylab.things has no los; nearest: loss"),
     ("mylab.things:number", "expected something to call, found int"), ("kll", "nearest: kl")],
)  # fmt: skip
def test_what_cannot_be_imported_is_told(lab: Path, name: str, words: str) -> None:
    """Prevents: a traceback of importlib, or the blame on the wrong module."""
    with pytest.raises(UserError, match=f"train.loss={name}: .*{words}"):
        Registry("loss", {"kl": print}).get(name, setting="train.loss")


def test_keys(lab: Path) -> None:
    """Prevents: fingerprints of built-ins that move, and a plug-in whose change nobody sees."""
    registry: Registry[Any] = Registry("loss", {"kl": print})
    assert registry.key("kl", setting="loss") == {}
    assert registry.key("mylab.things:loss", setting="loss") == {"plugin": "mylab.things:loss", "version": "b2"}
    assert registry.key("mylab.things:misspelt", setting="loss") == {"plugin": "mylab.things:misspelt", "version": 0}
    with pytest.raises(UserError, match="version is inf"):
        registry.key("mylab.things:odd", setting="loss")


def test_traits(lab: Path) -> None:
    """Prevents: an attribute that is misspelt or of another type, and a default in its place without a word."""
    assert traits_of("mylab.things:loss", LOSSES, setting="loss") == LossTraits(learns_from="labels")
    assert HardNegatives(sampler="mylab.things:sampler").sampler_traits.needs == {"student_scores"}
    for name, words in {
        "misspelt": "attribute learn_from; known are version, learns_from", "wrong": "learns_from: Input should be 'logits' or 'labels'",
        "pairs_of_logits": "needs learns_from=labels",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=words):
            traits_of(f"mylab.things:{name}", LOSSES, setting="loss")
    with pytest.raises(UserError, match="needs"):
        traits_of("mylab.things:text_for_a_set", SAMPLERS, setting="sampler")


def test_rules_of_built_ins_hold_for_plug_ins_with_their_traits(lab: Path) -> None:
    """Prevents: a sampler of the student's scores over other sources, a loss over labels beside in-batch negatives; or a module that
    commands must have which do not use it."""
    with pytest.raises(UserError, match=r"sampler=mylab.things:sampler goes by the student's scores"):
        samplers.sampler_key(HardNegatives(sampler="mylab.things:sampler", source="bm25"))
    with pytest.raises(ValueError, match="over a list of labels"):
        Objective(distillation="mylab.things:loss").check_loss()
    absent = HardNegatives(sampler="nowhere_at_all:x", source="student,nowhere_at_all:y")
    assert absent.canonical_source == "student:1,nowhere_at_all:y:1" and Objective(distillation="nowhere_at_all:z").in_batch == "none"


def test_what_goes_wrong_in_a_plug_in_names_its_setting_and_place() -> None:
    """Prevents: a traceback of ours for a fault in other people's code; and a fault of a built-in that is passed off as theirs."""
    place = r"teacher\.backend=lab:T ends in TypeError: no float \(.*test_registry\.py, line \d+\)"
    with pytest.raises(RunFailed, match=place), plugin_call("lab:T", setting="teacher.backend"):
        raise TypeError("no float")
    with pytest.raises(UserError, match=r"^say what$"), plugin_call("lab:T", setting="teacher.backend"):
        raise UserError("say what")
    with pytest.raises(TypeError, match="ours"), plugin_call("torch", setting="teacher.backend"):
        raise TypeError("ours")
