"""Several dev sets of a run: their mean, which counts, each set's own figures, and what is no two sets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.dev_sets import write_dev_set
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from data.errors import UserError
from retrieval.model_files.files import tokenizer_digest
from trainer import recipes
from trainer.evaluation import dev_cost, dev_sets, schedule
from trainer.evaluation.dev_sets import open_dev_sets, with_means
from trainer.loop import train
from trainer.reporting import dry_run

Figures = dict[str, dict[str, float]]


def start(file: Path, shards: Path, **overrides: Any) -> int:
    words = {"config": str(file), **{key.replace("__", "."): str(value) for key, value in overrides.items()}}
    return train(recipes.load(words), shards_folder=shards)


def figures_in(output: Path) -> dict[int, dict[str, float]]:
    """Of metrics.jsonl: step -> figures of the dev sets."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["dev"] for line in lines if "dev" in line}


@pytest.fixture
def sets(tmp_path: Path, student: Path, row_maker: Callable[..., Any]) -> dict[str, Path]:
    """A large one and two small ones, none with a query of another."""
    made = {"Large": range(16), "Nano-1": range(16, 19), "Übung": range(19, 22)}
    return {
        name: write_dev_set(tmp_path / "dev" / f"{name}-f", row_maker, student=student, queries=queries, name=name)
        for name, queries in made.items()
    }


def joined(sets: dict[str, Path]) -> str:
    return ",".join(map(str, sets.values()))


VALUES = st.floats(0, 1)


@given(st.dictionaries(st.sampled_from("abcde"), st.tuples(VALUES, VALUES), min_size=1), st.randoms())
def test_the_mean_is_of_sets_and_does_not_depend_on_their_order(drawn: dict[str, tuple[float, float]], chance: Any) -> None:
    """Prevents: a mean over queries, in which one large set drowns the others; a best checkpoint that the order of the sets decides."""
    given_: Figures = {name: {"MRR@10": first, "nDCG@10": second} for name, (first, second) in drawn.items()}
    found = with_means(given_)
    names = list(given_)
    chance.shuffle(names)
    assert with_means({name: given_[name] for name in names}) == found
    for metric in ("MRR@10", "nDCG@10"):
        values = [own[metric] for own in given_.values()]
        assert found[metric] == pytest.approx(float(sum(map(Fraction, values)) / len(values)), rel=1e-15)
    own = {f"{name}/{metric}": value for name, figures in given_.items() for metric, value in figures.items()}
    assert {name: value for name, value in found.items() if "/" in name} == (own if len(given_) > 1 else {})


@pytest.mark.medium
def test_the_mean_decides_and_each_set_is_told(
    tmp_path: Path, experiment_file: Path, shards: Path, sets: dict[str, Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """Prevents: a best checkpoint of the first set, or by another metric than asked for; figures that one of the four places lacks; a set
    whose figures are another's."""
    words = {"train__evaluate_every": 6, "train__dev_metric": "nDCG@10", "train__learning_rate": 0.002}
    assert start(experiment_file, shards, dev=joined(sets), **words) == 0
    seen, output = figures_in(tmp_path / "run"), tmp_path / "run"
    assert list(seen) == [6, 12, 18]
    metrics = ("MRR@10", "nDCG@10", "Recall@100")
    for figures in seen.values():
        assert list(figures) == [*metrics, *(f"{name}/{metric}" for name in sets for metric in metrics)]
        for metric in metrics:
            assert figures[metric] == pytest.approx(sum(figures[f"{name}/{metric}"] for name in sets) / 3, rel=1e-12)
    best = max(seen, key=lambda step: (seen[step]["nDCG@10"], -step))
    result = json.loads((output / "result.json").read_text())
    own = {f"{name}/nDCG@10": seen[best][f"{name}/nDCG@10"] for name in sets}
    assert result["best"] == {"step": best, "nDCG@10": seen[best]["nDCG@10"], **own}
    assert result["last_step"]["dev"] == seen[18]
    curves = EventAccumulator(str(output / "tensorboard"))
    curves.Reload()
    assert {f"dev/{name}" for name in seen[6]} <= set(curves.Tags()["scalars"])
    assert [event.value for event in curves.Scalars("dev/Übung/MRR@10")] == pytest.approx([seen[step]["Übung/MRR@10"] for step in seen])
    said = capfd.readouterr().err
    assert f"3 dev sets after step 6, mean: MRR@10 {seen[6]['MRR@10']:.4f}" in said
    assert f"  Large   MRR@10 {seen[18]['Large/MRR@10']:.4f}, nDCG@10 {seen[18]['Large/nDCG@10']:.4f}" in said
    for name, folder in sets.items():  # the same training, looked at by one set at a time
        assert start(experiment_file, shards, dev=folder, train__output=tmp_path / f"by {name}", **words) == 0
        for step, figures in figures_in(tmp_path / f"by {name}").items():
            assert figures == {metric: seen[step][f"{name}/{metric}"] for metric in metrics}


@pytest.mark.medium
def test_short_vectors_of_each_set(tmp_path: Path, experiment_file: Path, shards: Path, sets: dict[str, Path]) -> None:
    """Prevents: a mean of short vectors over some of the sets, or its name taken for a set's."""
    words = {"train__steps": 1, "train__objective__dimensions": "[32,8]", "student__normalize": True}
    assert start(experiment_file, shards, dev=joined(sets), **words) == 0
    figures = figures_in(tmp_path / "run")[1]
    assert figures["MRR@10/8"] == pytest.approx(sum(figures[f"{name}/MRR@10/8"] for name in sets) / 3)
    (first, *others) = dev_sets.lines(figures, list(sets), step=1, best_step=1)
    assert "MRR@10/8" in first and "Large" not in first
    assert [line.split()[0] for line in others] == list(sets) and all("MRR@10/8" in line for line in others)


@pytest.mark.medium
def test_patience_is_of_these_sets(tmp_path: Path, experiment_file: Path, shards: Path, sets: dict[str, Path]) -> None:
    """Prevents: a stopped run that goes on by other sets, or is refused since they come in another order; one set that is another run than
    it was before there could be several."""
    words = {"train__patience": 9, "train__steps": 2, "train__checkpoint_every": 2}
    assert start(experiment_file, shards, dev=joined(sets), **words) == 0
    key = json.loads((tmp_path / "run" / "run.json").read_text())
    assert start(experiment_file, shards, dev=joined(dict(reversed(sets.items()))), **words) == 0
    with pytest.raises(UserError, match=r"train\.dev: .* there, .* now"):
        start(experiment_file, shards, dev=f"{sets['Large']},{sets['Nano-1']}", **words)
    digests = {json.loads((folder / "manifest.json").read_text())["content_digest"]: name for name, folder in sets.items()}
    assert key["train"]["dev"] == sorted(digests)
    assert start(experiment_file, shards, dev=sets["Large"], train__output=tmp_path / "one", **words) == 0
    assert digests[json.loads((tmp_path / "one" / "run.json").read_text())["train"]["dev"]] == "Large"


def test_sets_that_are_no_two(tmp_path: Path, student: Path, sets: dict[str, Path], row_maker: Callable[..., Any]) -> None:
    """Prevents: a set that counts twice, one figure for two sets, and the sets of a store, old ones among them, taken for what is meant."""
    digest = tokenizer_digest(student)
    assert [dev.name for dev in open_dev_sets([*map(str, sets.values())], tokenizer=digest)] == list(sets)
    twin = write_dev_set(tmp_path / "twin", row_maker, student=student, queries=range(19, 22), name="Übung")
    renamed = write_dev_set(tmp_path / "renamed", row_maker, student=student, queries=range(19, 22), name="other")
    unnamed = write_dev_set(tmp_path / "unnamed", row_maker, student=student, queries=range(2))
    assert [dev.name for dev in open_dev_sets([str(unnamed), str(twin)], tokenizer=digest)] == ["dev", "Übung"]
    (tmp_path / "empty").mkdir()
    for folders, message in [
        ([sets["Large"], sets["Large"]], "both are called Large"),
        ([sets["Übung"], twin], "both are called Übung"),
        ([sets["Übung"], renamed], "Übung and other are the same, which would count twice"),
        ([tmp_path / "dev"], rf"is a folder of 3 dev sets.*dev={joined(sets)}$"),
        ([sets["Large"], tmp_path / "gone"], r"gone: it is not there, without manifest\.json"),
        ([sets["Large"], tmp_path / "empty"], "an empty folder"),
    ]:
        with pytest.raises(UserError, match=message):
            open_dev_sets([*map(str, folders)], tokenizer=digest)
    with pytest.raises(UserError, match="another tokenizer"):
        open_dev_sets([str(sets["Large"])], tokenizer="other")


def test_in_memory_are_the_vectors_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: thirteen sets that are encoded together, and a figure of one set in the name of another."""
    seen: list[str] = []

    def figures_of(model: Any, dev: Any, **_: Any) -> dict[str, float]:
        seen.append(dev.name)
        return {"MRR@10": float(len(seen))}

    class Named:
        def __init__(self, name: str) -> None:
            self.name = name

    monkeypatch.setattr(schedule, "_figures_of", figures_of)
    some: Any = [Named("b"), Named("a")]
    found = schedule.dev_figures(None, some, settings=None, processes=None)  # type: ignore[arg-type]
    assert seen == ["b", "a"] and found == {"MRR@10": 1.5, "b/MRR@10": 1.0, "a/MRR@10": 2.0}


@pytest.mark.medium
def test_a_dry_run_tells_what_looking_costs(
    experiment_file: Path, shards: Path, sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Prevents: evaluations that take longer than the training, found out when it runs; a missing set found then."""
    monkeypatch.setattr(dry_run, "_MEASURED_SECONDS", 0.1)
    monkeypatch.setattr(dry_run, "evaluation_seconds", lambda *_, **__: 100.0)
    words = {"config": str(experiment_file), "train.evaluate_every": "4"}
    assert dry_run.describe(recipes.load({**words, "dev": joined(sets)}), shards_folder=shards) == 0
    said = capsys.readouterr().out
    assert "dev sets     Large, Nano-1, Übung: 22 queries, 88 passages, " in said
    assert " 5 evaluations, about 2 min each\n" in said and "8 min of it evaluations" in said
    assert dry_run.describe(recipes.load(words), shards_folder=shards) == 0
    said = capsys.readouterr().out
    assert "dev sets" not in said and "without evaluation on a dev set and checkpoints" in said
    shutil.rmtree(sets["Large"])
    with pytest.raises(UserError, match="Large-f: it is not there"):
        dry_run.describe(recipes.load({**words, "dev": joined(sets)}), shards_folder=shards)


def test_the_sample_that_is_measured(student: Path, sets: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a price from the first set's passages, a whole corpus encoded to tell what encoding costs, or seconds of another number
    of tokens."""
    found = open_dev_sets([*map(str, sets.values())], tokenizer=tokenizer_digest(student))
    total = sum(len(tokens) for dev in found for texts in (dev.queries, dev.passages) for tokens in texts.part(0, len(texts)))
    encoded: list[int] = []
    monkeypatch.setattr(dev_cost, "encode_all", lambda model, sequences, **_: encoded.append(sum(map(len, sequences))))
    clock = iter([10.0, 12.5])
    monkeypatch.setattr(dev_cost.time, "perf_counter", lambda: next(clock))

    class Budget:
        micro_batch_tokens = 30

    seconds = dev_cost.evaluation_seconds(None, found, settings=Budget())  # type: ignore[arg-type]
    assert encoded[0] == encoded[1] and 60 <= encoded[0] <= 180
    assert seconds == pytest.approx(2.5 * total / encoded[0])
