"""The scripts of recipes/study: intervals and corrections, cells, the choice on dev, the page. The runner as a whole is in tests/slow."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

RECIPE = Path(__file__).parents[1] / "recipes" / "study"
sys.path.insert(0, str(RECIPE))

import evidence  # noqa: E402
import table  # noqa: E402
from cells import Results, chosen, judged, packed, unpacked  # noqa: E402
from effects import effect, holm  # noqa: E402
from methods import METHODS, steps_of  # noqa: E402
from prepared import prepare  # noqa: E402
from study import Plan  # noqa: E402
from summary import in_short  # noqa: E402

from pipeline.advice.evidence import RECIPES, known_evidence  # noqa: E402

PLAN = Plan(RECIPE)


def holm_by_definition(values: list[float]) -> list[float]:
    """The smallest level at which the step-down procedure rejects, found by trying all that matter."""

    def rejects(level: float) -> set[int]:
        rejected = set[int]()
        for rank, place in enumerate(sorted(range(len(values)), key=lambda place: values[place])):
            if values[place] * (len(values) - rank) > level:
                break
            rejected.add(place)
        return rejected

    levels = sorted({min(1.0, value * count) for value in values for count in range(1, len(values) + 1)} | {1.0})
    return [next((level for level in levels if place in rejects(level)), 1.0) for place in range(len(values))]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_the_step_down_procedure(values: list[float]) -> None:
    """Prevents: p-values that are corrected too little, or that fall where they should rise."""
    assert holm(values) == pytest.approx(holm_by_definition(values), abs=1e-12)


def test_holm_counts_comparisons_alone() -> None:
    """Prevents: rows without an interval that make the others' p-values larger. The example is by hand."""
    found = holm([0.01, float("nan"), 0.04, 0.03])
    assert found[0] == pytest.approx(0.03) and found[2] == found[3] == pytest.approx(0.06) and np.isnan(found[1])


def drawn(generator: np.random.Generator, *, seeds: int, questions: int, gain: float, of_questions: Any, of_seeds: float) -> Any:
    """[seeds, questions] of a method by the two-way model; `of_questions` are what its questions get beside the shared part."""
    noise = generator.normal(0, 0.2, (seeds, questions))
    return gain + of_questions + generator.normal(0, of_seeds, (seeds, 1)) + noise


@pytest.mark.medium
@pytest.mark.parametrize("of_seeds", [0.0, 0.01, 0.05])
@pytest.mark.parametrize("without_seeds", [True, False])
def test_the_interval_covers(of_seeds: float, without_seeds: bool) -> None:
    """Prevents: intervals that three seeds make too narrow, or that questions alone decide. Effects are known: 0.03."""
    generator = np.random.default_rng(1)
    covered, tries = 0, 400
    for _ in range(tries):
        shared = generator.uniform(0, 1, 200)
        own = generator.normal(0, 0.2, 200)
        values = drawn(generator, seeds=3, questions=200, gain=0.03, of_questions=shared + own, of_seeds=of_seeds)
        base = shared[None] if without_seeds else drawn(generator, seeds=3, questions=200, gain=0, of_questions=shared, of_seeds=of_seeds)
        one = effect(values, base, without_seeds=without_seeds)
        covered += one.low <= 0.03 <= one.high
    assert 0.90 <= covered / tries <= 1  # of 20,000 it is 0.92 to 0.99, see effects.py; questions alone would give 0.4 with the largest


def test_without_seeds_it_is_the_paired_t_test() -> None:
    """Prevents: a formula that is right for seeds and wrong for questions. Two equal rows have no spread between seeds."""
    generator = np.random.default_rng(0)
    base, values = generator.random((1, 50)), generator.random((1, 50))
    one = effect(np.repeat(values, 2, 0), base, without_seeds=True)
    known = stats.ttest_rel(values[0], base[0])
    assert one.p_value == pytest.approx(known.pvalue, rel=1e-9) and one.freedom == pytest.approx(49)
    assert (one.low, one.high) == pytest.approx(tuple(known.confidence_interval()), rel=1e-9)


def test_the_error_is_that_of_a_bootstrap_over_seeds_and_questions() -> None:
    """Prevents: a variance with a part left out or counted twice. With 30 seeds a bootstrap of both has no bias to speak of."""
    generator = np.random.default_rng(2)
    shared = generator.uniform(0, 1, 60)
    values = drawn(generator, seeds=30, questions=60, gain=0, of_questions=shared + generator.normal(0, 0.1, 60), of_seeds=0.1)
    base = drawn(generator, seeds=30, questions=60, gain=0, of_questions=shared, of_seeds=0.1)
    means = []
    for _ in range(4000):
        questions = generator.integers(0, 60, 60)
        rows = [generator.integers(0, 30, 30) for _ in range(2)]
        means.append(values[rows[0]].mean(0)[questions].mean() - base[rows[1]].mean(0)[questions].mean())
    assert effect(values, base).error == pytest.approx(np.std(means), rel=0.08)


def test_one_seed_has_no_interval_and_other_questions_are_refused() -> None:
    """Prevents: an interval of one training that passes for one of the method, and methods compared on different questions."""
    values = np.random.default_rng(0).random((3, 20))
    assert np.isnan(effect(values[:1], values).low) and np.isnan(effect(values, values[:1]).low)
    assert effect(values, values[:1], without_seeds=True).low < effect(values, values[:1], without_seeds=True).high
    with pytest.raises(ValueError, match="not of the same"):
        effect(values, values[:, :19])


@given(st.lists(st.floats(0, 1), max_size=50))
def test_values_come_back_to_four_places(values: list[float]) -> None:
    """Prevents: figures of the page that are not those measured."""
    assert unpacked(packed(values)) == pytest.approx(values, abs=0.5001e-4)


def test_a_cell_is_small_and_goes_by_ids() -> None:
    """Prevents: a repository that grows by megabytes, and questions in the order of a file."""
    generator = np.random.default_rng(0)
    per_query = {
        f"q{place}": {
            "MRR@10": 1 / rank if (rank := generator.integers(1, 15)) <= 10 else 0.0,
            "nDCG@10": generator.random(),
            "Recall@100": 1.0,
        }
        for place in generator.permutation(3065)
    }
    entry = judged(per_query)
    assert len(json.dumps(entry)) < 15_000 and judged(dict(sorted(per_query.items()))) == entry
    assert unpacked(entry["metrics"]["nDCG@10"]["values"])[0] == pytest.approx(per_query["q0"]["nDCG@10"], abs=1e-4)
    with pytest.raises(ValueError, match="from 0 to 1"):
        packed([1.5])


def test_the_choice_is_the_best_on_dev_and_of_equals_the_lower_rate() -> None:
    """Prevents: a choice by the order of the tries, or of rates as texts (1e-4 is before 2e-5 there)."""
    tries = [{"rate": "1e-4", "dev": 0.5}, {"rate": "2e-5", "dev": 0.5}, {"rate": "5e-5", "dev": 0.4}]
    assert chosen(tries)["rate"] == "2e-5" and chosen([*tries, {"rate": "3e-4", "dev": 0.6}])["rate"] == "3e-4"


def test_all_methods_visit_as_many_questions() -> None:
    """Prevents: a method of several trainings that has more steps, or fewer, than the others."""
    for name, method in METHODS.items():
        assert not method.trainings or sum(steps_of(method, PLAN.sizes["steps"])) == method.longer * PLAN.sizes["steps"] >= 60, name
    assert [name for name, method in METHODS.items() if method.longer > 1] == ["hard_kd_longer"]
    assert all(size["train"] >= 480 for size in PLAN.sizes["collections"].values()) and len(PLAN.sizes["seeds"]) == 3


def test_what_this_version_cannot_run_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prevents: a sitting that ends with an error of the first method that the installed version does not know."""
    assert PLAN.reason_not("start") == PLAN.reason_not("adam_positive") == PLAN.reason_not("cl_drd") == ""
    from methods import Method, Training

    monkeypatch.setitem(METHODS, "later", Method("later", (Training("mined", {"train.recipe": "later"}),)))
    assert "later" in PLAN.reason_not("later")


def test_dev_questions_come_out_of_training_where_there_are_none(collection: Path, tmp_path: Path) -> None:
    """Prevents: dev questions that are trained on, positives left out of a cut corpus, and a stale collection of other sizes."""
    source = tmp_path / "source" / "toy"
    source.mkdir(parents=True)
    for path in collection.rglob("*"):
        if path.is_file() and path.name != "dev.tsv":
            (source / path.relative_to(collection)).parent.mkdir(parents=True, exist_ok=True)
            (source / path.relative_to(collection)).write_bytes(path.read_bytes())
    target = tmp_path / "out"
    sizes: dict[str, int | None] = {"train": 8, "dev": 4, "passages": 30}
    first = prepare(tmp_path / "source", "toy", sizes, target)
    asked = {
        split: {line.split("\t")[0] for line in (target / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]}
        for split in ("train", "dev")
    }
    assert len(asked["train"]) == 8 and len(asked["dev"]) == 4 and not asked["train"] & asked["dev"]
    kept = {json.loads(line)["_id"] for line in (target / "corpus.jsonl").read_text().splitlines()}
    labels = [line.split("\t")[1] for path in (target / "qrels").iterdir() for line in path.read_text().splitlines()[1:]]
    assert len(kept) == 30 and set(labels) <= kept
    assert prepare(tmp_path / "source", "toy", sizes, target) == first
    assert prepare(tmp_path / "source", "toy", {**sizes, "passages": 40}, target) != first


def write(results: Results, collection: str, method: str, seed: int, values: Any, *, settings: str = "s") -> None:
    per_query = {f"q{place:03}": {"MRR@10": float(value), "nDCG@10": float(value) / 2} for place, value in enumerate(values)}
    cell = {"settings": settings, "version": "1", "test": judged(per_query), "seconds": {"train": 1800.0, "evaluate": 0.0}}
    cell["dev"] = float(np.mean(values))
    if METHODS[method].trainings:
        cell |= {"rate": "5e-5", "tries": [{"rate": rate, "dev": 0.5, "seconds": 1800.0} for rate in ("2e-5", "5e-5", "1e-4")]}
    if seed == 0:
        cell["zero_shot"] = judged({name: {"nDCG@10": value["nDCG@10"]} for name, value in list(per_query.items())[:43]})
    results.write_cell(collection, method, seed, cell)


def test_the_page_shows_known_effects_and_what_is_missing(tmp_path: Path) -> None:
    """Prevents: differences to the wrong row, corrections over the wrong family, and gaps that look like figures."""
    results, generator = Results(tmp_path / "results"), np.random.default_rng(0)
    shared = generator.uniform(0.2, 0.6, 300)
    write(results, "medquad", "start", 0, shared)
    for seed in range(3):
        write(results, "medquad", "hard_kd", seed, shared + 0.1 + generator.normal(0, 0.02, 300))
        write(results, "medquad", "adam", seed, shared + 0.1 + generator.normal(0, 0.02, 300))
        write(results, "medquad", "cl_drd", seed, shared + 0.2 + generator.normal(0, 0.02, 300), settings="old" if seed == 2 else "s")
    write(results, "medquad", "prod", 0, shared + 0.3)
    out = tmp_path / "study.md"
    assert table.main([f"--results={results.folder}", f"--out={out}"]) == 0
    text = out.read_text()
    lines = {
        line.split(" | ")[0].strip("| "): [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if "|" in line
    }
    assert "+0.1" in lines["Hard KD"][5] or "+0.09" in lines["Hard KD"][5]
    assert float(lines["Hard KD"][5].split("p ")[1]) < 0.001 and lines["Hard KD"][6] == "" and lines["start"][5] == ""
    low, high = (float(end) for end in lines["ADAM, by the letter"][6].split("[")[1].split("]")[0].split(","))
    assert low < 0 < high and float(lines["ADAM, by the letter"][6].split("p ")[1]) > 0.01
    assert lines["CL-DRD"][1] == "2, missing: 2" and lines["PROD (T3, D)"][5].endswith("(one seed)")
    assert lines["MarginMSE"][1] == "missing" and "## scifact\n\nMissing: not run yet." in text
    compared = table.comparisons(table.rows_of("medquad", results, PLAN))
    raw = [one.p_value for one, _ in compared.values()]
    assert [adjusted for _, adjusted in compared.values()] == pytest.approx(holm(raw), nan_ok=True)
    hours = 0.5 * (1 + 3 + 3 + 2 + 1) + 2 * 0.5 * 4  # cells, and two further tries of four methods
    assert f"Trained and judged in {hours:.1f} hours of one processor core" in text


def test_advice_is_held_against_what_was_measured(tmp_path: Path) -> None:
    """Prevents: a page that calls its advice right whatever was measured. By the gains that are made here CL-DRD is far ahead."""
    results, generator = Results(tmp_path), np.random.default_rng(0)
    shared = generator.uniform(0.2, 0.6, 300)
    for method, gain in (("hard_kd", 0.1), ("adam_positive", 0.1), ("cl_drd", 0.2)):
        for seed in range(3):
            write(results, "medquad", method, seed, shared + gain + generator.normal(0, 0.02, 300))
    rows = table.rows_of("medquad", results, PLAN)

    assert "The best of 3 methods" in (far := table.of_advice(rows, "adam_positive"))
    assert "0.0994 above" in far and "more than one standard error" in far
    assert "the best of 3 methods" in table.of_advice(rows, "cl_drd")
    assert "not measured yet" in table.of_advice(rows, "margin_mse") and "missing" in table.of_advice(rows, None)


def test_advice_for_a_collection_does_not_know_its_figures(tmp_path: Path) -> None:
    """Prevents: advice that is held against what it was made of. Two collections are alike, and on one ADAM is far ahead."""
    results, generator = Results(tmp_path), np.random.default_rng(0)
    shared = generator.uniform(0.2, 0.6, 300)
    headroom = {"teacher": 0.6, "student": 0.5}
    facts = {"queries": 480, "headroom": headroom, "lists": {"sure": 0.5, "above": {"negative": 0.3}}}
    for name, gain in (("apidocs", 0.2), ("insuranceqa", 0.0)):
        write(results, name, "start", 0, shared)
        for seed in range(3):
            write(results, name, "hard_kd", seed, shared + 0.1 + generator.normal(0, 0.02, 300))
            write(results, name, "adam", seed, shared + 0.1 + gain + generator.normal(0, 0.02, 300))
        results.write_advice(name, {"facts": facts})
    assert evidence.advised("insuranceqa", results, PLAN) == "adam" and evidence.advised("apidocs", results, PLAN) == "hard_kd"
    assert evidence.advised("medquad", results, PLAN) is None
    results.write_advice("apidocs", {"facts": {**facts, "headroom": {"teacher": 0.5, "student": 0.6}}})
    assert evidence.advised("apidocs", results, PLAN) == evidence.NO_RECIPE and "no recipe" in table.of_advice({}, evidence.NO_RECIPE)


@pytest.mark.parametrize("name", ["medquad", "insuranceqa"])
def test_advice_for_a_collection_leaves_all_of_its_figures_out(name: str) -> None:
    """Prevents: an earlier measurement of the same collection among the others."""
    of_others = evidence.of_others(name, Results(RECIPE / "results"), PLAN)
    assert of_others and all(one.collection != name for one in of_others)
    assert any(one.collection == name for one in known_evidence())


def test_gains_of_the_evidence_are_over_the_start(tmp_path: Path) -> None:
    """Prevents: differences to another row, or of another metric. The figures are by hand."""
    results = Results(tmp_path)
    write(results, "medquad", "start", 0, np.full(43, 0.25))
    for seed in range(3):
        write(results, "medquad", "hard_kd", seed, np.full(43, 0.5 + 0.1 * seed))
    results.write_advice("medquad", {"facts": {"queries": 480, "lists": {"sure": 0.5, "above": {"negative": 0.3}}}})
    (one,) = evidence.of_results(results, PLAN)
    assert one["recipes"]["hard_kd"] == {
        "gain": 0.35,
        "zero_shot": 0.125,
        "rate": 5e-5,
    }  # the first seed's, nDCG being half of MRR in `write`


def test_each_recipe_can_be_advised() -> None:
    """Prevents: a recipe that is measured, and that no advice can name."""
    assert RECIPES.keys() == {name for name, how in METHODS.items() if how.trainings and not how.ablation and how.longer == 1}


def test_advice_has_the_figures_that_are_committed(tmp_path: Path) -> None:
    """Prevents: results that are committed and an advice that does not know them."""
    out = tmp_path / "evidence.json"
    assert evidence.main([f"--out={out}"]) == 0
    assert out.read_bytes() == evidence.FILE.read_bytes()


def test_the_first_lines_say_where_it_helps_and_what_to_use_instead(tmp_path: Path) -> None:
    """Prevents: a verdict by the sign of a difference that is chance, and a gap that passes for a verdict."""
    results, generator = Results(tmp_path), np.random.default_rng(0)
    gains = {
        "medquad": {"hard_kd": 0.1, "adam_positive": 0.2, "listwise": 0.1, "sentence-transformers": 0.1},
        "insuranceqa": {"hard_kd": 0.2, "adam_positive": 0.1, "sentence-transformers": 0.2},
        "scifact": {"hard_kd": 0.1, "adam_positive": 0.1},
    }
    for collection, methods in gains.items():
        shared = generator.uniform(0.2, 0.6, 300)
        write(results, collection, "start", 0, shared)
        for (method, gain), seed in itertools.product(methods.items(), range(3)):
            write(results, collection, method, seed, shared + gain + generator.normal(0, 0.02, 300))
    found = {name: table.rows_of(name, results, PLAN) for name in PLAN.sizes["collections"]}
    lines = in_short(found, {"scifact": "adam_positive"}, {"insuranceqa": {"seconds": 3000.0, "data_without_dark": 1100.0}})
    assert "ahead of it on medquad, behind it on insuranceqa, level with it on scifact. Not measured yet: apidocs." in lines[0]
    by_name = {line.split("**")[1]: line for line in lines if "**" in line}
    assert "ADAM, p+ in P~ (by dev), test MRR@10 0.6" in by_name["medquad"] and "ahead of Hard KD (+0.1" in by_name["medquad"]
    assert "Hard KD (by dev), test MRR@10" in by_name["insuranceqa"] and "ahead of ADAM, p+ in P~ (+0.1" in by_name["insuranceqa"]
    assert "ADAM, p+ in P~, test MRR@10" in by_name["scifact"] and "(by dev)" not in by_name["scifact"] and "(by dev)" in by_name["medquad"]
    assert by_name["apidocs"].endswith("no recipe has all its seeds yet.")
    peer = {cells[1].strip(): float(cells[4]) for line in lines if len(cells := line.split("|")) == 7 and cells[4].strip()[:1].isdigit()}
    assert any(line.startswith("| insuranceqa | Hard KD |") and line.endswith("| 2,900, 3,000 |") for line in lines)
    assert set(peer) == {"medquad", "insuranceqa"} and peer["medquad"] < 1e-6 and peer["insuranceqa"] > 0.05


def test_more_steps_are_held_against_the_peer_alone(tmp_path: Path) -> None:
    """Prevents: a recipe that is the best, or that Hard KD is behind, for having more steps; and a peer with more time than ours."""
    results, generator = Results(tmp_path), np.random.default_rng(0)
    shared = generator.uniform(0.2, 0.6, 300)
    gains = {"hard_kd": 0.1, "adam_positive": 0.05, "hard_kd_longer": 0.2, "sentence-transformers": 0.1}
    write(results, "medquad", "start", 0, shared)
    for (method, gain), seed in itertools.product(gains.items(), range(3)):
        write(results, "medquad", method, seed, shared + gain + generator.normal(0, 0.02, 300))
    rows = table.rows_of("medquad", results, PLAN)
    lines = in_short({"medquad": rows})
    assert any(line.startswith("- **medquad**: Hard KD (by dev), test") for line in lines)
    assert any(line.startswith("| medquad | Hard KD, 3 times the steps | +0.") for line in lines)
    for seed in range(3):
        write(results, "medquad", "listwise", seed, shared + 0.3)  # its teacher reads several times as many pairs
    assert any(line.startswith("| medquad | Hard KD, 3 times") for line in in_short({"medquad": table.rows_of("medquad", results, PLAN)}))
    assert not any("hard_kd_longer" in pair for pair in table.comparisons(rows))
    assert "That is the best of 2 methods" in table.of_advice(rows, "hard_kd")


def test_no_page_without_results(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: an empty page that passes for a study."""
    assert table.main([f"--results={tmp_path}", f"--out={tmp_path / 'study.md'}"]) == 2
    assert "no results" in capsys.readouterr().err and not (tmp_path / "study.md").exists()
