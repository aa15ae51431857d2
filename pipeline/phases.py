"""`prep phases`: the phases of a file one after the other, and on from where a kill broke them off.

A phase with a `train` section of its own is `prep run`, `train run` on its shards, and what `evaluation` asks for. One without trains
nothing: vectors and dev sets are made, and what embeds is measured. The dev sets of a training are its own phase's where `dev.queries`
or `dev.collections` is set, else those of the last phase before it that has any.

Each command is a child process of this interpreter. Where `prep run` finds nothing left to learn, the phases end: no failure.

STORE/phases/NAME-<digest of all settings>.json    written when the phase is finished: it is passed over from then on,
                                                   as long as what it made is there and no phase before it had to run again
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from data.config.experiment_file import phases_of
from data.config.fields import unknown_key
from data.config.settings import Experiment, load
from data.digests import json_digest
from data.errors import EXIT_COMPLETE, EXIT_NOTHING_LEFT, RunFailed, UserError
from data.remote.object_store import is_remote
from data.store import mirror
from data.store.paths import store_root
from data.tables.shards import atomic_write

_PACKAGES = {"prep": "pipeline", "train": "trainer", "retrieve": "retrieval"}


@dataclass(frozen=True)
class Phase:
    """One phase: its settings, and the arguments by which a command reads the same ones."""

    name: str
    experiment: Experiment
    trains: bool
    args: tuple[str, ...]

    @property
    def output(self) -> Path:
        """The folder of its training."""
        return Path(self.experiment.train.output)

    @property
    def model(self) -> str:
        """What is measured: the trained model, or what embeds."""
        if self.trains:
            return str(self.output / self.experiment.train.task)
        return self.experiment.embed.model or self.experiment.student.model

    @property
    def reranks(self) -> bool:
        """Whether the model is a cross-encoder, which puts a run in its order."""
        return self.trains and self.experiment.train.task == "cross_encoder"

    @property
    def runs(self) -> dict[str, Path]:
        """The TREC run of each split that the model is measured on."""
        evaluation = self.experiment.evaluation
        splits = evaluation.splits if not self.reranks else evaluation.splits[: evaluation.rerank is not None]
        return {split: Path(f"{evaluation.out}.{split}.trec") for split in splits}

    @property
    def note(self) -> Path:
        """Says that the phase was finished, by these settings."""
        digest = json_digest(self.experiment.model_dump(mode="json", exclude=None if self.trains else {"train"}))
        return store_root(self.experiment.store) / "phases" / f"{self.name}-{digest[:16]}.json"

    @property
    def finished(self) -> bool:
        """Whether the note is there, and all that was made."""
        made = [*self.runs.values(), *([self.output / "result.json"] if self.trains else [])]
        return mirror.fresh(self.note).is_file() and all(path.is_file() for path in made)


def run_phases(args: dict[str, str], *, names: list[str], say: Callable[[str], None]) -> int:
    """Run phases of the file `config=FILE` in its order. Returns the exit code: 0, or that of the command that ended otherwise.

    Args:
        args: `config`, and overrides of all phases.
        names: of the phases to run; none for all.
        say: takes a line for people.

    Raises UserError, before any work: no such phase, two trainings with one output, and what `load` refuses of any phase.
    """
    if "phase" in args:
        raise UserError(f"phase={args['phase']}: name the phases to run as phases=NAME,NAME")
    phases = _phases(args)
    if unknown := [name for name in names if name not in (phase.name for phase in phases)]:
        raise unknown_key(f"phases={unknown[0]}", valid=[f"phases={phase.name}" for phase in phases])
    with_dev: Phase | None = None
    again = False
    for phase in phases:
        with_dev = phase if phase.experiment.dev.asked_for else with_dev
        if names and phase.name not in names:
            continue
        if phase.finished and not again:
            say(f"== phase {phase.name}: finished already")
            continue
        again = True
        say(f"== phase {phase.name}")
        try:
            _run(phase, with_dev, say)
        except subprocess.CalledProcessError as ended:  # the command has said why
            if ended.returncode < 0:
                killed = f"{ended.cmd} was ended by {signal.Signals(-ended.returncode).name}"
                raise RunFailed(f"{killed}; start the same command again, it goes on") from ended
            if ended.returncode != EXIT_NOTHING_LEFT:
                return ended.returncode
            say(f"== phase {phase.name}: nothing is left to learn; the model of the phase before is the last one")
            return EXIT_COMPLETE
        phase.note.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(phase.note, json.dumps({"phase": phase.name, "model": phase.model}).encode())
    return EXIT_COMPLETE


def _phases(args: dict[str, str]) -> list[Phase]:
    listed = phases_of(Experiment, args.get("config"))
    if not listed:
        raise UserError(f"{args['config']} has no phases: it is one training (prep run, train run)")
    shared = [f"{key}={value}" for key, value in args.items()]
    phases = [Phase(name, load({**args, "phase": name}), "train" in own, (*shared, f"phase={name}")) for name, own in listed.items()]
    if far := next((phase for phase in phases if phase.trains and is_remote(phase.experiment.train.output)), None):
        raise UserError(
            f"train.output={far.experiment.train.output}: phase {far.name} trains a model that other phases read; expected a folder of "
            "this machine or of a network file system"
        )
    for output, count in Counter(os.path.abspath(phase.output) for phase in phases if phase.trains).items():
        if count > 1:
            raise UserError(f"{count} phases have train.output={output}: give each a folder of its own")
    return phases


def _run(phase: Phase, with_dev: Phase | None, say: Callable[[str], None]) -> None:
    """All commands of a phase, in order."""
    train, has_dev = phase.experiment.train, phase.experiment.dev.asked_for
    for stage in ["all"] if phase.trains else ["ingest", "embed", *(["dev"] if has_dev else [])]:
        _command(say, "prep", "run", *phase.args, f"stage={stage}")
    if phase.trains:
        tables = [f"shards={_path(phase, 'shards')}"]
        if with_dev and not train.dev and not phase.reranks:
            tables.append("dev=" + _path(with_dev, "dev").replace("\n", ","))
        _command(say, "train", "run", *phase.args, *tables)
    if phase.runs:
        next(iter(phase.runs.values())).parent.mkdir(parents=True, exist_ok=True)
        (_rerank if phase.reranks else _evaluate)(phase, say)


def _evaluate(phase: Phase, say: Callable[[str], None]) -> None:
    """Search the whole corpus for the queries of each split."""
    trained = [f"embed.model={phase.model}"] if phase.trains else []
    if trained:
        _command(say, "prep", "run", *phase.args, "stage=embed", *trained)
    tables = [f"{table}={_path(phase, 'embed', table, *trained)}" for table in ("corpus", "queries")]
    how = [f"qrels={_path(phase, 'ingest', 'qrels')}", f"depth={phase.experiment.evaluation.depth}", _device(phase)]
    for split, run in phase.runs.items():
        files = [f"out={run}", f"per_query={run.with_suffix('.json')}"]
        _command(say, "retrieve", "evaluate", *tables, *how, f"split={split}", *files)


def _rerank(phase: Phase, say: Callable[[str], None]) -> None:
    """Put the first passages of a run in the cross-encoder's order, and compare it with the run's own."""
    evaluation = phase.experiment.evaluation
    ((split, run),) = phase.runs.items()
    tables = [f"{table}={_path(phase, 'ingest', table)}" for table in ("corpus", "queries")]
    sizes = [f"depth={evaluation.depth}", f"limit={evaluation.rerank_queries}", f"max_tokens={phase.experiment.teacher.max_tokens}"]
    _command(say, "retrieve", "rerank", f"model={phase.model}", f"run={evaluation.rerank}", f"out={run}", *tables, *sizes, _device(phase))
    qrels = f"qrels={_path(phase, 'ingest', 'qrels')}"
    _command(say, "retrieve", "compare", f"before={evaluation.rerank}", f"after={run}", qrels, f"split={split}", "missing=skip")


def _device(phase: Phase) -> str:
    return f"device={phase.experiment.runner.device}"


def _command(say: Callable[[str], None], command: str, *args: str) -> None:
    say(" ".join(["--", command, *args]))
    if code := call(command, *args):
        raise subprocess.CalledProcessError(code, f"{command} {args[0]}")


def call(command: str, *args: str) -> int:
    """The exit code of `prep`, `train` or `retrieve` as a child. A signal that asks this process to stop is passed on to it."""
    # A group of its own: a terminal's Ctrl-C would reach the child twice, and on the second signal it leaves at once.
    with subprocess.Popen(_python(command, *args), process_group=0) as child:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.terminate()
            child.wait()
            raise


def _path(phase: Phase, stage: str, table: str = "", *more: str) -> str:
    """What `prep path` prints: a folder, or a line for each."""
    done = subprocess.run(_python("prep", "path", *phase.args, f"stage={stage}", f"table={table}", *more), stdout=subprocess.PIPE)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, f"prep path stage={stage}")
    return os.fsdecode(done.stdout).removesuffix("\n")


def _python(command: str, *args: str) -> list[str]:
    return [sys.executable, "-P", "-m", _PACKAGES[command], *args]  # -P: no folder of the working directory is taken for a package
