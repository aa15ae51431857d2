"""Two evaluations over collections side by side: means, groups, and the test of the mean against one that is written out."""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.errors import UserError
from retrieval import cli
from retrieval.evaluation.results import Evaluated, compare_results

Values = dict[str, list[float]]  # collection -> value of each query


def results(folder: Path, values: Values, *, groups: dict[str, str] | None = None, **changed: Any) -> Path:
    """A folder as `retrieve evaluate collections=` leaves it, of one metric."""
    collections = {
        name: {"split": "test", "group": (groups or {}).get(name, ""), "metrics": {"nDCG@10": float(np.mean(each))}, **changed}
        for name, each in values.items()
    }
    content = {"format": 1, "settings": {"metrics": ["nDCG@10"]}, "collections": collections}
    for name, each in values.items():
        path = folder / "per_query" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({f"q{n}": {"nDCG@10": value} for n, value in enumerate(each)}))
    (folder / "results.json").write_text(json.dumps(content))
    return folder


def opened(folder: Path) -> Evaluated:
    return Evaluated(folder.name, lambda name: (folder / name).read_bytes())


def by_hand(old: Values, new: Values, weights: dict[str, float]) -> tuple[float, float]:
    """(difference of the means, p-value over all sign patterns), each query with the weight that it has in the mean."""
    each = [weights[name] / len(old[name]) * (b - a) for name in old for a, b in zip(old[name], new[name], strict=True)]
    observed = sum(each)
    sums = [sum(sign * one for sign, one in zip(signs, each, strict=True)) for signs in itertools.product((1, -1), repeat=len(each))]
    return observed, float(np.mean([abs(one) >= abs(observed) - 1e-12 for one in sums]))


@pytest.mark.parametrize("groups", [{}, {"b": "g", "c": "g"}])
def test_the_mean_has_a_test_of_its_own(tmp_path: Path, groups: dict[str, str]) -> None:
    """Prevents: a large collection's queries that decide about the mean, in which it weighs no more than a small one's."""
    old: Values = {"a": [0.1, 0.2, 0.5, 0.4, 0.3], "b": [0.9, 0.1], "c": [0.3, 0.5, 0.8]}
    new: Values = {"a": [0.2, 0.1, 0.6, 0.9, 0.4], "b": [0.8, 0.7], "c": [0.4, 0.4, 0.9]}
    weights = dict(zip(old, (0.5, 0.25, 0.25) if groups else (1 / 3, 1 / 3, 1 / 3), strict=True))
    one, two = results(tmp_path / "one", old, groups=groups), results(tmp_path / "two", new, groups=groups)
    found = compare_results(opened(one), opened(two), "nDCG@10")
    assert [row.metric for row in found.rows] == ["a", "b", "c", "mean"]
    difference, p_value = by_hand(old, new, weights)
    assert found.rows[-1].after - found.rows[-1].before == pytest.approx(difference)
    assert found.rows[-1].p_value == pytest.approx(p_value)
    assert found.rows[0].p_value == pytest.approx(by_hand({"a": old["a"]}, {"a": new["a"]}, {"a": 1.0})[1])
    assert found.rows[0].wins == 4 and found.rows[0].losses == 1


def test_collections_of_one_alone_are_named(tmp_path: Path) -> None:
    """Prevents: means over different collections set side by side."""
    one, two = results(tmp_path / "one", {"a": [0.5], "b": [0.5]}), results(tmp_path / "two", {"b": [0.6], "c": [0.5]})
    found = compare_results(opened(one), opened(two), "nDCG@10")
    assert found.left_out == ["a", "c"] and [row.metric for row in found.rows] == ["b", "mean"]
    with pytest.raises(UserError, match="have no collection in common: a, c"):
        compare_results(opened(results(tmp_path / "x", {"a": [0.5]})), opened(results(tmp_path / "y", {"c": [0.5]})), "nDCG@10")


def test_values_of_a_later_evaluation_that_was_killed_are_refused(tmp_path: Path) -> None:
    """Prevents: a comparison with another model's queries, which a killed evaluation into the same folder has written already."""
    one, two = results(tmp_path / "one", {"a": [0.5, 0.4]}), results(tmp_path / "two", {"a": [0.5, 0.6]})
    (two / "per_query" / "a.json").write_text(json.dumps({"q0": {"nDCG@10": 0.5}, "q1": {"nDCG@10": 0.7}}))
    with pytest.raises(UserError, match=r"two/per_query/a.json and its results.json are of two evaluations"):
        compare_results(opened(one), opened(two), "nDCG@10")


def test_what_cannot_be_paired_is_refused(tmp_path: Path) -> None:
    """Prevents: a paired test over queries of two splits, or over a metric that one of the two never had."""
    one = results(tmp_path / "one", {"a": [0.5, 0.4]})
    with pytest.raises(UserError, match="split test with 2 queries in one, test with 1 in two"):
        compare_results(opened(one), opened(results(tmp_path / "two", {"a": [0.5]})), "nDCG@10")
    with pytest.raises(UserError, match="split test with 2 queries in one, dev with 2 in three"):
        compare_results(opened(one), opened(results(tmp_path / "three", {"a": [0.5, 0.4]}, split="dev")), "nDCG@10")
    two = results(tmp_path / "four", {"a": [0.5, 0.4]})
    content = json.loads((two / "results.json").read_text())
    (two / "results.json").write_text(json.dumps({**content, "settings": {"relevant_from": 2}}))
    with pytest.raises(UserError, match="one was evaluated with relevant_from=None, four with 2"):
        compare_results(opened(one), opened(two), "nDCG@10")
    with pytest.raises(UserError, match=r"one has no MRR@10 of a: it has nDCG@10"):
        compare_results(opened(one), opened(one), "MRR@10")


def compared(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["retrieve", "compare", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    told = capsys.readouterr()
    return int(ended.value.code or 0), told.out + told.err


def test_the_command_takes_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prevents: a folder taken for a run file; a run beside a folder; settings of a run that are read over without a word."""
    one, two = results(tmp_path / "one", {"a": [0.5, 0.4]}), results(tmp_path / "two", {"a": [0.7, 0.5]})
    code, told = compared(capsys, f"before={one}", f"after={two}")
    assert code == 0 and json.loads(told.splitlines()[-1])["nDCG@10"]["mean"]["difference"] == pytest.approx(0.15)
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").write_text("q Q0 a 1 1 t\n")
    (one / "per_query" / "a.json").unlink()
    for words, message in (
        ([f"before={one}", f"after={two}"], "a.json is missing: evaluate again"),
        ([f"before={two}", f"after={two}", "qrels=q"], "qrels= is of two runs"),
        ([f"before={two}", f"after={tmp_path / 'run'}"], "not one of each"),
        ([f"before={two}", f"after={tmp_path / 'gone'}"], "gone: no such run file, or folder of results"),
        ([f"before={two}", f"after={tmp_path / 'empty'}"], "is a folder without results.json"),
        ([f"before={tmp_path / 'run'}", f"after={tmp_path / 'run'}"], "missing qrels=..."),
    ):
        code, told = compared(capsys, *words)
        assert code == 2 and message in told, told
    (two / "results.json").write_text("[]")
    assert "an object was expected" in compared(capsys, f"before={two}", f"after={two}")[1]
