"""`prep phases`: which commands a phase is, in which order, and what is passed over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data.errors import EXIT_INTERRUPTED, EXIT_NOTHING_LEFT, RunFailed, UserError
from pipeline import phases as driver
from pipeline.phases import run_phases

FILE = """
store: {0}/store
ingest: {{path: collection}}
student: {{model: start}}
teacher: {{model: teacher}}
phases:
  dev:
    dev: {{queries: 4}}
    evaluation: {{splits: [dev], depth: 20, out: {0}/start}}
  one:
    train: {{output: {0}/one}}
  ranker:
    train: {{task: cross_encoder, output: {0}/ranker}}
    evaluation: {{splits: [dev], out: {0}/ranker/again, rerank: {0}/start.dev.trec}}
  two:
    student: {{model: {0}/one/student}}
    train: {{output: {0}/two}}
    evaluation: {{splits: [dev, test], out: {0}/two/evaluation}}
"""


class Commands:
    """Stands in for the child processes: notes each, writes what it would, and ends with the code that a test wants."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seen, self.ends = folder, list[str](), dict[str, int]()

    def call(self, command: str, *args: str) -> int:
        given = dict(word.partition("=")[::2] for word in args[1:])
        phase = given.get("phase", "")
        self.seen.append(" ".join([phase, command, args[0], *(f"{key}={given[key]}" for key in ("stage", "dev", "split") if key in given)]))
        if code := self.ends.get(f"{phase} {command}", 0):
            return code
        made = self.folder / phase / "result.json" if command == "train" else Path(given.get("out", self.folder / "none"))
        made.parent.mkdir(parents=True, exist_ok=True)
        made.write_text("")
        return 0

    def run(self, **args: str) -> tuple[int, list[str], list[str]]:
        """The exit code, the commands, and the lines that are said of phases."""
        self.seen, said = [], list[str]()
        names = args.pop("phases", "")
        code = run_phases({"config": str(self.folder / "e.yaml"), **args}, names=names.split(",") if names else [], say=said.append)
        return code, self.seen, [line for line in said if line.startswith("==")]


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    (tmp_path / "e.yaml").write_text(FILE.format(tmp_path))
    stand_in = Commands(tmp_path)
    monkeypatch.setattr(driver, "call", stand_in.call)
    monkeypatch.setattr(driver, "_path", lambda phase, stage, *more: f"{phase.name}-{stage}")
    return stand_in


def test_all_dev_sets_of_a_phase_are_given(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a training that sees the first of several sets, or none since they are of collections alone."""
    file = commands.folder / "e.yaml"
    file.write_text(FILE.format(commands.folder).replace("dev: {queries: 4}", "dev: {collections: [nano/A, nano/B]}"))
    monkeypatch.setattr(driver, "_path", lambda phase, stage, *more: "/s/A\n/s/B" if stage == "dev" else "/s/shards")
    code, seen, _ = commands.run()
    assert code == 0 and seen[:3] == EXPECTED["dev"][:3]
    assert seen[5] == "one train run dev=/s/A,/s/B" and "ranker train run" in seen


EXPECTED = {
    "dev": ["dev prep run stage=ingest", "dev prep run stage=embed", "dev prep run stage=dev", " retrieve evaluate split=dev"],
    "one": ["one prep run stage=all", "one train run dev=dev-dev"],
    "ranker": ["ranker prep run stage=all", "ranker train run", " retrieve rerank", " retrieve compare split=dev"],
    "two": [
        "two prep run stage=all", "two train run dev=dev-dev", "two prep run stage=embed",
        " retrieve evaluate split=dev", " retrieve evaluate split=test",
    ],
}  # fmt: skip


ALL = [command for commands in EXPECTED.values() for command in commands]


def test_a_phase_is_its_commands_in_order(commands: Commands) -> None:
    """Prevents: a student that no one measured, a cross-encoder searched with, and a phase that trains before its data are made."""
    code, seen, _ = commands.run()
    assert code == 0 and seen == ALL


def test_finished_phases_are_passed_over(commands: Commands) -> None:
    """Prevents: days done again after a kill, and a later phase that rests on an earlier one's former result."""
    commands.ends = {"ranker train": EXIT_INTERRUPTED}
    code, seen, _ = commands.run()
    assert code == EXIT_INTERRUPTED and seen[-1] == "ranker train run"
    commands.ends = {}
    code, seen, said = commands.run()
    assert code == 0 and seen == EXPECTED["ranker"] + EXPECTED["two"]
    assert said[:3] == ["== phase dev: finished already", "== phase one: finished already", "== phase ranker"]
    assert commands.run()[1] == []
    (commands.folder / "one" / "result.json").unlink()
    assert commands.run()[1] == EXPECTED["one"] + EXPECTED["ranker"] + EXPECTED["two"]
    assert commands.run(**{"train.epochs": "9"})[1] == EXPECTED["one"] + EXPECTED["ranker"] + EXPECTED["two"]  # `dev` trains nothing
    assert commands.run(seed="1")[1] == ALL


def test_nothing_left_to_learn_ends_them_well(commands: Commands) -> None:
    """Prevents: a failure where the last round has no question left, or the next phase trained from a student that is not there."""
    commands.ends = {"ranker prep": EXIT_NOTHING_LEFT}
    code, seen, said = commands.run()
    assert code == 0 and seen[-1] == "ranker prep run stage=all" and "nothing is left to learn" in said[-1]


def test_only_the_phases_asked_for(commands: Commands) -> None:
    """Prevents: phases run that nobody asked for; a misspelt one found after the first one's work."""
    assert commands.run(phases="two,dev")[1] == EXPECTED["dev"] + EXPECTED["two"]
    with pytest.raises(UserError, match="phases=three; nearest: phases="):
        commands.run(phases="one,three")
    with pytest.raises(UserError, match="phases=NAME"):
        commands.run(phase="one")


def test_faults_are_told_before_work(commands: Commands) -> None:
    """Prevents: two students in one folder, a misspelt key of the last phase or an unknown recipe, found days later."""
    file = commands.folder / "e.yaml"
    for old, new, said in [
        (f"{commands.folder}/two}}", f"{commands.folder}/../{commands.folder.name}/one}}", r"2 phases have train\.output=.*one: give each"),
        ("{queries: 4}", "{querys: 4}", "nearest: dev.queries"),
        ("train: {output", "train: {recipe: adan, output", "train.recipe.*'adam'"),
        ("phases:", "evaluation: {out: x}\n#", "has no phases"),
    ]:
        text = FILE.format(commands.folder)
        assert old in text
        file.write_text(text.replace(old, new) if new[-1] != "#" else text[: text.index("phases:")])
        with pytest.raises(UserError, match=said):
            commands.run()
    assert not commands.seen


def test_a_command_that_was_killed_is_told(commands: Commands) -> None:
    """Prevents: a negative exit code, which a shell shows as 247, and no word of what was ended."""
    commands.ends = {"one train": -signal.SIGKILL}
    with pytest.raises(RunFailed, match="train run was ended by SIGKILL; start the same command again"):
        commands.run()


def test_a_path_whose_command_was_killed_is_told(commands: Commands, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: the same where the command was asked for a folder."""

    def killed(phase: driver.Phase, stage: str, *more: str) -> str:
        raise subprocess.CalledProcessError(-signal.SIGKILL, f"prep path stage={stage}")

    monkeypatch.setattr(driver, "_path", killed)
    with pytest.raises(RunFailed, match=r"prep path stage=.* was ended by SIGKILL"):
        commands.run()


WAITS = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(75)); print('there', flush=True); time.sleep(60)"


def test_a_signal_reaches_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: Any) -> None:
    """Prevents: a training that goes on when the job that started it was asked to stop."""
    monkeypatch.setattr(driver, "_python", lambda *_: [sys.executable, "-c", WAITS])
    wait: Callable[..., int] = subprocess.Popen.wait

    def interrupted(self: Any, timeout: float | None = None) -> int:
        monkeypatch.setattr(subprocess.Popen, "wait", wait)
        while "there" not in capfd.readouterr().out:
            time.sleep(0.01)
        ended.append(self)
        raise KeyboardInterrupt

    ended: list[Any] = []
    monkeypatch.setattr(subprocess.Popen, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        driver.call("train", "run")
    assert ended[0].returncode == EXIT_INTERRUPTED and os.getpgid(0) != ended[0].pid
