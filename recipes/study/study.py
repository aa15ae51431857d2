"""One collection's part of the study: training data, tries on dev, trainings and figures, each made unless it is there."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from cells import Results, chosen, judged
from methods import METHODS, Method, Training, steps_of
from prepared import prepare
from sitting import Sitting, children_seconds

from data.config.settings import load
from data.digests import file_digest, json_digest
from data.errors import EXIT_NOTHING_LEFT, UserError
from data.tables.shards import atomic_write

HERE = Path(__file__).parent
DEV_METRIC = "MRR@10"
METRICS = "MRR@10,nDCG@10,Recall@100"
BUDGET_OF = "adam_positive"  # whose time the peer has
_SEEDS_WITHOUT_TRAINING = (0,)
_WITHOUT_DARK = {"dark_examples.reinforced": "false", "dark_examples.mask_ratios": "[]"}


class NotNow(Exception):
    """A method that cannot be run: why, in a sentence."""


@dataclass(frozen=True)
class Trained:
    """A student that was trained: its folder, what it reached on dev, seconds, and what is to be said of it."""

    student: str
    dev: float
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class Plan:
    """`sizes.yaml` and `study.yaml` of a folder."""

    folder: Path

    @cached_property
    def sizes(self) -> dict[str, Any]:
        """All of sizes.yaml."""
        return dict(yaml.safe_load((self.folder / "sizes.yaml").read_text(encoding="utf-8")))

    @cached_property
    def file(self) -> dict[str, Any]:
        """All of study.yaml."""
        return dict(yaml.safe_load((self.folder / "study.yaml").read_text(encoding="utf-8")))

    @cached_property
    def models(self) -> dict[str, str]:
        """Digests of the weights of student and teacher."""
        return {name: _weights(Path(self.sizes[name])) for name in ("student", "teacher")}

    def data_settings(self, phases: set[str]) -> dict[str, Any]:
        """What of study.yaml decides the figures of a method that reads these phases; without any it is how a student reads."""
        if not phases:
            return {"student": self.file["student"]}
        shared = {key: value for key, value in self.file.items() if key not in ("store", "runner", "phases")}
        return {**shared, "phases": {name: self.file["phases"][name] for name in sorted(phases)}}

    def seeds(self, method: Method) -> tuple[int, ...]:
        """Of training; the start has one."""
        return tuple(self.sizes["seeds"]) if method.trainings or method.peer else _SEEDS_WITHOUT_TRAINING

    @property
    def rates(self) -> list[str]:
        """The tries of a method."""
        return [str(rate) for rate in self.sizes["rates"]]

    def reason_not(self, name: str) -> str:
        """Why the installed version cannot run a method; empty where it can."""
        from trainer import recipes

        for training in METHODS[name].trainings:
            try:
                recipes.load({"config": str(self.folder / "study.yaml"), "phase": training.data, **training.settings})
            except UserError as error:
                return " ".join(line.strip() for line in str(error).splitlines()[:2])  # the first may only say that there are faults
        return ""


def _weights(folder: Path) -> str:
    files = [path for name in ("model.safetensors", "model.onnx") if (path := folder / name).is_file()]
    if not files:
        raise UserError(f"{folder} holds no weights: run demo/prepare.py and study/student.py, or set another in sizes.yaml")
    return file_digest(files[0])


class CollectionStudy:
    """A collection: what is missing, and how it is made."""

    def __init__(
        self, name: str, *, source: Path, plan: Plan, results: Results, work: Path, sitting: Sitting, say: Callable[[str], None]
    ) -> None:
        self.name, self.plan, self.results, self.sitting, self.say = name, plan, results, sitting, say
        self.work = work / name
        self._shared = work
        zero_shot = plan.sizes.get("zero_shot")
        self._sizes = dict(plan.sizes["collections"][name])
        folder = Path(self._sizes.pop("folder", source / name))
        self.folder = work / "collections" / name
        self.digest = prepare(folder.parent, folder.name, self._sizes, self.folder)
        self.other, self.other_digest = None, ""
        if zero_shot:
            self.other = work / "collections" / zero_shot["name"]
            sizes = {"passages": zero_shot["passages"], "train": None, "dev": None}
            self.other_digest = prepare(source, zero_shot["name"], sizes, self.other)
        self._shards: dict[tuple[str, str], str | None] = {}

    # What decides figures

    def settings(self, method: str) -> str:
        """Digest of all that decides a method's figures, but for the seed, the rates that are tried, and the version of the code."""
        plan, how = self.plan, METHODS[method]
        trained: dict[str, Any] = {}
        if how.trainings:
            counts = steps_of(how, plan.sizes["steps"])
            trained = {"trainings": [asdict(one) for one in how.trainings], "steps": counts}
            trained |= {"rate_of": self.settings(how.rate_of)} if how.rate_of else {}
        elif how.peer:
            trained = {"peer": file_digest(HERE / "peer.py")}
        data = plan.data_settings({"mined", *(one.data for one in how.trainings)} if how.trainings or how.peer else set())
        of_collection = {"sizes": self._sizes, "files": self.digest, "zero_shot": plan.sizes.get("zero_shot")}
        shared = {"data": data, "models": plan.models, "collection": of_collection, "other": self.other_digest}
        return json_digest({**shared, **trained})

    @property
    def of_advice(self) -> str:
        """Digest of what decides the advice."""
        data = self.plan.data_settings({"mined"})
        return json_digest({"data": data, "models": self.plan.models, "sizes": self._sizes, "files": self.digest})

    def is_there(self, method: str, seed: int) -> bool:
        """Whether the cell is, by the present settings, and after the present tries."""
        found = self.results.cell(self.name, method, seed)
        if found is None or found.get("settings") != self.settings(method):
            return False
        return "tries" not in found or {one["rate"] for one in found["tries"]} == set(self.plan.rates)

    def tried(self, method: str) -> list[dict[str, Any]]:
        """The tries that are there, by the present settings and of the present rates."""
        return [one for one in self._all_tried(method) if one["rate"] in self.plan.rates]

    def _all_tried(self, method: str) -> list[dict[str, Any]]:
        """Those of other rates, too."""
        known = self.results.tries(self.name, method)
        return list(known["tries"]) if known and known.get("settings") == self.settings(method) else []

    def stale(self) -> list[str]:
        """Cells of other settings."""
        cells = [(method, seed) for method, how in METHODS.items() for seed in self.plan.seeds(how)]
        return [f"{m}-{s}" for m, s in cells if self.results.cell(self.name, m, s) and not self.is_there(m, s)]

    # What is made

    def advise(self) -> None:
        """Keep what `prep advise` says of the collection, unless it is there. It is asked before anything is trained."""
        known = self.results.advice(self.name)
        if known and known["settings"] == self.of_advice:
            return
        _, seconds = self.sitting.command("prep", "advise", *self._arguments({"phase": "mined"}))
        said = [line for line in self.sitting.log.read_text(encoding="utf-8").splitlines() if line.startswith('{"facts"')]
        found = json.loads(said[-1])
        self.results.write_advice(self.name, {"settings": self.of_advice, "seconds": round(seconds, 1), "version": _version(), **found})
        self.say(f"{self.name}: advised is {found['advice'][0]['settings']}")

    def make(self, method: str, seed: int) -> None:
        """The cell, and before it the tries of its method."""
        how, settings = METHODS[method], self.settings(method)
        content: dict[str, Any] = {"collection": self.name, "method": method, "seed": seed, "settings": settings, "version": _version()}
        seconds: dict[str, float] = {}
        if not how.trainings and not how.peer:
            student = str(self.plan.sizes["student"])
        else:
            tries = self._tries(how.rate_of or method)
            best = chosen(tries)
            trained = self._trained(method, seed, best["rate"], settings)
            student = trained.student
            content |= {"tries": tries, "rate": best["rate"], "dev": trained.dev}
            content |= {key: value for key, value in {"note": trained.note, "rate_of": how.rate_of}.items() if value}
            seconds["train"] = round(trained.seconds, 1)
        entries, seconds["evaluate"] = self._judged(student, seed)
        self.results.write_cell(self.name, method, seed, {**content, **entries, "seconds": seconds})
        for folder in self.work.glob(f"{method}-{seed}-*"):
            shutil.rmtree(folder)
        figure = entries["test"]["metrics"][DEV_METRIC]["mean"]
        self.say(f"{self.name}, {METHODS[method].title}, seed {seed}: test {DEV_METRIC} {figure:.4f}")

    def _tries(self, method: str) -> list[dict[str, Any]]:
        """Of all rates, on dev, with the first seed. Of the students only the best so far is kept."""
        tries, settings = self._all_tried(method), self.settings(method)
        first = self.plan.sizes["seeds"][0]
        for rate in self.plan.rates:
            if any(one["rate"] == rate for one in tries):
                continue
            trained = self._trained(method, first, rate, settings)
            tries.append({"rate": rate, "dev": trained.dev, "seconds": round(trained.seconds, 1)})
            self.results.write_tries(self.name, method, {"settings": settings, "seed": first, "metric": DEV_METRIC, "tries": tries})
            self.say(f"{self.name}, {METHODS[method].title}: rate {rate} reaches dev {DEV_METRIC} {trained.dev:.4f}")
            best = chosen(self.tried(method))["rate"]
            for one in tries:
                if one["rate"] != best:
                    shutil.rmtree(self._output(method, first, one["rate"]), ignore_errors=True)
        return self.tried(method)

    def _output(self, method: str, seed: int, rate: str) -> Path:
        return self.work / f"{method}-{seed}-{rate}"

    def _trained(self, method: str, seed: int, rate: str, settings: str) -> Trained:
        """Train unless the student is there."""
        output = self._output(method, seed, rate)
        note = output / "trained.json"
        state = _State.open(output, settings)
        if note.is_file():
            return Trained(**json.loads(note.read_text(encoding="utf-8")))
        work = self._train_peer if METHODS[method].peer else self._train
        trained = work(method, seed, rate, output, state)
        atomic_write(note, json.dumps(asdict(trained)).encode())
        return trained

    def _train(self, method: str, seed: int, rate: str, output: Path, state: _State) -> Trained:
        how, student, dev, fewer = METHODS[method], str(self.plan.sizes["student"]), 0.0, list[str]()
        for place, (training, steps) in enumerate(zip(how.trainings, steps_of(how, self.plan.sizes["steps"]), strict=True)):
            shards = self._data(training, student)
            if shards is None:
                return Trained(student, dev, state.seconds, f"training {place + 1} has no question left: {steps} steps were not made")
            folder = output / str(place)
            own = self._training(training, student, folder, steps=steps, rate=rate, seed=seed)
            own |= {"shards": shards, "dev": self._dev(), "train.evaluate_every": str(steps)}
            with state.timed():
                self.sitting.command("train", "run", *self._arguments(own))
            result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
            student, dev = str(folder / "student"), float(result["last_step"]["dev"][DEV_METRIC])
            if result["steps"] < steps:  # `epochs` of study.yaml ended it: questions have no list
                fewer.append(f"training {place + 1} made {result['steps']} of {steps} steps")
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
            shutil.rmtree(folder / "best", ignore_errors=True)
        return Trained(student, dev, state.seconds, "; ".join(fewer))

    def _train_peer(self, method: str, seed: int, rate: str, output: Path, state: _State) -> Trained:
        """The peer has as much processor time as one run of ADAM, training data included."""
        budget = self._budget()
        given = {
            "collection": str(self.folder), "out": str(output / "peer"), "seed": str(seed),
            "lists": str(self.work / f"lists-{self.settings(method)}"),
            "rate": rate, "seconds": f"{budget:.0f}", "config": str(self.plan.folder / "study.yaml"),
            "student": str(self.plan.sizes["student"]),
            "teacher": str(self.plan.sizes["teacher"]), "threads": str(self.plan.sizes["threads"]),
        }  # fmt: skip
        with state.timed():
            self.sitting.command(str(HERE / "peer.py"), *(f"--{key}={value}" for key, value in given.items()))
        result = json.loads((output / "peer" / "result.json").read_text(encoding="utf-8"))
        return Trained(str(output / "peer" / "student"), float(result["dev"]), float(result["seconds"]), result["note"])

    def _training(self, training: Training, student: str, folder: Path, *, steps: int, rate: str, seed: int) -> dict[str, str]:
        """What `train run` is given, but for shards and dev set."""
        return {
            **training.settings, "phase": training.data, "student.model": student, "train.output": str(folder), "train.seed": str(seed),
            "train.steps": str(steps), "train.learning_rate": f"{float(rate) * training.rate:.6g}",
            "train.warmup_steps": str(max(1, steps // 10)), "train.threads": str(self.plan.sizes["threads"]),
        }  # fmt: skip

    def _budget(self) -> float:
        """Processor seconds of one run of ADAM on this processor, from the collection to the student, in a store of its own.

        Its data are made in two parts, so that the results have the seconds of those of Hard KD, too.

        Raises NotNow where its cell, which has the rate, is not there.
        """
        known, settings, seed = self.results.budget(self.name), self.settings(BUDGET_OF), self.plan.sizes["seeds"][0]
        on = {"processor": _processor(), "threads": self.plan.sizes["threads"], "settings": settings}
        if known and {key: known[key] for key in on} == on:
            return float(known["seconds"])
        if not self.is_there(BUDGET_OF, seed):
            raise NotNow(f"it has the time of {METHODS[BUDGET_OF].title}, which has not been run yet")
        cell, folder = self.results.cell(self.name, BUDGET_OF, seed), self.work / "budget"
        assert cell is not None, "it is there"
        shutil.rmtree(folder, ignore_errors=True)
        (training,), student, began = METHODS[BUDGET_OF].trainings, str(self.plan.sizes["student"]), children_seconds()
        data = {"phase": training.data, "student.model": student, "store": str(folder / "store"), "dev.queries": "0"}
        self.sitting.command("prep", "run", *self._arguments({**data, **_WITHOUT_DARK}))
        plain = round(children_seconds() - began, 1)
        self.sitting.command("prep", "run", *self._arguments(data))
        own = self._training(training, student, folder / "run", steps=self.plan.sizes["steps"], rate=cell["rate"], seed=seed)
        self.sitting.command("train", "run", *self._arguments({**own, **data, "shards": str(self._complete(data, "shards"))}))
        seconds = round(children_seconds() - began, 1)
        self.results.write_budget(self.name, {**on, "seconds": seconds, "data_without_dark": plain})
        shutil.rmtree(folder)
        return seconds

    def _data(self, training: Training, student: str) -> str | None:
        """The folder of training shards; None where a selection left no question."""
        own = {"phase": training.data, "student.model": str(self.plan.sizes["student"]) if training.mined_by_start else student}
        key = (own["phase"], own["student.model"])
        if key not in self._shards and (there := self._complete(own, "shards")):
            self._shards[key] = there
        if key not in self._shards:
            code, _ = self.sitting.command("prep", "run", *self._arguments(own))
            self._shards[key] = None if code == EXIT_NOTHING_LEFT else self._complete(own, "shards")
        return self._shards[key]

    def _dev(self) -> str:
        """The dev set that all trainings are measured on: of the phase `mined`, by the start's lists."""
        own = {"phase": "mined", "student.model": str(self.plan.sizes["student"])}
        if not self._complete(own, "dev"):
            self.sitting.command("prep", "run", *self._arguments(own), "stage=dev")
        return str(self._complete(own, "dev"))

    def _complete(self, own: dict[str, str], stage: str) -> str | None:
        """The folder of a stage's table, as `prep path` has it; None where it is not complete."""
        from pipeline.plan import Planner, selected_tables

        experiment = load(dict(word.split("=", 1) for word in self._arguments(own)))
        planned = list(Planner(experiment).plan_all(selected_tables(experiment, stage)))
        return None if planned[-1].waits_for or planned[-1].manifest is None else str(planned[-1].folder)

    def _judged(self, student: str, seed: int) -> tuple[dict[str, Any], float]:
        """The entries `test` and, with the first seed, `zero_shot` of a cell, and the seconds."""
        zero_shot = self.other is not None and seed == self.plan.sizes["seeds"][0]
        folders = [self.folder, *([self.other] if zero_shot else [])]
        out, vectors = self.work / "judged", self.work / "vectors"
        shutil.rmtree(out, ignore_errors=True)
        reads = [f"{key}={value}" for key, value in self.plan.file["student"].items() if key != "model"]
        how = [f"collections={','.join(map(str, folders))}", "split=test", f"metrics={METRICS}", f"threads={self.plan.sizes['threads']}"]
        _, seconds = self.sitting.command("retrieve", "evaluate", f"model={student}", *how, *reads, f"out={out}", f"vectors={vectors}")
        entries = {}
        for name, folder in zip(("test", "zero_shot"), folders, strict=False):
            entries[name] = judged(json.loads((out / "per_query" / f"{folder.name}.json").read_text(encoding="utf-8")))
        shutil.rmtree(vectors / "embeddings", ignore_errors=True)  # of this student: no other cell reads them
        return entries, round(seconds, 1)

    def _arguments(self, own: dict[str, str]) -> list[str]:
        everywhere = {
            "config": str(self.plan.folder / "study.yaml"), "store": str(self._shared / "store"), "ingest.path": str(self.folder),
            "teacher.model": str(self.plan.sizes["teacher"]), "runner.threads": str(self.plan.sizes["threads"]),
            "embed.model": str(self.plan.sizes["student"]),
        }  # fmt: skip
        if own.get("phase") == "selected":
            del everywhere["embed.model"]  # mined by what it starts from
        return [f"{key}={value}" for key, value in {**everywhere, **own}.items()]


class _State:
    """The processor seconds that a training has taken, over all sittings."""

    def __init__(self, path: Path, settings: str, seconds: float) -> None:
        self._path, self._settings, self.seconds = path, settings, seconds

    @classmethod
    def open(cls, folder: Path, settings: str) -> _State:
        """A folder of other settings is emptied."""
        path = folder / "state.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if known.get("settings") != settings:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            known = {"seconds": 0.0}
            atomic_write(path, json.dumps({"settings": settings, "seconds": 0.0}).encode())
        return cls(path, settings, float(known["seconds"]))

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Adds what its block takes, also where the block is broken off; kept on disk."""
        began = children_seconds()
        try:
            yield
        finally:
            self.seconds += children_seconds() - began
            atomic_write(self._path, json.dumps({"settings": self._settings, "seconds": self.seconds}).encode())


def _processor() -> str:
    """Its name and what it computes fast, by which times are compared."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    fast = sorted({"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"} & set(found.get("flags", "").split()))
    return " ".join([found.get("model name", platform.processor()), *fast])


def _version() -> str:
    try:
        return importlib.metadata.version("adam-distillation")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
