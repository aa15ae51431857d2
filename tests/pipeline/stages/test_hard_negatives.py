"""Hard negatives end to end: windows, mixtures, rules that cost the teacher nothing twice, and what a user hears."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from data.config.settings import HardNegatives, Student, load
from data.errors import UserError
from data.tables.shards import read_shard
from pipeline.cli import app
from pipeline.negatives.pool_pairs import PoolRow
from pipeline.report.page import write_report
from pipeline.stages.hard_negatives import Chosen, Logits, choose, choose_positive
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.resolved import ResolvedModels
from retrieval.models.student import resolve_student

Prep = Callable[..., list[str]]
POOL = [f"d{number}" for number in range(60)]


def student_row(ids: list[str] = POOL, *, query_id: str = "q") -> PoolRow:
    falling = np.linspace(5, -5, len(ids)).astype(np.float32)
    return PoolRow(query_id, ["p"], np.array([3.0], np.float32), ids, falling, np.zeros(len(ids), np.int8))


def sample(*, seed: int = 0, query_id: str = "q", **settings: Any) -> list[list[str]]:
    return choose(student_row(query_id=query_id), HardNegatives(**settings), seed=seed).draws


@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 5), st.sampled_from(["uniform", "top", "simans"]))
def test_a_larger_sample_holds_the_smaller_one(first: int, second: int, seed: int, sampler: str) -> None:
    """Prevents: another m that throws away all teacher logits of the last one."""
    small, large = sorted((first, second))
    (few,), (many,) = (sample(num_negatives=m, seed=seed, sampler=sampler) for m in (small, large))
    assert len(few) == small and set(few) <= set(many)


def test_samples_keep_to_the_ranks_in_the_order_of_the_pool() -> None:
    """Prevents: negatives from outside the window of ranks, counted from 0 or with its end left out."""
    (all_of_window,) = sample(range_min=10, range_max=20, num_negatives=50)
    assert all_of_window == POOL[10:20]
    seen = {doc_id for seed in range(200) for doc_id in sample(range_min=10, range_max=20, num_negatives=2, seed=seed)[0]}
    assert seen == set(POOL[10:20])
    assert sample(range_min=10, range_max=20, num_negatives=3, sampler="top") == [POOL[10:13]]


def test_seeds_queries_and_draws_differ() -> None:
    """Prevents: one sample for all queries or epochs."""
    for sampler in ("uniform", "simans"):
        samples = [sample(seed=seed, query_id=query, sampler=sampler)[0] for seed in (0, 1) for query in ("q", "r")]
        samples.append(sample(draws=2, sampler=sampler)[1])
        assert len({tuple(negatives) for negatives in samples}) == 5
        assert sample(draws=3, sampler=sampler)[0] == sample(sampler=sampler)[0]


def test_samples_are_uniform() -> None:
    """Prevents: a hash that favours some ranks."""
    counts = np.zeros(60)
    for seed in range(600):
        counts[[POOL.index(doc_id) for doc_id in sample(num_negatives=10, seed=seed)[0]]] += 1
    assert abs(counts - 100).max() < 45  # five standard deviations


@given(st.integers(0, 10_000), st.sampled_from(["uniform", "top", "stratified"]), st.integers(1, 25))
def test_mixtures_and_rules(seed: int, sampler: str, m: int) -> None:
    """Prevents: a dropped passage drawn from the other source, a repeat, a rank outside a source's own window, fewer than there are."""
    chance = np.random.default_rng(seed)
    lists = [[f"d{n}" for n in chance.permutation(40)[: int(chance.integers(0, 25))]] for _ in range(2)]
    ids = [*lists[0], *lists[1]]
    sources = np.repeat(np.array([0, 1], np.int8), [len(listed) for listed in lists])
    scores = np.concatenate([np.sort(chance.normal(size=len(listed)))[::-1] for listed in lists]).astype(np.float32)
    row = PoolRow("q", ["p"], np.array([0.5], np.float32), ids, scores, sources)
    logits = Logits([1.0], {doc_id: float(np.float32(chance.normal())) for doc_id in ids})
    settings = HardNegatives(
        source="student:3@2-15,bm25:1", range_max=10, depth=40, num_negatives=m, sampler=sampler,
        false_negatives={"absolute_margin": 0.5, "student_margin": 0.1},
    )  # fmt: skip
    chosen: Chosen = choose(row, settings, seed=seed, logits=logits)
    (negatives,) = chosen.draws
    windows = [lists[0][1:15], lists[1][:10]]
    student = dict(zip(lists[0], scores[: len(lists[0])].tolist(), strict=True))
    wrong = {d for w in windows for d in w if logits.passages[d] > 0.5 or student.get(d, -math.inf) > np.float32(0.5).item() - 0.1}
    left = [[doc_id for doc_id in window if doc_id not in wrong] for window in windows]
    assert set(chosen.dropped) == wrong
    assert len(set(negatives)) == len(negatives) == min(m, len({*left[0], *left[1]})) and set(negatives) <= {*left[0], *left[1]}
    order = list(dict.fromkeys([*left[0], *left[1]]))
    assert negatives == sorted(negatives, key=order.index)


def test_a_passage_of_two_sources_counts_once() -> None:
    """Prevents: a percentile that moves with how much the sources agree."""
    ids, logits = ["a", "b", "c", "a"], {"a": 4.0, "b": 3.0, "c": 1.0}
    row = PoolRow("q", ["p"], None, ids, np.zeros(4, np.float32), np.array([1, 1, 1, 3], np.int8))
    settings = HardNegatives(source="bm25,random", false_negatives={"teacher_percentile": 50})
    chosen = choose(row, settings, seed=0, logits=Logits([9.0], logits))
    assert set(chosen.dropped) == {"a"} and chosen.dropped["a"].limit == 3.0 and chosen.draws == [["b", "c"]]


def test_choice_of_a_positive() -> None:
    """Prevents: always the first positive, or another one on every run."""
    ids = ["a", "b", "c"]
    chosen = [choose_positive(ids, seed=0, query_id=f"q{n}") for n in range(300)]
    assert min(Counter(chosen).values()) > 60 and chosen == [choose_positive(ids[::-1], seed=0, query_id=f"q{n}") for n in range(300)]


@pytest.mark.parametrize("selected_by", [None, "a", "b", "c"])
def test_margins_and_simans_go_by_the_positive_that_is_trained(selected_by: str | None) -> None:
    """Prevents: negatives above the p+ of their own list, since a margin was taken from a better positive that is not trained."""
    positives, logits, scores = ["a", "b", "c"], [6.0, 2.0, -1.0], np.array([1.0, 4.0, -2.0], np.float32)
    ids = [f"d{number}" for number in range(40)]
    falling = np.linspace(5, -5, 40).astype(np.float32)
    row = PoolRow("q", positives, scores, ids, falling, np.zeros(40, np.int8))
    of = dict(zip(ids, np.linspace(7, -7, 40).tolist(), strict=True))
    margins = HardNegatives(depth=40, range_max=40, num_negatives=40, false_negatives={"absolute_margin": 1, "student_margin": 0.5})
    chosen = choose(row, margins, seed=0, logits=Logits(logits, of), selected_by=selected_by)
    place = positives.index(chosen.positive)
    assert chosen.positive == (selected_by or choose_positive(positives, seed=0, query_id="q"))
    student = dict(zip(ids, falling.tolist(), strict=True))
    assert chosen.draws == [[d for d in ids if of[d] <= logits[place] - 1 and student[d] <= float(scores[place]) - 0.5]]
    near = HardNegatives(depth=40, range_max=40, num_negatives=3, sampler="simans", simans_a=1e6)
    drawn = choose(row, near, seed=0, selected_by=selected_by).draws[0]
    assert set(drawn) == set(sorted(ids, key=lambda doc_id: abs(student[doc_id] - float(scores[place])))[:3])


def negatives_of(store: Path) -> dict[str, dict[str, Any]]:
    return {row["query_id"]: row for path in sorted(store.glob("hard_negatives/*/*.parquet")) for row in read_shard(path).to_pylist()}


def counts_of(store: Path) -> dict[str, Any]:
    (manifest,) = store.glob("hard_negatives/*/manifest.json")
    return json.loads(manifest.read_text())["counts"]


def test_drawn_from_the_pools(finished: Any) -> None:
    """Prevents: negatives that are no negatives, or not of the pools."""
    pools = {}
    for path in finished.store.glob("pools/ranked-*/*.parquet"):
        pools.update({row["query_id"]: row for row in read_shard(path).to_pylist()})
    for query_id, row in negatives_of(finished.store).items():
        (negatives,) = row["negative_ids"]
        assert set(negatives) <= set(pools[query_id]["ranked_ids"]) and len(set(negatives)) == 3 and row["dropped_ids"] == []


@pytest.mark.medium
def test_rules_that_leave_nothing_are_named(tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep) -> None:
    """Prevents: a hint at the collection where a rule has dropped every passage, and where the rank windows are empty."""
    config = tiny_experiment(tmp_path, **{"hard_negatives.false_negatives": {"max_score": -1000, "absolute_margin": 1}})
    said = r"none of 14 queries has a negative left; the rules .* dropped max_score 280 passages: loosen them"
    for _ in range(2):
        with pytest.raises(UserError, match=said):
            prep_run(config)
    config = tiny_experiment(tmp_path / "far", **{"hard_negatives.source": "run@20-20", "hard_negatives.run_file": tmp_path / "a.run"})
    (tmp_path / "a.run").write_text("".join(f"train{number} Q0 d50 1 1.0 x\n" for number in range(14)))
    with pytest.raises(UserError, match=r"none of 14 queries has a passage in the rank windows .*range_min"):
        prep_run(config)


@pytest.mark.medium
def test_a_shard_without_queries(tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep) -> None:
    """Prevents: a pilot of one query that fails because the other shards have none."""
    rules = {
        "hard_negatives.queries": 1,
        "hard_negatives.source": "student:2,bm25",
        "hard_negatives.false_negatives": {"max_score": 99},
    }
    config = tiny_experiment(tmp_path, **rules)
    assert any(line.startswith("shards") and "1 rows" in line for line in prep_run(config))
    write_report(load({"config": str(config)}), tmp_path / "r.html")


def test_other_samples_search_nothing_anew(copied: Any, prep_run: Prep) -> None:
    """Prevents: a corpus of millions searched again for another m."""
    lines = prep_run(copied.config, stage="hard_negatives", **{"hard_negatives.num_negatives": 5, "hard_negatives.sampler": "top"})
    assert [line.split()[:2] for line in lines] == [["pools.ranked", "complete"], ["hard_negatives", "built"]]


STAGES = ("ingest", "embed", "pools", "pool_scores", "hard_negatives", "dark_examples", "teacher_scores", "confidence", "shards")


@pytest.fixture(scope="module")
def ruled(tmp_path_factory: pytest.TempPathFactory, tiny_experiment: Callable[..., Path], prep_run: Prep) -> tuple[Path, list[str]]:
    """(config, lines) of a run with rules of the teacher, stage by stage."""
    rules = {"absolute_margin": 0.1, "teacher_percentile": 80}
    config = tiny_experiment(
        tmp_path_factory.mktemp("ruled"), **{"hard_negatives.false_negatives": rules, "hard_negatives.num_negatives": 6}
    )
    return config, [line for stage in STAGES for line in prep_run(config, stage=stage)]


def test_rules_of_the_teacher_end_to_end(ruled: tuple[Path, list[str]]) -> None:
    """Prevents: rules that look at other pairs' logits, and counts that do not add up."""
    config, lines = ruled
    store = config.parent / "store"
    logits: dict[tuple[str, str], float] = {}
    positives: dict[str, list[float]] = {}
    for path in sorted(store.glob("pools/pairs-*/*.parquet")):
        scored = read_shard(next(store.glob(f"pool_scores/*/{path.name}"))).column("logit").to_pylist()
        for row, logit in zip(read_shard(path).to_pylist(), scored, strict=True):
            if row["candidate_kind"] == 0:
                positives.setdefault(row["query_id"], []).append(logit)
            else:
                logits[row["query_id"], row["candidate_id"]] = logit
    assert sum(map(len, positives.values())) == 15 and len(logits) == 14 * 20
    dropped = {"absolute_margin": 0, "teacher_percentile": 0}
    kept = 0
    rows = negatives_of(store)
    for query_id, of_query in positives.items():
        own = {doc_id: logit for (query, doc_id), logit in logits.items() if query == query_id}
        cut = float(np.percentile(np.array(list(own.values())), 80))
        positives = {"train1": ["d1", "d40"]}.get(query_id, [""])
        trained = of_query[positives.index(choose_positive(positives, seed=0, query_id=query_id))]
        by_margin = {doc_id for doc_id, logit in own.items() if logit > trained - 0.1}
        by_share = {doc_id for doc_id, logit in own.items() if logit > cut} - by_margin
        dropped["absolute_margin"] += len(by_margin)
        dropped["teacher_percentile"] += len(by_share)
        left = own.keys() - by_margin - by_share
        if left:
            kept += 1
            (negatives,) = rows[query_id]["negative_ids"]
            assert set(negatives) <= left and len(negatives) == min(6, len(left))
            assert set(rows[query_id]["dropped_ids"]) == by_margin | by_share
    counts = counts_of(store)
    assert counts["false negatives"] == {rule: count for rule, count in dropped.items() if count} and counts["kept"] == kept == len(rows)
    short = sum(len(row["negative_ids"][0]) < 6 for row in rows.values())
    assert counts["queries with fewer than m negatives"] == short > 0
    assert any(f"warning: hard_negatives: of 14 queries {short} have fewer negatives than asked for" in line for line in lines)


def test_what_was_scored_is_not_scored_again(
    ruled: tuple[Path, list[str]], tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, count_scored: list[int]
) -> None:
    """Prevents: a second run, another margin, or the negatives themselves, that pay the teacher again for a pool."""
    config = tiny_experiment(tmp_path)
    shutil.copytree(ruled[0].parent / "store", config.parent / "store")
    base = {"hard_negatives.false_negatives.teacher_percentile": 80, "hard_negatives.num_negatives": 6}
    assert not any("built" in line for line in prep_run(config, **base, **{"hard_negatives.false_negatives.absolute_margin": 0.1}))
    for stage in ("hard_negatives", "dark_examples"):
        prep_run(config, stage=stage, **base, **{"hard_negatives.false_negatives.absolute_margin": 0.3})
    stratified = {"hard_negatives.sampler": "stratified", "hard_negatives.num_negatives": 5}
    prep_run(config, stage="hard_negatives", **stratified)
    prep_run(config, stage="dark_examples", **stratified, **{"dark_examples.reinforced": False, "dark_examples.mask_ratios": "[]"})
    prep_run(config, stage="teacher_scores", **stratified, **{"dark_examples.reinforced": False, "dark_examples.mask_ratios": "[]"})
    assert count_scored == []


def test_the_report_shows_what_was_dropped(ruled: tuple[Path, list[str]], tmp_path: Path) -> None:
    """Prevents: rules that drop four fifths of the negatives without a word."""
    write_report(load({"config": str(ruled[0])}), tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text()
    counts = counts_of(ruled[0].parent / "store")
    assert "Dropped by rules" in page and f"absolute_margin {counts['false negatives']['absolute_margin']}" in page
    section = page[page.index("Dropped by rules") : page.index("Queries short of negatives")]
    assert section.count("<tr>") == 1 + sum(bool(row["dropped_ids"]) for row in negatives_of(ruled[0].parent / "store").values())
    short = [query for query, row in negatives_of(ruled[0].parent / "store").items() if len(row["negative_ids"][0]) < 6]
    assert all(query in page[page.index("Queries short of negatives") :] for query in short)


def test_the_bill_has_the_pools(
    tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a plan that leaves out the larger part of what the teacher will read."""
    from pipeline.scoring import calibration

    monkeypatch.setattr(calibration, "SECONDS", 0.2)
    config = tiny_experiment(tmp_path, **{"hard_negatives.false_negatives": {"max_score": 3}, "hard_negatives.range_max": 12})

    def plan() -> str:
        result = CliRunner().invoke(app, ["plan", f"config={config}", "stage=teacher_scores"])
        assert result.exit_code == 0, result.output
        return result.output

    prep_run(config, stage="ingest")
    assert f"at most {14 * 12 + 15} pairs" in plan()
    prep_run(config, stage="embed")
    prep_run(config, stage="pools")
    assert f"{14 * 12 + 15} pairs" in plan() and "0 cached" in plan()


def test_refusals_name_the_next_step(tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Prep) -> None:
    """Prevents: a stage asked for in the wrong order that mines for hours and then stops, or that says nothing of what to do."""
    config = tiny_experiment(tmp_path)
    prep_run(config, stage="ingest")
    prep_run(config, stage="embed")
    with pytest.raises(UserError, match="nothing asks for the teacher's scores of pools; set hard_negatives"):
        prep_run(config, stage="pool_scores")
    rule = {"hard_negatives.false_negatives.max_score": 3}
    with pytest.raises(UserError, match=r"needs pools\.ranked, which is not complete: run stage=pools first"):
        prep_run(config, stage="hard_negatives", **rule)
    assert not (tmp_path / "store" / "pools").exists()
    prep_run(config, stage="pools", **rule)
    with pytest.raises(UserError, match="needs pool_scores, which is not complete: run stage=pool_scores first"):
        prep_run(config, stage="hard_negatives", **rule)


def test_deeper_ranks_fill_what_rules_leave_short(copied: Any, prep_run: Prep) -> None:
    """Prevents: a run whose teacher has not read the deeper ranks, or that fills lists without a word."""
    rules = {"teacher_percentile": 25, "student_relative_margin": 0, "min_score": -1000}
    settings = {f"hard_negatives.false_negatives.{name}": value for name, value in rules.items()}
    lines = prep_run(copied.config, **settings, **{"hard_negatives.range_max": 6, "hard_negatives.fill_to": 20})
    (manifest,) = (path for path in copied.store.glob("hard_negatives/*/manifest.json") if '"fill_to": 20' in path.read_text())
    counts = json.loads(manifest.read_text())["counts"]
    rows = [row for path in sorted(manifest.parent.glob("*.parquet")) for row in read_shard(path).to_pylist()]
    pools = {}
    for path in copied.store.glob("pools/ranked-*/*.parquet"):
        pools.update({row["query_id"]: row["ranked_ids"] for row in read_shard(path).to_pylist()})
    deep = sum(pools[row["query_id"]].index(doc_id) >= 6 for row in rows for doc_id in row["negative_ids"][0])
    assert counts["negatives from deeper ranks"] == deep > 0
    assert any(f"{deep} negatives are from ranks beyond the windows" in line for line in lines)
    for row in rows:
        assert len(row["negative_ids"][0]) == 3 or set(pools[row["query_id"]]) == {*row["negative_ids"][0], *row["dropped_ids"]}


def test_whole_pools_are_scored_on_request(copied: Any, prep_run: Prep) -> None:
    """Prevents: a switch that nothing follows, or that makes the negatives stale."""
    more = {"hard_negatives.score_pools": True, "hard_negatives.range_max": 5}
    lines = prep_run(copied.config, **more)
    assert any(line.startswith("pool_scores") and "built" in line for line in lines)
    (pairs,) = copied.store.glob("pools/pairs-*/manifest.json")
    assert sum(shard["rows"] for shard in json.loads(pairs.read_text())["shards"]) == 14 * 20 + 15
    lines = prep_run(copied.config, **{"hard_negatives.score_pools": True})
    assert not any("built" in line for line in lines if line.startswith(("hard_negatives", "shards")))


def test_simans_and_the_student_s_rule(copied: Any, prep_run: Prep) -> None:
    """Prevents: a rule of the student that needs the teacher, or whose positives have no score."""
    rule = {"hard_negatives.false_negatives.student_margin": 0, "hard_negatives.sampler": "simans", "hard_negatives.draws": 2}
    lines = prep_run(copied.config, stage="hard_negatives", **rule)
    assert not any("pool_scores" in line for line in lines)
    stores = [path for path in copied.store.glob("hard_negatives/*/manifest.json") if '"simans"' in path.read_text()]
    rows = [row for path in sorted(stores[0].parent.glob("*.parquet")) for row in read_shard(path).to_pylist()]
    pools = {}
    for path in copied.store.glob("pools/ranked-*/*.parquet"):
        pools.update({row["query_id"]: row for row in read_shard(path).to_pylist()})
    for row in rows:
        pool = pools[row["query_id"]]
        above = {doc for doc, score in zip(pool["ranked_ids"], pool["ranked_scores"], strict=True) if score > max(pool["positive_scores"])}
        assert set(row["dropped_ids"]) == above and not above & {doc for draw in row["negative_ids"] for doc in draw}


def test_the_miner_is_a_model_of_its_own(copied: Any, models: Any, tmp_path: Path) -> None:
    """Prevents: a teacher that mines cut to the student's layers, or pooled as the student is."""
    given = {"student.layers": "1", "student.pooling": "cls", "student.normalize": "false", "student.query_prefix": "q: "}
    trained = tmp_path / "trained"
    DualEncoder(resolve_student(Student(model=str(models.student), pooling="mean", normalize=True))).save(trained)
    experiment = load({"config": str(copied.config), **given, "embed.model": str(trained)})
    resolved = ResolvedModels(experiment)
    own, student = resolved.miner, resolved.student
    assert (own.layers, own.pooling, own.normalize, own.query_prefix) == (None, "mean", True, "")
    assert (student.layers, student.pooling, student.normalize, student.query_prefix) == (1, "cls", False, "q: ")
    assert (own.query_tokens, own.passage_tokens) == (student.query_tokens, student.passage_tokens)
    assert ResolvedModels(load({"config": str(copied.config), **given})).miner.layers == 1

    (trained / "modules.json").unlink()  # a plain folder, which does not say: as the student, whose files do
    student_folder = tmp_path / "student"
    DualEncoder(resolve_student(Student(model=str(models.student), pooling="mean", normalize=True))).save(student_folder)
    asked = {"student.model": str(student_folder), "student.pooling": "auto", "student.normalize": "null", "embed.model": str(trained)}
    own = ResolvedModels(load({"config": str(copied.config), **asked})).miner
    assert (own.folder, own.pooling, own.normalize) == (trained, "mean", True)


def test_mining_with_a_later_student(copied: Any, models: Any, tmp_path: Path, prep_run: Prep) -> None:
    """Prevents: a re-mining override that changes what training starts from, or that mines with the old student."""
    import torch
    from safetensors.torch import load_file, save_file

    later = shutil.copytree(models.student, tmp_path / "later")
    weights = load_file(later / "model.safetensors")
    torch.manual_seed(7)
    save_file(
        {name: torch.randn_like(value) * 0.2 for name, value in weights.items()}, later / "model.safetensors", metadata={"format": "pt"}
    )
    before = {path.parent.name for path in copied.store.glob("*/*/manifest.json")}
    lines = prep_run(copied.config, **{"embed.model": later})
    assert [line.split()[0] for line in lines if "built" in line][:3] == ["embed.corpus", "embed.queries", "pools.ranked"]
    new = {path.parent.name for path in copied.store.glob("*/*/manifest.json")} - before
    pools = [
        {row["query_id"]: row["ranked_ids"] for path in sorted(folder.glob("*.parquet")) for row in read_shard(path).to_pylist()}
        for folder in copied.store.glob("pools/ranked-*")
    ]
    assert len(pools) == 2 and pools[0] != pools[1] and new
    again = load({"config": str(copied.config), "embed.model": str(later)})
    resolved = ResolvedModels(again)
    assert (resolved.student.folder, resolved.miner.folder) == (models.student, later)
    with pytest.raises(UserError, match=r"embed\.model=/no/such"):
        prep_run(copied.config, **{"embed.model": "/no/such"})
