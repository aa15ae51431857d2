"""The dev set and its search against a plain float64 reference; encoding that leaves the training alone."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from data.config.settings import Student
from data.digests import canonical_json
from data.errors import DamagedShard, RunFailed, UserError
from data.tables.manifest import Manifest, ShardRecord
from data.tables.ragged import Ragged, RaggedBuilder
from data.tables.schemas import DEV, SCHEMA_VERSION, DevRole
from data.tables.shards import describe, open_shard
from retrieval.models.dual_encoder import DualEncoder
from retrieval.models.student import resolve_student
from trainer.evaluation import dev_set as dev
from trainer.evaluation.dev_set import DevSet, encode_all, encoded, evaluate, open_dev_set, search
from trainer.objective.dimensions import Dimensions
from trainer.steps.gradients import StepSettings

METADATA = {"schema_version": SCHEMA_VERSION, "tokenizer": "none", "split": "dev", "depth": 3, "random": 2}
QUERIES = {"q0": ([2, 7, 3], {"d1": 1}), "q1": ([2, 8, 9, 3], {"d1": 2, "d3": 1})}
PASSAGES = {"d1": [2, 5, 3], "d10": [2, 3], "d3": [2, 6, 6, 6, 3], "d4": [2, 9, 3]}


def write_dev_set(folder: Path, passages: dict[str, list[int]] = PASSAGES, *, group: int = 3, **metadata: Any) -> Path:
    rows = [(DevRole.QUERY, query, tokens, list(judged), list(judged.values())) for query, (tokens, judged) in QUERIES.items()]
    rows += [(DevRole.PASSAGE, doc_id, tokens, [], []) for doc_id, tokens in passages.items()]
    columns = [list(column) for column in zip(*rows, strict=True)]
    table = pa.table(columns, schema=DEV.with_metadata({"dev": canonical_json({**METADATA, **metadata})}))
    with open_shard(folder / "part-00000-of-00001.parquet", table.schema, {}) as writer:
        for start in range(0, len(rows), group):  # with roles on both sides of a cut
            writer.write_row_group(table.slice(start, group))
    record = ShardRecord("part-00000-of-00001.parquet", *describe(folder / "part-00000-of-00001.parquet"))
    Manifest("dev", "", "f", {}, [record], {}).write(folder)
    return folder


@pytest.mark.parametrize("group", [1, 3, 9])
def test_read_whole(tmp_path: Path, group: int) -> None:
    """Prevents: tokens or labels under the id of a neighbour."""
    found = open_dev_set(write_dev_set(tmp_path / "dev", group=group), tokenizer="none")
    assert found.query_ids == tuple(QUERIES) and found.doc_ids == tuple(PASSAGES)
    assert found.queries.arrow().to_pylist() == [tokens for tokens, _ in QUERIES.values()]
    assert found.passages.arrow().to_pylist() == list(PASSAGES.values())
    assert found.qrels == {query: judged for query, (_, judged) in QUERIES.items()}


def test_what_is_refused(tmp_path: Path, shards: Path) -> None:
    """Prevents: metrics of tokens that mean other words, or of another table, which look like metrics."""
    folder = write_dev_set(tmp_path / "dev")
    with pytest.raises(UserError, match="another tokenizer"):
        open_dev_set(folder, tokenizer="other")
    with pytest.raises(UserError, match="schema version 0"):
        open_dev_set(write_dev_set(tmp_path / "old", schema_version=0), tokenizer="none")
    with pytest.raises(UserError, match=r"without manifest\.json"):
        open_dev_set(tmp_path, tokenizer="none")
    with pytest.raises(UserError, match=r"dev=.* is the stored table shards.*expected a dev set"):
        open_dev_set(shards, tokenizer="none")
    with pytest.raises(UserError, match="order of their ids"):
        open_dev_set(write_dev_set(tmp_path / "mixed", dict(reversed(PASSAGES.items()))), tokenizer="none")
    with pytest.raises(UserError, match="no passages"):
        open_dev_set(write_dev_set(tmp_path / "none", {}), tokenizer="none")


@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.8, 0.999])
def test_damage_is_refused(tmp_path: Path, place: float) -> None:
    """Prevents: a flipped byte that is another token or label."""
    folder = write_dev_set(tmp_path / "dev")
    (path,) = folder.glob("*.parquet")
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedShard, match="part-00000-of-00001"):
        open_dev_set(folder, tokenizer="none")
    path.unlink()
    with pytest.raises(UserError, match="missing"):
        open_dev_set(folder, tokenizer="none")


def ragged(count: int, first: int) -> Ragged:
    """Sequences of one token each, which says what they are."""
    builder = RaggedBuilder()
    builder.extend([[first + number] for number in range(count)])
    return builder.finish()


def plain_metrics(ranked: dict[str, list[str]], qrels: dict[str, dict[str, int]]) -> dict[str, float]:
    sums = {"MRR@10": 0.0, "nDCG@10": 0.0, "Recall@100": 0.0}
    for query, judged in qrels.items():
        listed = ranked[query]
        sums["MRR@10"] += next((1 / rank for rank, doc in enumerate(listed[:10], 1) if doc in judged), 0.0)
        ideal = math.fsum(grade / math.log2(rank + 1) for rank, grade in enumerate(sorted(judged.values(), reverse=True)[:10], 1))
        sums["nDCG@10"] += math.fsum(judged.get(doc, 0) / math.log2(rank + 1) for rank, doc in enumerate(listed[:10], 1)) / ideal
        sums["Recall@100"] += len(judged.keys() & set(listed[:100])) / len(judged)
    return {name: value / len(qrels) for name, value in sums.items()}


@pytest.mark.medium
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32), count=st.integers(1, 60), asked=st.integers(1, 7), size=st.integers(1, 6), few=st.booleans(),
    block=st.integers(1, 25), depth=st.sampled_from([1, 3, 10, 100]),
)  # fmt: skip
def test_search_and_metrics_as_plain_float64(
    seed: int, count: int, asked: int, size: int, few: bool, block: int, depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prevents: a best passage lost between two blocks, ties by where passages lie, negative scores in the wrong order, a wrong mean."""
    monkeypatch.setattr(dev, "_BLOCK_PASSAGES", block)
    chance = np.random.default_rng(seed)
    doc_ids = sorted(f"d{number}" for number in chance.choice(1000, count, replace=False))
    if few:  # few values, so that most scores are equal, zeros of both signs among them
        passages, queries = chance.integers(-1, 2, (count, size)) * 0.5, chance.integers(-2, 3, (asked, size)) * -0.0
        queries = np.where(chance.random((asked, size)) < 0.7, chance.integers(-2, 3, (asked, size)) * 1.0, queries)
    else:
        passages, queries = chance.normal(size=(count, size)), chance.normal(size=(asked, size))
        passages[chance.integers(0, count, count // 3)] = passages[0]  # twins, in several blocks
    vectors = {0: queries.astype(np.float32), 1000: passages.astype(np.float32)}

    def encode(sequences: Any) -> NDArray[np.float32]:
        numbers = np.concatenate(sequences)
        first = 1000 if numbers[0] >= 1000 else 0
        return vectors[first][numbers - first]

    query_ids = tuple(f"q{number}" for number in range(asked))
    qrels: dict[str, dict[str, int]] = {}
    for query in query_ids:
        judged = chance.choice(doc_ids, int(chance.integers(1, min(5, count) + 1)), replace=False)
        qrels[query] = {str(doc_id): int(chance.integers(1, 4)) for doc_id in judged}
    found = DevSet("", query_ids, ragged(asked, 0), tuple(doc_ids), ragged(count, 1000), qrels)

    expected: dict[str, list[tuple[str, float]]] = {}
    for place, query in enumerate(query_ids):
        exact = [math.fsum(a * b for a, b in zip(vectors[0][place].tolist(), one.tolist(), strict=True)) for one in vectors[1000]]
        scored = [(doc_id, float(np.float32(score))) for doc_id, score in zip(doc_ids, exact, strict=True)]
        expected[query] = sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:depth]
    assert search(encoded(encode, found), found, depth=depth) == expected
    metrics = plain_metrics({query: [doc for doc, _ in listed] for query, listed in expected.items()}, qrels)
    assert evaluate(encode, found, depth=depth) == pytest.approx(metrics, rel=1e-12, abs=1e-12)


def opened(tmp_path: Path) -> DevSet:
    return open_dev_set(write_dev_set(tmp_path / "dev"), tokenizer="none")


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_ruined_weights_are_no_metric(tmp_path: Path, wrong: float) -> None:
    """Prevents: NaN scores that rank first, or last, and a number that looks like a metric."""
    with pytest.raises(RunFailed, match="not finite"):
        evaluate(lambda given_: np.full((len(given_), 2), wrong, np.float32), opened(tmp_path))
    with pytest.raises(ValueError, match="k must be"):
        evaluate(lambda given_: np.ones((len(given_), 2), np.float32), opened(tmp_path / "again"), depth=0)


def step_settings(budget: int, precision: str) -> StepSettings:
    return StepSettings(0, 1.0, 1.0, micro_batch_tokens=budget, pad_id=0, device="cpu", precision=precision)


@pytest.fixture
def model(student: Path) -> DualEncoder:
    return DualEncoder(resolve_student(Student(model=str(student)))).train()


def sequences(count: int) -> list[NDArray[np.int32]]:
    chance = np.random.default_rng(0)
    return [np.array([2, *chance.integers(5, 60, int(chance.integers(0, 12))), 3], np.int32) for _ in range(count)]


@pytest.mark.parametrize("budget", [1, 40, 4096])
def test_encode_all_is_each_alone(model: DualEncoder, budget: int) -> None:
    """Prevents: vectors in the order of lengths instead of texts, padding that is read, dropout in an evaluation."""
    given_ = sequences(23)
    vectors = encode_all(model, given_, settings=step_settings(budget, "fp32"))
    assert vectors.dtype == np.float32
    model.eval()
    for sequence, vector in zip(given_, vectors, strict=True):
        ids = torch.from_numpy(sequence[None].astype(np.int64))
        alone = model(ids, torch.ones_like(ids))[0]
        torch.testing.assert_close(torch.from_numpy(vector), alone.detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_encode_all_leaves_the_training_alone(model: DualEncoder, precision: str) -> None:
    """Prevents: a student that trains without dropout from its first evaluation on, whose masks or gradients an evaluation has changed, or
    whose weights autocast has kept without their gradient."""
    frozen = model.backbone.encoder.layer[0].eval()
    modes = [module.training for module in model.modules()]
    ids = torch.tensor([[2, 7, 8, 9, 3]])

    def gradient() -> list[torch.Tensor]:
        model.zero_grad()
        torch.manual_seed(7)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            model(ids, torch.ones_like(ids)).sum().backward()
        return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]

    before, state = gradient(), torch.get_rng_state()
    encode_all(model, sequences(5), settings=step_settings(30, precision))
    assert torch.equal(torch.get_rng_state(), state)
    assert [module.training for module in model.modules()] == modes and not frozen.training and model.training
    after = gradient()
    assert len(before) == len(after) > 10 and all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def test_modes_come_back_after_an_error(model: DualEncoder) -> None:
    """Prevents: a caught error that leaves the student in eval mode."""
    with pytest.raises(IndexError):
        encode_all(model, [np.array([10_000], np.int32)], settings=step_settings(30, "fp32"))
    assert all(module.training for module in model.modules())


def test_bf16_means_autocast(model: DualEncoder) -> None:
    """Prevents: a precision that is not used, or one that loses more than rounding."""
    both = [encode_all(model, sequences(9), settings=step_settings(64, name)) for name in ("fp32", "bf16")]
    assert both[1].dtype == np.float32
    assert 0 < np.abs(both[0] - both[1]).max() < 0.1 * np.abs(both[0]).max()


def test_the_set_of_the_stage(finished_dev: Path, models: Any) -> None:
    """Prevents: a stage and a reader that are right each by itself, and do not fit."""
    spec = resolve_student(Student(model=str(models.student), query_tokens=16, passage_tokens=48))
    found, student = open_dev_set(finished_dev, tokenizer=spec.tokenizer_digest), DualEncoder(spec)
    metrics = evaluate(lambda given: encode_all(student, given, settings=step_settings(512, "fp32")), found)
    assert set(metrics) == set(dev.METRICS) and 0 < metrics["MRR@10"] <= 1
    assert json.loads(json.dumps(metrics)) == metrics  # as a line of metrics wants it


@pytest.fixture
def finished_dev(finished: Any, tmp_path: Path, tiny_experiment: Callable[..., Path], prep_run: Callable[..., list[str]]) -> Path:
    config = tiny_experiment(tmp_path / "dev", **{"dev.queries": 4, "dev.depth": 5, "dev.random": 3})
    shutil.copytree(finished.store, config.parent / "store")
    prep_run(config, stage="dev")
    return next((config.parent / "store" / "dev").iterdir())


def counts(sequences: Any) -> NDArray[np.float32]:
    """Texts by how often each token stands in them."""
    return np.stack([np.bincount(sequence, minlength=16).astype(np.float32) for sequence in sequences])


def test_a_query_that_is_a_passage_does_not_find_itself(tmp_path: Path) -> None:
    """Prevents: checkpoints of duplicate-question collections chosen by how well a query finds its own text."""
    passages = {"d1": [2, 7, 5, 3], "d3": [2, 6, 3], "q0": [2, 7, 7, 3], "q1": [2, 4, 4, 3]}  # q1 is another text than the query
    found = open_dev_set(write_dev_set(tmp_path / "dev", passages), tokenizer="none")
    assert found.own_passages == {"q0"}
    ranked = search(encoded(counts, found), found, depth=4)
    assert [doc for doc, _ in ranked["q0"]][:2] == ["q0", "d1"]
    q1 = [doc for doc, _ in ranked["q1"]]
    firsts = (1, 1 + min(q1.index("d1"), q1.index("d3")))
    assert evaluate(counts, found)["MRR@10"] == pytest.approx(sum(1 / first for first in firsts) / 2)
    assert open_dev_set(write_dev_set(tmp_path / "plain"), tokenizer="none").own_passages == frozenset()


@pytest.mark.parametrize("normalize", [True, False])
def test_cut_vectors_are_measured_beside_the_whole_ones(normalize: bool) -> None:
    """Prevents: a figure of whole vectors under the name of short ones, or of short ones that are not of length 1 again."""
    chance = np.random.default_rng(3)
    vectors = {0: chance.normal(size=(9, 8)).astype(np.float32), 1000: chance.normal(size=(50, 8)).astype(np.float32)}
    doc_ids, query_ids = sorted(f"d{number}" for number in range(50)), tuple(f"q{number}" for number in range(9))

    def encode(sequences: Any) -> NDArray[np.float32]:
        numbers = np.concatenate(sequences)
        first = 1000 if numbers[0] >= 1000 else 0
        return vectors[first][numbers - first]

    qrels = {query: {doc_ids[3 * place]: 1, doc_ids[3 * place + 1]: 1} for place, query in enumerate(query_ids)}
    found = DevSet("", query_ids, ragged(9, 0), tuple(doc_ids), ragged(50, 1000), qrels)
    figures = evaluate(encode, found, dimensions=Dimensions(((8, 1.0), (2, 1.0), (5, 0.5)), normalize))
    assert list(figures) == ["MRR@10", "nDCG@10", "Recall@100", "MRR@10/5", "MRR@10/2"]
    for name, size in (("MRR@10", 8), ("MRR@10/5", 5), ("MRR@10/2", 2)):
        queries, passages = (vectors[first][:, :size].astype(np.float64) for first in (0, 1000))
        if normalize and size < 8:
            queries, passages = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (queries, passages))
        order = np.argsort(-(queries @ passages.T), axis=1)
        ranked = {query: [doc_ids[row] for row in order[place]] for place, query in enumerate(query_ids)}
        assert figures[name] == pytest.approx(plain_metrics(ranked, qrels)["MRR@10"], rel=1e-12), name
