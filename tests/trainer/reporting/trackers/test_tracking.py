"""The layer between a run and its tracker: each step once, whatever is killed, resumed, or refuses for a while."""

from __future__ import annotations

import json
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.config.settings import Train, load
from data.errors import UserError
from trainer import recipes
from trainer.loop import train
from trainer.reporting import metrics
from trainer.reporting.dry_run import describe
from trainer.reporting.trackers import tracking
from trainer.reporting.trackers.base import RunInfo, flat
from trainer.reporting.trackers.mlflow import _allowed
from trainer.reporting.trackers.tracking import Tracking, make_tracker


class Service:
    """What a tracker's server has, which outlives every process of the run."""

    def __init__(self, *, tells: bool) -> None:
        self.tells, self.broken = tells, False
        self.runs: dict[str, list[tuple[int, dict[str, float]]]] = {}

    def tracker(self) -> Any:
        service = self

        class Client:
            def start(self, run: RunInfo) -> int | None:
                self._steps = service.runs.setdefault(run.id, [])
                return max((step for step, _ in self._steps), default=0) if service.tells else None

            def log(self, step: int, figures: dict[str, float]) -> None:
                if service.broken:
                    raise ConnectionError("no route to host")
                self._steps.append((step, figures))

            def finish(self) -> None:
                if service.broken:
                    raise ConnectionError("no route to host")

        return Client()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Service]]:
    def make(*, tells: bool) -> Service:
        found = Service(tells=tells)
        monkeypatch.setitem(tracking.TRACKERS.built_in, "wandb", found.tracker)
        monkeypatch.setattr(tracking, "_import", lambda name: None)
        return found

    yield make


def figures_of(step: int) -> dict[str, float]:
    return {"train/loss": 1 / step}


class Run:
    """A training that writes lines and checkpoints, and dies when it is told to."""

    def __init__(self, output: Path, notes: list[str]) -> None:
        self.output, self.notes = output, notes
        self.lines: dict[int, dict[str, float]] = {}
        self.checkpoint = 0

    def go(self, *, until: int, every: int, service: Service, breaks: set[int], finishes: bool) -> None:
        self.lines = {step: line for step, line in self.lines.items() if step <= self.checkpoint}
        settings = Train(output=str(self.output), tracker="wandb")
        rows = lambda after: [(step, line) for step, line in self.lines.items() if step > after]  # noqa: E731
        layer = Tracking(settings, rows=rows, note=self.notes.append)
        service.broken = False
        layer.start(config={}, step=self.checkpoint)
        for step in range(self.checkpoint + 1, until + 1):
            service.broken = step in breaks
            self.lines[step] = figures_of(step)
            layer.log(step, figures_of(step))
            if step % every == 0:
                layer.sync()
                self.checkpoint = step
        if finishes:
            service.broken = False
            layer.finish()


@given(
    starts=st.lists(st.tuples(st.integers(0, 14), st.sets(st.integers(1, 14))), max_size=5),
    every=st.integers(1, 6),
    tells=st.booleans(),
)
def test_each_step_once_over_kills_and_outages(
    tmp_path_factory: pytest.TempPathFactory, starts: list[tuple[int, set[int]]], every: int, tells: bool
) -> None:
    """Prevents: a curve with steps twice after a kill, or with a hole where the network was gone."""
    with pytest.MonkeyPatch.context() as patch:
        service = Service(tells=tells)
        patch.setitem(tracking.TRACKERS.built_in, "wandb", service.tracker)
        patch.setattr(tracking, "_import", lambda name: None)
        output = tmp_path_factory.mktemp("run")
        run = Run(output, [])
        for until, breaks in starts:
            run.go(until=until, every=every, service=service, breaks=breaks, finishes=False)
        run.go(until=15, every=every, service=service, breaks=set(), finishes=True)
    (steps,) = service.runs.values()
    assert sorted(steps, key=lambda item: item[0]) == [(step, figures_of(step)) for step in range(1, 16)]
    assert [step for step, _ in steps] == sorted(step for step, _ in steps)


def test_an_outage_is_told_once_and_mended_at_a_checkpoint(tmp_path: Path, service: Callable[..., Service]) -> None:
    """Prevents: a training that dies with the tracker's network, a warning at every step, and a hole until the next start."""
    found, run = service(tells=True), Run(tmp_path, [])
    run.go(until=12, every=4, service=found, breaks={2, 3, 5, 6}, finishes=False)
    assert [step for step, _ in next(iter(found.runs.values()))] == list(range(1, 13))
    (note,) = run.notes
    assert "train.tracker=wandb failed: ConnectionError: no route to host" in note and "the training goes on" in note


def test_another_tracker_gets_all_that_was_done(tmp_path: Path, service: Callable[..., Service]) -> None:
    """Prevents: half a curve where the tracker is changed in the middle, or the second's run under the first one's record."""
    first, run = service(tells=False), Run(tmp_path, [])
    run.go(until=4, every=4, service=first, breaks=set(), finishes=True)
    record = json.loads((tmp_path / "tracker.json").read_text())
    (tmp_path / "tracker.json").write_text(json.dumps({**record, "tracker": "trackio"}))
    second = service(tells=False)
    run.go(until=8, every=4, service=second, breaks=set(), finishes=True)
    assert [step for step, _ in next(iter(second.runs.values()))] == list(range(1, 9)) and not set(first.runs) & set(second.runs)


@pytest.mark.parametrize("content", ["", "[]", "{", '{"tracker": "wandb"}', '{"tracker": "wandb", "id": "x", "logged": "many"}', "\x00"])
def test_a_damaged_record_is_none(tmp_path: Path, service: Callable[..., Service], content: str) -> None:
    """Prevents: a training that a lost record of its tracker stops."""
    (tmp_path / "tracker.json").write_text(content)
    found, run = service(tells=False), Run(tmp_path, [])
    run.go(until=3, every=1, service=found, breaks=set(), finishes=True)
    assert [step for step, _ in next(iter(found.runs.values()))] == [1, 2, 3]


@pytest.mark.parametrize("answer", [-1, True, "3", 2.0])
def test_an_odd_answer_of_a_tracker_is_refused(
    tmp_path: Path, service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, answer: Any
) -> None:
    """Prevents: a plug-in's answer that hides the first steps, or a traceback after hours."""
    found = service(tells=True)
    client = found.tracker()
    client.start = lambda run: answer
    monkeypatch.setitem(tracking.TRACKERS.built_in, "wandb", lambda: client)
    with pytest.raises(UserError, match=r"train\.tracker=wandb: start returned .*expected the last step"):
        Run(tmp_path, []).go(until=1, every=1, service=found, breaks=set(), finishes=True)


def test_what_cannot_start_is_told_before_the_first_step(
    tmp_path: Path, service: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a traceback, or a run without its curves, where nobody has logged in."""
    client = service(tells=True).tracker()

    def start(run: RunInfo) -> int:
        raise RuntimeError("api_key not configured (no-tty)")

    client.start = start
    monkeypatch.setitem(tracking.TRACKERS.built_in, "wandb", lambda: client)
    with pytest.raises(UserError, match=r"train\.tracker=wandb cannot start: RuntimeError: api_key not configured.*train\.tracker=none"):
        Tracking(Train(output=str(tmp_path), tracker="wandb"), rows=lambda after: [], note=print).start(config={}, step=0)


def test_a_tracker_that_is_not_installed_is_told_with_the_pip_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Prevents: an ImportError after the model is loaded; and wandb's own folder `wandb/` that is taken for the package."""
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=r"train\.tracker=wandb: .* not installed: `pip install wandb`"):
        make_tracker("wandb")
    (tmp_path / "mlflow").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "mlflow", raising=False)
    with pytest.raises(UserError, match=r"train\.tracker=mlflow: it is not installed: `pip install mlflow`"):
        make_tracker("mlflow")
    sys.modules.pop("mlflow", None)
    (tmp_path / "trackio.py").write_text("raise OSError('libgomp is missing')")
    with pytest.raises(UserError, match=r"train\.tracker=trackio cannot be imported: OSError: libgomp is missing"):
        make_tracker("trackio")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("support.plugin_trackers:made_of_nothing", "a object has no start, log, finish"),
        ("support.plugin_trackers:needs_a_word", "cannot be made: TypeError"),
        ("support.plugin_trackers:not_a_class", "expected something to call, found int"),
        ("support.plugin_trackers:FileTrackr", "nearest: FileTracker"),
        ("support.nothing_here:X", "has no module support.nothing_here"),
    ],
)
def test_a_plug_in_that_is_none_is_told(name: str, expected: str) -> None:
    """Prevents: an AttributeError at the first step."""
    with pytest.raises(UserError, match=expected):
        make_tracker(name)


def test_an_unknown_name_is_told_with_the_nearest(experiment_file: Path) -> None:
    """Prevents: curves that go nowhere since a name was misspelt."""
    with pytest.raises(UserError, match=r"no tracker 'wandbb'; nearest: wandb"):
        load({"config": str(experiment_file), "train.tracker": "wandbb"})
    with pytest.raises(UserError, match=r"train\.tracker"):
        load({"config": str(experiment_file), "train.tracker": ""})


def start_run(file: Path, shards: Path, **overrides: Any) -> int:
    words = {"config": str(file), **{f"train.{key}": str(value) for key, value in overrides.items()}}
    return train(recipes.load(words), shards_folder=shards)


def test_a_missing_package_ends_a_run_before_any_work(
    tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a queue's hours that end at the first step, and a finished run that the package of its tracker is asked for again."""
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(UserError, match="pip install mlflow"):
        start_run(experiment_file, shards, tracker="mlflow")
    assert not (tmp_path / "run" / "run.json").exists()
    experiment = recipes.load({"config": str(experiment_file), "train.tracker": "mlflow"})
    with pytest.raises(UserError, match="pip install mlflow"):
        describe(experiment, shards_folder=shards)
    assert start_run(experiment_file, shards, tracker="none", steps=1) == 0
    assert start_run(experiment_file, shards, tracker="mlflow", steps=1) == 0


@pytest.mark.medium
def test_a_plug_in_sees_each_step_of_a_run_that_is_interrupted(
    tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a tracker that gets other figures than metrics.jsonl, steps twice after a kill, or a config with paths in it."""
    name = "support.plugin_trackers:FileTracker"
    write = metrics.Metrics.write

    def stopped(self: Any, figures: dict[str, Any]) -> None:
        write(self, figures)
        if figures["step"] == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        if figures["step"] == 10:
            raise KeyboardInterrupt  # after the checkpoint of step 8

    monkeypatch.setattr(metrics.Metrics, "write", stopped)
    assert start_run(experiment_file, shards, tracker=name) == 75
    with pytest.raises(KeyboardInterrupt):
        start_run(experiment_file, shards, tracker=name)
    monkeypatch.setattr(metrics.Metrics, "write", write)
    assert start_run(experiment_file, shards, tracker=name, tracker_name="mine", tracker_project="ours") == 0

    output = tmp_path / "run"
    seen = [json.loads(line) for line in (output / "seen.jsonl").read_text().splitlines()]
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    logged = [entry for entry in seen if "step" in entry]
    assert [entry["step"] for entry in logged] == [line["step"] for line in lines] == list(range(1, 19))
    for entry, line in zip(logged, lines, strict=True):
        assert entry["figures"]["train/loss"] == line["loss"] and entry["figures"]["train/learning_rate"] == line["learning_rate"]
    starts = [entry for entry in seen if "start" in entry]
    assert [entry["start"][3] for entry in starts] == [0, 6, 8] and len({entry["start"][2] for entry in starts}) == 1
    assert [entry["start"][:2] for entry in starts] == [["adam-distillation", "run"]] * 2 + [["ours", "mine"]]
    assert starts[0]["config"] == json.loads((output / "run.json").read_text()) and str(tmp_path) not in json.dumps(starts[0]["config"])
    assert sum("finish" in entry for entry in seen) == 3 and not (output / "tensorboard").exists()


@pytest.mark.medium
def test_a_tracker_changes_nothing_of_the_run(tmp_path: Path, experiment_file: Path, shards: Path) -> None:
    """Prevents: a tracker that is part of a run's key, so that a run cannot go on without it."""
    assert start_run(experiment_file, shards, tracker="none", steps=2) == 0
    assert not (tmp_path / "run" / "tensorboard").exists() and not (tmp_path / "run" / "tracker.json").exists()
    assert start_run(experiment_file, shards, tracker="tensorboard", steps=2) == 0  # the same run: finished
    assert start_run(experiment_file, shards, output=tmp_path / "other", steps=2) == 0
    keys = [json.loads((tmp_path / name / "run.json").read_text()) for name in ("run", "other")]
    assert keys[0] == keys[1] and list((tmp_path / "other" / "tensorboard").iterdir())


def test_wandb_online_tells_by_its_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a resumed run whose first step W&B drops, or counts twice, by an off-by-one in what it calls the starting step."""
    said: dict[str, Any] = {}
    run = types.SimpleNamespace(offline=False, resumed=False, starting_step=0)
    fake = types.SimpleNamespace(Settings=lambda **words: words, init=lambda **words: said.update(words) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    from trainer.reporting.trackers.wandb import WandbTracker

    info = RunInfo("ours", "mine", "0123456789abcdef", tmp_path, {"seed": 0}, 4)
    assert WandbTracker().start(info) == 0
    run.resumed, run.starting_step = True, 7  # the history ends at step 6
    assert WandbTracker().start(info) == 6
    run.offline = True
    assert WandbTracker().start(info) is None
    assert (said["id"], said["resume"], said["project"], said["name"], said["config"]) == (info.id, "allow", "ours", "mine", {"seed": 0})


def test_names_of_mlflow_are_files_beside_each_other() -> None:
    """Prevents: `MRR@10` and `MRR@10/64` of one step, of which a folder of MLflow's can hold one alone."""
    names = ["train/loss", "dev/MRR@10", "dev/MRR@10/64", "dev/Näno x/nDCG@10", "train.learning_rate", "a|b"]
    given = [_allowed(name) for name in names]
    assert given == ["train/loss", "dev/MRR_10", "dev/MRR_10_64", "dev/Näno x_nDCG_10", "train.learning_rate", "a_b"]


def test_flat_names() -> None:
    """Prevents: settings of two sections that hide each other in a flat list of parameters."""
    assert flat({"a": {"b": 1, "c": {"d": [2]}}, "e": None, "f": {}}) == {"a.b": 1, "a.c.d": [2], "e": None}
