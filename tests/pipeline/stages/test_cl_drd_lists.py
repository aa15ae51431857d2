"""A curriculum's lists: against the teacher's ranking worked out again from vectors and logits, and properties of the draw."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from data.config.settings import load
from data.errors import UserError
from data.tables.cl_drd_groups import GroupSizes, labels_of
from data.tables.shards import read_shard
from pipeline.cli import app
from pipeline.negatives.pool_pairs import PoolRow
from pipeline.report.page import write_report
from pipeline.stages.cl_drd_lists import Groups, draw_groups, teacher_ranking

CURRICULUM = {
    "hard_negatives.depth": 30, "curriculum.enabled": True, "curriculum.iterations": ["2/3/4", "4/3/2", "9/0/0"],
    "curriculum.near_rank": 8, "curriculum.retrieved": 30,
}  # fmt: skip
Prep = Callable[..., list[str]]


def draw(ranking: list[str], positives: list[str], sizes: GroupSizes, *, near_rank: int, **changes: Any) -> Groups:
    return draw_groups(ranking, positives, sizes, **{"near_rank": near_rank, "query_id": "q", "seed": 0, "iteration": 0, **changes})


@given(
    count=st.integers(0, 40), labelled=st.lists(st.integers(0, 60), min_size=1, max_size=8, unique=True),
    sizes=st.tuples(st.integers(1, 10), st.integers(0, 6), st.integers(0, 9)), near_rank=st.integers(1, 20), seed=st.integers(0, 99),
)  # fmt: skip
def test_groups(count: int, labelled: list[int], sizes: tuple[int, int, int], near_rank: int, seed: int) -> None:
    """Prevents: a positive taught to be wrong or lost, a passage in two groups, or one from ranks that are not its group's."""
    ranking = [f"d{number}" for number in range(count)]  # d0 has rank 1; positives from d40 on were not retrieved
    positives = [f"d{number}" for number in labelled]
    size = GroupSizes(*sizes)
    groups = draw(ranking, positives, size, near_rank=near_rank, seed=seed)
    everything = [*groups.top, *groups.near, *groups.far]
    assert len(set(everything)) == len(everything)
    assert not set(positives) & {*groups.near, *groups.far}
    assert groups.top[: len(positives)] == positives[: size.top]
    rest = groups.top[len(positives) :]
    assert rest == [doc_id for doc_id in ranking if doc_id not in positives][: len(rest)]
    windows = ranking[size.top : near_rank], ranking[max(size.top, near_rank) :]
    for group, window, wanted in zip((groups.near, groups.far), windows, (size.near, size.far), strict=True):
        allowed = [doc_id for doc_id in window if doc_id not in positives]
        assert set(group) <= set(allowed) and len(group) == min(wanted, len(allowed))
        assert group == sorted(group, key=ranking.index)
    assert len(groups.top) == min(size.top, len({*positives, *ranking}))
    assert groups == draw(ranking, positives, size, near_rank=near_rank, seed=seed)


def test_draws_differ_and_are_uniform() -> None:
    """Prevents: the same passages in every iteration, and a draw that favours some ranks."""
    ranking, sizes = [f"d{number}" for number in range(200)], GroupSizes(5, 12, 13)
    one = draw(ranking, ["d0"], sizes, near_rank=50)
    for changes in ({"iteration": 1}, {"seed": 1}, {"query_id": "r"}):
        other = draw(ranking, ["d0"], sizes, near_rank=50, **changes)
        assert other.top == one.top and other.near != one.near and other.far != one.far
    counts = np.zeros(200)
    for seed in range(1500):
        drawn = draw(ranking, ["d0"], sizes, near_rank=50, seed=seed)
        counts[[ranking.index(doc_id) for doc_id in (*drawn.near, *drawn.far)]] += 1
    assert not counts[:5].any()
    for window, wanted in ((counts[5:50], 12 / 45), (counts[50:], 13 / 150)):
        assert abs(window - 1500 * wanted).max() < 5 * math.sqrt(1500 * wanted)


@given(st.integers(0, 10_000))
def test_ranks_are_of_what_was_retrieved(seed: int) -> None:
    """Prevents: ranks that close up over the positives, or a positive among the ranks that the student did not retrieve; here with ties."""
    chance = np.random.default_rng(seed)
    names = [f"d{number}" for number in chance.permutation(30)]
    scores = dict(zip(names, chance.integers(0, 8, 30).tolist(), strict=True))
    logits = dict(zip(names, chance.integers(0, 8, 30).tolist(), strict=True))
    positives = names[: int(chance.integers(1, 5))]
    found = sorted(names, key=lambda name: (-scores[name], name))  # the student's search, with nothing taken out
    depth = int(chance.integers(3, 20))
    pool = [name for name in found if name not in positives][:depth]
    of = [np.array([scores[name] for name in part], np.float32) for part in (positives, pool)]
    row = PoolRow("q", positives, of[0], pool, of[1], np.zeros(len(pool), np.int8))
    expected = sorted(found[:depth], key=lambda name: (-logits[name], name))
    assert teacher_ranking(row, logits, retrieved=depth) == expected


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Callable[..., Path], prep_run: Prep) -> Path:
    """The config of a complete tiny curriculum."""
    config = tiny_experiment(tmp_path_factory.mktemp("curriculum"), **CURRICULUM)
    lines = prep_run(config)
    assert not [line for line in lines if "dark_examples" in line or "hard_negatives" in line]
    return config


def rows_of(config: Path, pattern: str) -> list[dict[str, Any]]:
    return [row for path in sorted((config.parent / "store").glob(f"{pattern}/*.parquet")) for row in read_shard(path).to_pylist()]


def test_the_table_is_the_ranking_of_the_student_s_retrieval(made: Path) -> None:
    """Prevents: everything that lies between: vectors, pools without positives, logits, ids. The reference sees none of the pools."""
    passages = {row["doc_id"]: row["embedding"] for row in rows_of(made, "embed/corpus-*")}
    questions = {row["query_id"]: row["embedding"] for row in rows_of(made, "embed/queries-*")}
    pairs, scores = rows_of(made, "pools/pairs-*"), rows_of(made, "pool_scores/*")
    logits = {(pair["query_id"], pair["candidate_id"]): score["logit"] for pair, score in zip(pairs, scores, strict=True)}
    labelled = {f"train{number}": [f"d{number}"] for number in range(14)}
    labelled["train1"] = ["d1", "d40"]
    lists: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows_of(made, "curriculum/*"):
        lists.setdefault((row["query_id"], row["draw"]), []).append(row)
    assert lists.keys() == {(query, iteration) for query in labelled for iteration in range(3)}
    positives_within = 0
    for (query, iteration), listed in lists.items():
        twins = {"twin"} if query == "train0" else set()  # the text of d0, which is its positive
        products = {
            name: float(np.float32(np.array(questions[query], np.float64) @ np.array(vector, np.float64)))
            for name, vector in passages.items()
            if name not in twins
        }
        retrieved = sorted(products, key=lambda name: (-products[name], name))[:30]
        positives_within += len(set(retrieved) & set(labelled[query]))
        ranking = sorted(retrieved, key=lambda name: (-logits[query, name], name))
        sizes = [(2, 3, 4), (4, 3, 2), (9, 0, 0)][iteration]
        groups = [[row["candidate_id"] for row in listed if row["candidate_kind"] == kind] for kind in (4, 5, 6)]
        top = list(dict.fromkeys([*labelled[query], *ranking]))[: sizes[0]]
        assert groups[0] == top and [len(group) for group in groups] == list(sizes)
        assert set(groups[1]) <= set(ranking[sizes[0] : 8]) - set(labelled[query])
        assert set(groups[2]) <= set(ranking[8:]) - set(labelled[query])
        assert [row["position"] for row in listed] == list(range(9))
        assert [row["logit"] for row in listed] == [logits[query, row["candidate_id"]] for row in listed]
        others = [row["logit"] for row in listed if row["candidate_id"] not in labelled[query]]
        first = listed[0]["logit"]
        assert listed[0]["confidence"] == pytest.approx(first - np.logaddexp.reduce([first, *others]), abs=1e-5)
    assert positives_within > 20  # else the ranks would be those of pools without positives, too


def test_training_rows_are_the_lists(made: Path) -> None:
    """Prevents: texts of one passage under the id of another, and iterations that are all the same draw."""
    from retrieval.models.student import resolve_student
    from retrieval.models.tokenizer import Tokenizer
    from trainer.input.stream import open_training_shards, rows_of_epoch

    experiment = load({"config": str(made)})
    spec = resolve_student(experiment.student)
    tokenizer = Tokenizer(spec.weights_folder)
    lists: dict[tuple[str, int], list[dict[str, Any]]] = {}
    for row in rows_of(made, "curriculum/*"):
        lists.setdefault((row["query_id"], row["draw"]), []).append(row)
    (folder,) = (made.parent / "store" / "shards").iterdir()
    seen = set()
    for number in range(3):
        shards = open_training_shards(folder, tokenizer=spec.tokenizer_digest, draw=number)
        assert shards.metadata.curriculum == ("2/3/4", "4/3/2", "9/0/0") and shards.metadata.draws == 3
        for row in rows_of_epoch(shards, seed=0, epoch=5):
            listed = lists[row.query_id, number]
            seen.add((row.query_id, number))
            assert list(row.candidate_ids) == [one["candidate_id"] for one in listed]
            assert list(row.kinds) == [one["candidate_kind"] for one in listed]
            assert row.labels.tolist() == labels_of(row.kinds).astype(np.float32).tolist()
            assert row.teacher_logits.tolist() == [one["logit"] for one in listed] and row.confidence == listed[0]["confidence"]
            texts = [tokens.tolist() for tokens in row.candidate_tokens]
            assert texts == tokenizer.encode([spec.passage_prefix + one["text"] for one in listed], max_tokens=spec.passage_tokens)
    assert seen == lists.keys()
    with pytest.raises(UserError, match=r"train\.draw=3"):
        open_training_shards(folder, tokenizer=spec.tokenizer_digest, draw=3)


def test_another_curriculum_scores_nothing(made: Path, prep_run: Prep, count_scored: list[int]) -> None:
    """Prevents: a pool scored again for other groups: at MS MARCO's size, days."""
    lines = prep_run(made, **{"curriculum.iterations": "1/2/3", "curriculum.near_rank": 12, "seed": 3})
    assert count_scored == [] and [line.split()[0] for line in lines if "built" in line][-2:] == ["curriculum", "shards"]


def test_short_lists_and_lost_positives_are_told(tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep) -> None:
    """Prevents: fewer passages than the settings say, and labelled positives cut off by K, without a word."""
    words = {**CURRICULUM, "hard_negatives.depth": 100, "curriculum.retrieved": 100, "curriculum.iterations": ["1/2/60"]}
    lines = prep_run(tiny_experiment(tmp_path, **words))
    (said,) = [line for line in lines if line.startswith("warning: curriculum")]
    assert "of 14 lists" in said and "14 lists with fewer passages" in said and "1 labelled positives beyond K" in said
    (manifest,) = (tmp_path / "store" / "curriculum").glob("*/manifest.json")
    assert json.loads(manifest.read_text())["counts"]["in"] == 14


@pytest.mark.parametrize("stage", ["hard_negatives", "dark_examples", "teacher_scores", "confidence"])
def test_other_stages_are_told_off(made: Path, prep_run: Prep, stage: str) -> None:
    """Prevents: hours of scoring for lists that no training row is made of."""
    with pytest.raises(UserError, match=r"stage=curriculum.*stage=pool_scores"):
        prep_run(made, stage=stage)
    with pytest.raises(UserError, match=r"set curriculum\.enabled=true"):
        prep_run(made, stage="curriculum", **{"curriculum.enabled": "false"})


def test_report_and_inspect(made: Path, tmp_path: Path) -> None:
    """Prevents: groups that cannot be looked at before days of training."""
    write_report(load({"config": str(made)}), tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    logits = [row["logit"] for row in rows_of(made, "curriculum/*") if row["draw"] == 1 and row["candidate_kind"] == 5]
    ranges = [f'<td class="n">{value:.2f}</td>' for value in (min(logits), max(logits))]
    assert all(cell in page for cell in ranges) and f'<td class="n">{len(logits)}</td>' in page
    assert page.count("<figure") == 3 and page.count("<details>") == 14 and "Iteration 3 (9/0/0)" in page
    assert "Iteration 1 (2/3/4): the groups should part" in page and "Iteration 3 (9/0/0): one group" in page
    assert page.count('<td class="n">1/place</td>') == 3 and page.count('<td class="n">-0.5</td>') == 2  # no row for an empty group
    shown = CliRunner().invoke(app, ["inspect", f"config={made}", "query=train1", "width=20"])
    assert shown.exit_code == 0 and all(f"iteration {number}" in shown.output for number in (1, 2, 3))
    assert "0.333" in shown.output and "-0.25" in shown.output and "group 3" in shown.output
