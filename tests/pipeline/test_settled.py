"""What `precision=auto` means in a store, on processors with bf16 and without."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from data.config.settings import Experiment, load
from data.errors import RunFailed, UserError
from data.store.place import open_place
from pipeline.cli import app
from pipeline.executors.base import with_precisions
from pipeline.plan import table_named
from pipeline.settled import formats_of, refuse_emulated, settle_precisions
from retrieval.models.resolved import ResolvedModels

AUTO: dict[str, Any] = {"embed.precision": "auto", "teacher.precision": "auto"}


@pytest.fixture
def processor(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Make this machine one that computes bf16, or fp32 alone."""

    def use(best: str) -> None:
        monkeypatch.setattr("retrieval.compute.precision.cpu_computes_bf16", lambda: best == "bf16")

    return use


@pytest.fixture
def experiment(tmp_path: Path, tiny_experiment: Callable[..., Path]) -> Experiment:
    return load({"config": str(tiny_experiment(tmp_path, **AUTO))})


def tables_of(experiment: Experiment) -> list[Any]:
    return [table_named(experiment, label) for label in ("embed.corpus", "teacher_scores")]


def meaning(experiment: Experiment) -> tuple[str | None, ...]:
    models = ResolvedModels(experiment)
    return models.precision_of("corpus"), models.teacher_precision, models.key("teacher")["precision"]


@pytest.mark.parametrize(("first", "then"), [("bf16", "fp32"), ("fp32", "bf16")])
def test_the_first_run_settles_it_for_all_processors(
    first: str, then: str, experiment: Experiment, processor: Callable[[str], None]
) -> None:
    """Prevents: a plan, or a job of a queue, that takes the finished store for another one since its processor is another."""
    processor(first)
    assert meaning(experiment)[0] == first and not (Path(experiment.store) / "settled").exists(), "asking alone settles nothing"
    assert settle_precisions(ResolvedModels(experiment), tables_of(experiment)) is False
    processor(then)
    kind = {"bf16": "torch/bf16-linear", "fp32": "torch/fp32"}
    assert meaning(experiment) == (first, first, kind[first])
    sent = with_precisions(experiment, ResolvedModels(experiment))
    assert (sent.embed.precision, sent.teacher.precision) == (first, first)
    assert settle_precisions(ResolvedModels(experiment), tables_of(experiment)) is False
    notes = sorted((Path(experiment.store) / "settled").iterdir())
    assert [path.name.split("-")[0] for path in notes] == ["embed.corpus", "teacher"]
    assert {json.loads(path.read_text())["precision"] for path in notes} == {first}


def test_of_two_jobs_at_once_one_settles_it(experiment: Experiment, processor: Callable[[str], None]) -> None:
    """Prevents: jobs of an array on unlike processors that each settle the store in their own way."""
    processor("fp32")
    slower = ResolvedModels(experiment)
    assert slower.precision_of("corpus") == slower.teacher_precision == "fp32"
    before = slower.key("teacher")
    processor("bf16")
    assert settle_precisions(ResolvedModels(experiment), tables_of(experiment)) is False
    assert settle_precisions(slower, tables_of(experiment)) is True, "what was planned is to be planned again"
    assert slower.precision_of("corpus") == slower.teacher_precision == "bf16"
    assert slower.key("teacher") != before and slower.reread().precision_of("corpus") == "bf16"


def test_written_out_it_is_not_settled(experiment: Experiment, processor: Callable[[str], None], tmp_path: Path) -> None:
    """Prevents: a note of an earlier run that overrules the settings."""
    processor("bf16")
    settle_precisions(ResolvedModels(experiment), tables_of(experiment))
    exact = load({"config": str(tmp_path / "tiny.yaml"), "embed.precision": "fp32", "teacher.precision": "fp32"})
    assert meaning(exact) == ("fp32", "fp32", "torch/fp32")
    shutil.rmtree(Path(exact.store) / "settled")
    settle_precisions(ResolvedModels(exact), tables_of(exact))
    assert not (Path(exact.store) / "settled").exists()


def test_another_model_is_settled_by_itself(experiment: Experiment, processor: Callable[[str], None], tmp_path: Path) -> None:
    """Prevents: a store shared by experiments, in which the first model decides for all."""
    processor("bf16")
    settle_precisions(ResolvedModels(experiment), tables_of(experiment))
    processor("fp32")
    other = load({"config": str(tmp_path / "tiny.yaml"), "student.passage_prefix": "passage: "})
    assert ResolvedModels(other).precision_of("corpus") == "fp32" and ResolvedModels(other).teacher_precision == "bf16"


def test_a_note_that_cannot_be_read(experiment: Experiment, processor: Callable[[str], None]) -> None:
    """Prevents: a damaged note that is taken for another precision, and a table that is computed anew."""
    processor("bf16")
    settle_precisions(ResolvedModels(experiment), tables_of(experiment))
    (note,) = (Path(experiment.store) / "settled").glob("embed.*")
    note.write_text("{}")
    with pytest.raises(RunFailed, match=r"settled/embed\.corpus-.*\.json is no readable note of a precision; delete it"):
        ResolvedModels(experiment).precision_of("corpus")


def test_a_host_that_only_plans_may_lack_it_and_one_that_computes_may_not(experiment: Experiment, processor: Callable[[str], None]) -> None:
    """Prevents: a login node that cannot say where the tables lie; hours of emulated bf16 in a run without a cluster."""
    processor("bf16")
    settle_precisions(ResolvedModels(experiment), tables_of(experiment))
    refuse_emulated(ResolvedModels(experiment), tables_of(experiment))
    processor("fp32")
    models = ResolvedModels(experiment)
    assert formats_of(models, tables_of(experiment)) == ["bf16"] and formats_of(models, [table_named(experiment, "embed.queries")]) == [
        "fp32"
    ]
    with pytest.raises(UserError, match=r"embed\.corpus is computed in bf16, .* settled to in this store: .* no AVX512-BF16"):
        refuse_emulated(models, tables_of(experiment))
    refuse_emulated(models, [table_named(experiment, "pools.ranked"), table_named(experiment, "embed.queries")])


def test_a_store_without_notes_is_complete_on_every_processor(
    copied: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processor: Callable[[str], None]
) -> None:
    """Prevents: a finished store of an earlier version that another processor would build again, as `precision bf16-linear -> fp32`."""
    assert not list(copied.store.glob("settled"))
    before = {path: path.stat().st_mtime_ns for path in copied.store.rglob("*.parquet")}
    for best in ("bf16", "fp32"):
        processor(best)
        for command in ("plan", "run"):
            done = CliRunner().invoke(app, [command, f"config={copied.config}", *(f"{key}={value}" for key, value in AUTO.items())])
            assert done.exit_code == 0 and "would build" not in done.output and "built" not in done.output.replace("0 shards built", ""), (
                done.output
            )
    assert {path: path.stat().st_mtime_ns for path in copied.store.rglob("*.parquet")} == before


def test_a_plan_writes_nothing(experiment: Experiment, processor: Callable[[str], None], tmp_path: Path) -> None:
    """Prevents: a look at a plan on a login node that settles what the cluster then computes in."""
    processor("fp32")
    done = CliRunner().invoke(app, ["plan", f"config={tmp_path / 'tiny.yaml'}", *(f"{key}={value}" for key, value in AUTO.items())])
    assert done.exit_code == 0, done.output
    assert not [name for name in open_place(experiment.store).files() if name.startswith("settled")]
