"""The cost before the bill: pairs, tokens, hours."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from data.config.settings import Experiment, HardNegatives, load
from data.tables.shards import read_shard
from pipeline.cli import app
from pipeline.executors.resources import workers_that_fit
from pipeline.progress import Progress, duration
from pipeline.report.cost import _at_most_words
from pipeline.scoring import calibration
from pipeline.scoring.calibration import Speed, load_gpu_speeds, load_speed, save_speed
from pipeline.scoring.cost import Cost, at_most, estimate_cost
from pipeline.stage import Stored
from retrieval.models.resolved import ResolvedModels


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SECONDS", 0.2)


def plan(config: Path, *words: str) -> str:
    result = CliRunner().invoke(app, ["plan", f"config={config}", "stage=teacher_scores", *words], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    return result.output


def candidates_of(store: Path) -> Stored:
    from data.tables.manifest import Manifest

    (folder,) = store.glob("dark_examples/*/")
    manifest = Manifest.read(folder)
    assert manifest
    return Stored(folder, manifest)


def test_the_price_is_what_the_run_then_pays(copied: Any, prep_run: Any, count_scored: list[int]) -> None:
    """Prevents: a plan that promises less, or frightens with more, than is paid."""
    experiment = load({"config": str(copied.config)})
    shutil.rmtree(copied.store / "teacher_scores")
    assert estimate_cost(ResolvedModels(experiment), candidates_of(copied.store), [0, 1]).to_score == 0
    shutil.rmtree(copied.store / "teacher_logits")
    cost = estimate_cost(ResolvedModels(experiment), candidates_of(copied.store), [0, 1])
    assert (cost.requested, cost.cached) == (168, 0) and cost.distinct == cost.to_score
    prep_run(copied.config)
    scores = [row for path in sorted(copied.store.glob("teacher_scores/*/*.parquet")) for row in read_shard(path).to_pylist()]
    assert sum(count_scored) == cost.to_score
    assert abs(cost.tokens / sum(row["token_count"] for row in scores) * 168 / cost.distinct - 1) < 0.05


def test_the_plan_measures_once_and_tells_hours(copied: Any) -> None:
    """Prevents: a bill that is known only when it has been paid; ten seconds lost at every plan."""
    shutil.rmtree(copied.store / "teacher_scores")
    shutil.rmtree(copied.store / "teacher_logits")
    output = plan(copied.config, "gpus=4")
    assert "168 pairs" in output and "0 cached" in output and "tokens/s a worker" in output and "on this machine (1 workers" in output
    assert "on 4 GPUs: not known" in output
    kept = (copied.store / "calibration.json").read_text()
    assert plan(copied.config) == output.replace(next(line for line in output.splitlines(True) if "4 GPUs" in line), "")
    assert (copied.store / "calibration.json").read_text() == kept
    models = ResolvedModels(load({"config": str(copied.config)}))
    assert load_speed(models) and not load_gpu_speeds(models)
    other = load({"config": str(copied.config), "runner.threads": "2"})
    assert load_speed(ResolvedModels(other)) is None, "another number of threads is another speed"


def test_gpu_hours_from_a_measurement_elsewhere(copied: Any) -> None:
    """Prevents: a question for N GPUs that only a machine with N GPUs can answer; a promise that GPUs without a shard help."""
    experiment = load({"config": str(copied.config), "runner.device": "cuda"})
    save_speed(ResolvedModels(experiment), Speed("Some GPU", 100.0))
    shutil.rmtree(copied.store / "teacher_scores")
    shutil.rmtree(copied.store / "teacher_logits")
    output = plan(copied.config, "gpus=4")
    assert "on 4 x Some GPU" in output
    assert plan(copied.config, "gpus=2") == output.replace("on 4 x", "on 2 x"), "two shards keep two GPUs busy, not four"
    assert plan(copied.config, "gpus=1") != output.replace("on 4 x", "on 1 x")


def test_no_price_in_hours_without_the_device(copied: Any) -> None:
    """Prevents: a login node without a GPU that tells nothing, or loads the model into a traceback."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    shutil.rmtree(copied.store / "teacher_scores")
    shutil.rmtree(copied.store / "teacher_logits")
    output = plan(copied.config, "runner.device=cuda")
    assert "168 pairs" in output and "hours: not known" in output


def test_before_the_candidates_are_known(tmp_path: Path, tiny_experiment: Any, prep_run: Any) -> None:
    """Prevents: no price at all until embedding and mining are paid."""
    config = tiny_experiment(tmp_path)
    prep_run(config, stage="ingest")
    assert "at most 168 pairs" in plan(config)  # 14 training queries
    experiment = load({"config": str(config), "hard_negatives.queries": "5", "dark_examples.mask_draws": "2"})
    assert at_most(experiment, 24, labels=30) == 5 * 2 * 12


def test_the_bound_counts_a_list_of_each_positive() -> None:
    """Prevents: a bill for one list a query where each label has one; a bound that promoted passages go beyond without a word."""
    given_settings = {"store": "s", "student": {"model": "m"}, "teacher": {"model": "t"}, "hard_negatives": {"positives": "each"}}
    each = Experiment.model_validate(given_settings)
    one = each.model_copy(update={"hard_negatives": HardNegatives()})
    assert (at_most(one, 24, labels=30), at_most(each, 24, labels=30)) == (24 * 26, 30 * 26)  # p+, 10 negatives, 10 mixed, 5 masked
    promoting = each.model_copy(update={"hard_negatives": HardNegatives(positives="each", promote_margin=1)})
    said = [_at_most_words(one, 7, of_pools=of_pools, after="x") for one in (each, promoting) for of_pools in (False, True)]
    assert [" beside those of promoted passages;" in line for line in said] == [False, False, True, False]


def test_hours_are_of_tokens_or_of_pairs() -> None:
    """Prevents: no hours at all for a teacher that counts no tokens, or hours of one worker promised of two."""
    cost = Cost(requested=20_000, distinct=12_000, cached=2_000, tokens=7_200_000)
    assert Speed("cpu", 1000.0).seconds(cost, workers=2) == 3600
    assert Speed("cpu", 100.0, "pairs").seconds(cost, workers=1) == 100


def test_what_is_left_of_an_earlier_version_does_no_harm(copied: Any, prep_run: Any, count_scored: list[int]) -> None:
    """Prevents: a store whose tables were begun by a version that chose torch.compile by itself, refused or scored anew."""
    experiment = load({"config": str(copied.config)})
    (folder,) = copied.store.glob("teacher_scores/*/")
    (folder / "execution.json").write_text('{"compiled": true, "why": "calibration: 1 tokens/s a worker, here"}')
    (copied.store / "calibration.json").write_text('{"k": {"device": "x", "tokens_per_second": 1.0, "compile_seconds": 0.0}}')
    next(iter(folder.glob("*.parquet"))).unlink()
    prep_run(copied.config)
    models = ResolvedModels(experiment)
    assert count_scored == [] and load_speed(models) is None
    save_speed(models, Speed("Some GPU", 100.0))
    assert json.loads((copied.store / "calibration.json").read_text()).keys() != {"k"}


SHARES = st.sampled_from(["0", "0.05", "0.1", "0.25", "0.3", "0.4", "0.5", "0.6", "0.7", "0.9", "1", "2", "3"])


@given(cpus=st.integers(0, 40), gpus=st.integers(0, 5), threads=st.integers(1, 6), share=SHARES)
def test_as_many_workers_as_can_be_placed(cpus: int, gpus: int, threads: int, share: str) -> None:
    """Prevents: a worker that waits for ever for a share of a GPU put together from the rests of two, or a GPU left idle."""
    need, room, placed = Fraction(share), [Fraction(1)] * gpus, 0
    while (placed + 1) * threads <= cpus:  # one worker after the other, on the first GPUs that have room
        hosts = [gpu for gpu, left in enumerate(room) if left >= min(need, 1)][: max(1, int(need))] if need else []
        if len(hosts) < (max(1, int(need)) if need else 0):
            break
        for gpu in hosts:
            room[gpu] -= min(need, 1)
        placed += 1
    assert workers_that_fit(cpus=cpus, gpus=gpus, threads=threads, share=float(share)) == placed


def test_progress_tells_rates_padding_hits_and_time_left() -> None:
    """Prevents: hours of silence, or an estimate that counts what was cached as work."""
    progress = Progress("teacher_scores", shards=4, rows=1000)
    for unit, count in (("cached", 40), ("pairs", 100), ("tokens", 9000), ("padded tokens", 10_000), ("rows", 250)):
        progress.advance(unit, count)
    text = progress.figures(10.0)
    progress.advance("cached rows", 600)  # which were no work: of 400 rows 250 are done
    assert "about 6 s left" in progress.figures(10.0)
    assert text == "100 pairs (10/s), 9,000 tokens (900/s), 10.0% padding, 40 cached, about 30 s left"
    assert [duration(seconds) for seconds in (45, 600, 12_000)] == ["45 s", "10 min", "3.3 h"]
