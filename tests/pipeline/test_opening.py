"""Models that cannot be used are refused before the first shard of a run, and each is tried but once."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.checkpoints import change_json, change_weights, save

from data.errors import UserError
from pipeline import opening

Prep = Callable[..., list[str]]


def built(store: Path) -> list[str]:
    return sorted(path.relative_to(store).parts[0] for path in store.rglob("*.parquet"))


def headless(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    return change_weights(folder, lambda tensors: {name: part for name, part in tensors.items() if not name.startswith("classifier")})


def wrapped(source: Path, folder: Path) -> Path:
    shutil.copytree(source, folder)
    return change_weights(folder, lambda tensors: {f"module.{name}": part for name, part in tensors.items()})


@pytest.mark.parametrize(
    ("option", "damage", "message"),
    [
        ("teacher.model", headless, r"teacher\.model: .* lacks 2 of its weights \(classifier\.bias, classifier\.weight\)"),
        ("student.model", wrapped, r"student\.model: .* lacks 37 of its weights .* begin with 'module\.'"),
        ("embed.model", wrapped, r"embed\.model: .* lacks 37 of its weights"),
    ],
)
def test_a_broken_model_is_refused_before_the_first_shard(
    tiny_experiment: Any, prep_run: Prep, models: Any, tmp_path: Path, option: str, damage: Callable[[Path, Path], Path], message: str
) -> None:
    """Prevents: hours of embedding and mining, and logits by random weights after them."""
    source = models.teacher if option == "teacher.model" else models.student
    experiment = tiny_experiment(tmp_path, **{option: damage(source, tmp_path / "broken")})
    for _ in range(2):  # a second try is refused as the first
        with pytest.raises(UserError, match=message):
            prep_run(experiment)
    assert not built(tmp_path / "store")


def test_a_student_that_only_trains_is_opened_too(tiny_experiment: Any, prep_run: Prep, models: Any, tmp_path: Path) -> None:
    """Prevents: shards made for a student that no training can begin with, since another model embedded."""
    broken = wrapped(models.student, tmp_path / "broken")
    experiment = tiny_experiment(tmp_path, **{"student.model": broken, "embed.model": models.student})
    with pytest.raises(UserError, match=r"student\.model: .* begin with 'module\.'"):
        prep_run(experiment)
    prep_run(experiment, stage="ingest")  # which opens no model
    prep_run(experiment, stage="embed")  # nor this one
    assert set(built(tmp_path / "store")) == {"ingest", "embed"}


def test_a_teacher_whose_logits_depend_on_the_batch_is_refused_before_the_first_shard(
    tiny_experiment: Any, prep_run: Prep, tmp_path: Path
) -> None:
    """Prevents: a traceback, or logits by the batch, after all that comes before scoring."""
    teacher = save(tmp_path / "teacher", "Llama", head=True)
    change_json(teacher / "config.json", pad_token_id=None)
    without = {"dark_examples.reinforced": False, "dark_examples.mask_ratios": []}  # this tokenizer has no [SEP] and no [MASK]
    with pytest.raises(UserError, match="has no pad_token_id"):
        prep_run(tiny_experiment(tmp_path, **{"teacher.model": teacher, **without}))
    assert not built(tmp_path / "store")


@pytest.mark.medium
def test_a_model_is_tried_once(tiny_experiment: Any, prep_run: Prep, models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: every killed and resumed run that opens all models once more before it goes on; a new teacher that is not tried."""
    tried: list[list[str]] = []
    plain = opening._open

    def noted(resolved: Any, roles: list[str]) -> None:
        tried.append(list(roles))
        plain(resolved, roles)

    monkeypatch.setattr(opening, "_open", noted)
    experiment = tiny_experiment(tmp_path)
    prep_run(experiment, stage="ingest")
    prep_run(experiment, stage="embed")
    prep_run(experiment)
    next((tmp_path / "store" / "teacher_scores").rglob("*.parquet")).unlink()
    prep_run(experiment)
    assert tried == [["miner"], ["teacher"]]
    prep_run(experiment, **{"teacher.max_tokens": 72})
    assert tried[2:] == [["teacher"]]
