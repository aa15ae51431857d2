"""Whole runs of a tiny student: resume, interruption, refusals, and the folder that comes out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.children import loaded_by

from data.command import STOP_SIGNALS, exit_codes, is_full_disk
from data.errors import RunFailed, UserError
from retrieval.models.student import StudentSpec
from trainer import loop, recipes, run
from trainer.interruption import GracefulShutdown
from trainer.loop import train
from trainer.reporting import metrics
from trainer.steps.backend import Backend
from trainer.steps.gradients import QueryLosses

STEPS = 18


class Killed(Exception):
    """Stands for a process that ends at once."""


def start(file: Path, shards: Path, **overrides: Any) -> int:
    words = {"config": str(file), **{key.replace("__", "."): str(value) for key, value in overrides.items()}}
    return train(recipes.load(words), shards_folder=shards)


def parameters(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "student" / "model.safetensors")


def metric_steps(output: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]


def assert_same_run(one: Path, other: Path) -> None:
    assert metric_steps(one) == metric_steps(other) == list(range(1, STEPS + 1))
    lines = [[json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()] for folder in (one, other)]
    for line in (*lines[0], *lines[1]):
        for name in metrics.SPEEDS:
            line.pop(name, None)
    assert lines[0] == lines[1]
    expected, found = parameters(one), parameters(other)
    assert expected.keys() == found.keys() and all(torch.equal(expected[name], found[name]) for name in expected)


def after_step(monkeypatch: pytest.MonkeyPatch, step: int, action: Callable[[], None]) -> None:
    original = metrics.Metrics.write

    def write(self: Any, figures: dict[str, Any]) -> None:
        original(self, figures)
        if figures["step"] == step:
            action()

    monkeypatch.setattr(metrics.Metrics, "write", write)


@pytest.mark.medium
@pytest.mark.parametrize(("step", "in_batch"), [(1, "none"), (7, "none"), (8, "none"), (17, "none"), (11, "both")])
def test_resumed_equals_unbroken(
    tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, step: int, in_batch: str
) -> None:
    """A resume that repeats rows, loses moments or draws other dropout masks ends elsewhere, and nothing tells."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert start(experiment_file, shards, train__output=whole, train__objective__in_batch=in_batch) == 0

    def kill() -> None:
        raise Killed

    with monkeypatch.context() as context, pytest.raises(Killed):
        after_step(context, step, kill)
        start(experiment_file, shards, train__output=broken, train__objective__in_batch=in_batch)
    with open(broken / "metrics.jsonl", "a") as file:
        file.write('{"step": 99, "los')  # a line that the kill cut short
    torch.rand(3)
    assert start(experiment_file, shards, train__output=broken, train__objective__in_batch=in_batch) == 0
    assert_same_run(whole, broken)


@pytest.mark.medium
@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_interruption_saves_and_says_so(
    tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    """A batch queue that sees exit 0 does not start the job again; one that sees 1 gives it up."""
    output = tmp_path / "run"
    with monkeypatch.context() as context:
        after_step(context, 5, lambda: os.kill(os.getpid(), number))
        assert start(experiment_file, shards) == 75
    assert metric_steps(output) == [1, 2, 3, 4, 5] and not (output / "student").exists()
    assert [path.name for path in sorted((output / "checkpoints").iterdir())] == ["step-00000004", "step-00000005"]
    assert start(experiment_file, shards) == 0
    whole = tmp_path / "whole"
    assert start(experiment_file, shards, train__output=whole) == 0
    assert_same_run(whole, output)


@pytest.mark.medium
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_interrupted_while_it_opens(experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals) -> None:
    """Prevents: a traceback, or a signal's own end, where it comes while shards are checked and the model is loaded, or is lost there."""

    def lost(**_: Any) -> float:
        with contextlib.suppress(KeyboardInterrupt):  # as in a destructor
            os.kill(os.getpid(), number)
        return 1.0

    for where, what in [
        ("trainer.run.task_of", lambda *_: os.kill(os.getpid(), number)),
        ("trainer.reporting.reports.measured_flop_rate", lost),
    ]:
        with monkeypatch.context() as context, pytest.raises(SystemExit) as ended, exit_codes():
            context.setattr(where, what)
            start(experiment_file, shards)
        assert ended.value.code == 75
    with exit_codes():
        assert start(experiment_file, shards) == 0


def test_what_torchrun_sends_on_is_no_second_signal(
    tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: Ctrl-C, or a closed session, under torchrun that ends the processes at once: each gets the signal twice."""

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as context:
        after_step(context, 5, twice)
        assert start(experiment_file, shards) == 75
    assert metric_steps(tmp_path / "run") == [1, 2, 3, 4, 5]
    ended = list[int]()
    with monkeypatch.context() as context, GracefulShutdown() as interruption:
        context.setattr("trainer.interruption._ECHO_SECONDS", 0.0)
        context.setattr("trainer.interruption.leave", lambda number, _: ended.append(number))
        twice()
        assert interruption.asked and ended == [signal.SIGTERM]


@pytest.mark.medium
def test_processes_that_torchrun_left_behind_stop(
    tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: SIGUSR1, or a kill, that ends torchrun alone: its processes train on, hold their GPUs, and keep the next start out."""
    with monkeypatch.context() as context:
        context.setenv("TORCHELASTIC_RUN_ID", "1")
        after_step(context, 5, lambda: context.setattr(os, "getppid", lambda: 1))
        assert start(experiment_file, shards) == 75
    with monkeypatch.context() as context:  # of any other parent, as a shell under nohup, nothing follows
        after_step(context, 7, lambda: context.setattr(os, "getppid", lambda: 1))
        assert start(experiment_file, shards) == 0
    assert metric_steps(tmp_path / "run") == list(range(1, STEPS + 1))


@pytest.mark.medium
def test_the_second_of_two_runs_is_refused(tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a job that is queued again while its first copy lives, and cuts lines that are being written out of metrics.jsonl."""
    output, told = tmp_path / "run", list[str]()

    def second() -> None:
        with pytest.raises(UserError, match="another run is writing there") as refused:
            start(experiment_file, shards)
        told.append(str(refused.value))

    with monkeypatch.context() as context:
        after_step(context, 5, second)
        assert start(experiment_file, shards) == 0
    assert f"process {os.getpid()} on {os.uname().nodename}" in told[0]
    assert metric_steps(output) == list(range(1, STEPS + 1)) and not (output / "running.json").exists()


@pytest.mark.medium
def test_lines_that_were_damaged_are_told(
    tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: a traceback, and good lines that go with a bad one without a word."""
    output = tmp_path / "run"
    with monkeypatch.context() as context:
        after_step(context, 9, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert start(experiment_file, shards) == 75
    lines = (output / "metrics.jsonl").read_bytes().splitlines()
    lines[1:6] = [b"\xff\x00", b"[1]", b'{"step": "4"}', b'{"loss": 1}', b""]
    (output / "metrics.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    assert start(experiment_file, shards) == 0
    assert metric_steps(output) == [1, *range(7, STEPS + 1)]
    assert "lacks the lines of 5 steps" in capsys.readouterr().err


@pytest.mark.medium
def test_half_a_checkpoint_is_no_checkpoint(tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill while a checkpoint is written must leave the one before in charge, and no rubbish."""
    output = tmp_path / "run"

    def kill(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as context, pytest.raises(Killed):
        after_step(context, 7, lambda: context.setattr("trainer.saving.checkpoint._optimizer_tensors", kill))
        start(experiment_file, shards)
    leftover = output / "checkpoints" / f".step-00000008.{'0' * 32}.tmp"
    leftover.mkdir()
    assert start(experiment_file, shards) == 0
    assert metric_steps(output) == list(range(1, STEPS + 1)) and not leftover.exists()
    assert len(list((output / "checkpoints").iterdir())) == 2


@pytest.mark.medium
def test_finished_run_does_nothing(tmp_path: Path, experiment_file: Path, shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same command started twice must not train twice."""
    assert start(experiment_file, shards) == 0
    before = (tmp_path / "run" / "result.json").stat().st_mtime_ns
    assert start(experiment_file, shards) == 0
    assert "finished" in capsys.readouterr().out and (tmp_path / "run" / "result.json").stat().st_mtime_ns == before
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == STEPS


def test_what_is_refused_today_may_be_finished(
    tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: a finished run, or a finished stage of one that goes on, which the checks of a later version stop."""

    def refuse(*given: Any, **options: Any) -> None:
        raise UserError("not with these shards")

    assert start(experiment_file, shards, train__steps=2) == 0
    monkeypatch.setattr(run, "check_shards", refuse)
    assert start(experiment_file, shards, train__steps=2) == 0 and "this run is finished" in capsys.readouterr().out
    with pytest.raises(UserError, match="not with these"):
        start(experiment_file, shards, train__output=tmp_path / "another")


@pytest.mark.medium
def test_a_damaged_result_is_no_finished_run(tmp_path: Path, experiment_file: Path, shards: Path) -> None:
    """Prevents: half a file that is taken for the sign of a whole run."""
    assert start(experiment_file, shards) == 0
    result = tmp_path / "run" / "result.json"
    whole = json.loads(result.read_text())
    for content in ("", '{"steps": 1', "[1]", "null"):
        result.write_text(content)
        with pytest.raises(UserError, match=r"result\.json (cannot be read|holds).*delete it"):
            start(experiment_file, shards)
    result.unlink()
    assert start(experiment_file, shards) == 0
    assert json.loads(result.read_text())["last_step"] == whole["last_step"]


@pytest.mark.medium
def test_other_settings_need_another_folder(
    tmp_path: Path, experiment_file: Path, shards: Path, student: Path, shard_writer: Any, row_maker: Any
) -> None:
    """Half a run with one learning rate and half with another."""
    assert start(experiment_file, shards) == 0
    for overrides, name in [
        ({"train__learning_rate": "0.02"}, "train.learning_rate: 0.01 there, 0.02 now"),
        ({"train__objective__without": "noisy"}, "train.objective.without"),
        ({"seed": 5}, "seed: 0 there, 5 now"),
        ({"student__pooling": "cls"}, "student.pooling"),
    ]:
        with pytest.raises(UserError, match=name) as caught:
            start(experiment_file, shards, **overrides)
        assert "train.output" in str(caught.value)
    other = shard_writer(tmp_path / "other", [[row_maker(np.random.default_rng(9), "q")]], student=student)
    with pytest.raises(UserError, match="shards"):
        start(experiment_file, other)
    assert start(experiment_file, shards, train__checkpoint_every=1) == 0  # execution only


def test_loss_that_is_no_number_stops(tmp_path: Path, experiment_file: Path, student: Path, shard_writer: Any, row_maker: Any) -> None:
    """One NaN logit makes every parameter NaN, and the run goes on to the end."""
    rows = [row_maker(np.random.default_rng(number), f"q{number}") for number in range(8)]
    rows[6]["teacher_logits"][2] = float("nan")
    folder = shard_writer(tmp_path / "nan", [rows], student=student)
    with pytest.raises(RunFailed, match=r"1 queries is not a finite number: q6\."):
        start(experiment_file, folder)


def test_infinite_gradient_stops(tmp_path: Path, experiment_file: Path, shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipping turns an infinite norm into NaN parameters."""

    def overflow(backend: Backend, *_: Any, **__: Any) -> QueryLosses:
        parameter = next(backend.model.parameters())
        parameter.grad = torch.full_like(parameter, torch.inf)
        return QueryLosses({}, {}, {})

    monkeypatch.setattr(loop, "accumulate_gradients", overflow)
    with pytest.raises(RunFailed, match="gradient"):
        start(experiment_file, shards)


def test_no_gpu_is_told(experiment_file: Path, shards: Path) -> None:
    """Prevents: a traceback from deep inside torch where the machine has no GPU."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=r"train\.device=cuda, but torch sees no GPU"):
        start(experiment_file, shards, **{"train.device": "cuda"})


@pytest.mark.medium
def test_a_full_disk_is_told_and_the_run_goes_on(full_disk: Path, tmp_path: Path, experiment_file: Path, shards: Path) -> None:
    """Prevents: a run lost to a full disk, or a checkpoint cut short by it that is taken for a whole one."""
    with pytest.raises((RunFailed, OSError)) as caught:
        start(experiment_file, shards, **{"train.output": full_disk / "run"})
    assert is_full_disk(caught.value)
    shutil.copytree(full_disk / "run", tmp_path / "moved", ignore=shutil.ignore_patterns("*.tmp"))
    assert start(experiment_file, shards, **{"train.output": tmp_path / "moved"}) == 0
    assert metric_steps(tmp_path / "moved") == list(range(1, 19))


@pytest.mark.medium
def test_loss_falls(tmp_path: Path, experiment_file: Path, shards: Path) -> None:
    """A run that does not learn."""
    start(experiment_file, shards, train__epochs=12, train__objective__without="adaptive", train__learning_rate=0.003)
    losses = [json.loads(line)["distillation"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:6])


@pytest.mark.medium
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [False, True])
def test_sentence_transformers_opens_the_student(
    tmp_path: Path, experiment_file: Path, make_student: Any, shard_writer: Any, row_maker: Any, pooling: str, normalize: bool
) -> None:
    """A folder that opens elsewhere with another pooling gives other vectors, and no error."""
    from sentence_transformers import SentenceTransformer

    from retrieval.models.dual_encoder import DualEncoder
    from retrieval.models.student import resolve_student
    from retrieval.models.tokenizer import Tokenizer

    folder = make_student(tmp_path / "student", pooling=pooling, normalize=normalize)
    generator = np.random.default_rng(0)
    shards = shard_writer(tmp_path / "shards", [[row_maker(generator, f"q{number}") for number in range(8)]], student=folder)
    assert start(experiment_file, shards, student__model=folder, train__epochs=1) == 0
    saved = tmp_path / "run" / "student"
    experiment = recipes.load({"config": str(experiment_file), "student.model": str(saved)})
    spec: StudentSpec = resolve_student(experiment.student)
    assert (spec.pooling, spec.normalize) == (pooling, normalize)
    model = DualEncoder(spec).eval()
    texts = ["w1 w2 w3", "w40", "w7 w8 w9 w10 w11 w12"]
    with torch.inference_mode():
        ours = []
        for ids in Tokenizer(model.source).encode(texts, max_tokens=32):
            tokens = torch.tensor([ids])
            ours.append(model(tokens, torch.ones_like(tokens))[0].numpy())
    theirs = SentenceTransformer(str(saved), device="cpu").encode(texts)
    np.testing.assert_allclose(theirs, np.stack(ours), atol=1e-5)
    untrained = load_file(folder / "model.safetensors")
    assert any(not torch.equal(untrained[name], value) for name, value in parameters(tmp_path / "run").items() if name in untrained)


@pytest.mark.medium
def test_help_is_quick_and_faults_have_no_traceback(tmp_path: Path, experiment_file: Path) -> None:
    """Seconds of imports for a misspelt key, and forty lines of traceback after them."""
    began = time.monotonic()
    helped, loaded = loaded_by("train", "run", "--help")
    assert helped.returncode == 0 and "torch" not in loaded and time.monotonic() - began < 5
    for words, expected in [
        (("run", f"config={experiment_file}"), "shards=DIR"),
        (("run", f"config={experiment_file}", "shards=x", "train.epoch=3"), "train.epochs"),
        (("run", f"config={experiment_file}", "shards=x", "train.epochs=three"), "train.epochs"),
        (("run", f"config={experiment_file}", "shards=x", "recipe=adm"), "adam"),
        (("run", "nonsense"), "key=value"),
    ]:
        done, loaded = loaded_by("train", *words)
        assert done.returncode == 2 and expected in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert done.stdout == "" and "torch" not in loaded


def test_a_student_exchanged_while_it_is_loaded(
    tmp_path: Path, experiment_file: Path, shards: Path, student: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a run of other weights than run.json records."""
    import trainer.run

    folder = shutil.copytree(student, tmp_path / "own")
    opened = trainer.run.open_backend

    def exchange(*words: Any, **named: Any) -> Any:
        weights = folder / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(content)
        return opened(*words, **named)

    monkeypatch.setattr(trainer.run, "open_backend", exchange)
    with pytest.raises(RunFailed, match="the files of a model changed while it was loaded"):
        start(experiment_file, shards, **{"student.model": folder})
