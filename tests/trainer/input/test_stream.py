from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.config.settings import Experiment, Objective
from data.errors import DamagedShard, UserError
from retrieval.model_files.files import tokenizer_digest
from trainer.input import stream
from trainer.input.stream import TrainingShards, batches, open_training_shards, permutation, rows_of_epoch, windows
from trainer.objective.losses import ordered_pairs
from trainer.objective.plan import distilled_places, plan_batch
from trainer.recipes import check_shards

Maker = Callable[..., Any]


def opened(folder: Path, student: Path) -> TrainingShards:
    return open_training_shards(folder, tokenizer=tokenizer_digest(student))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=30), st.integers(0, 2**40), st.integers(0, 9))
def test_order_is_a_bijection(group_rows: list[int], seed: int, epoch: int) -> None:
    """A row seen twice, or never, in an epoch."""
    seen = []
    for place, window in enumerate(windows(group_rows, "digest", seed, epoch)):
        assert len(window) <= stream.WINDOW_GROUPS
        rows = [(group, row) for group in window for row in range(group_rows[group])]
        seen += [rows[position] for position in permutation(len(rows), "rows", place, "digest", seed, epoch)]
    assert sorted(seen) == [(group, row) for group, count in enumerate(group_rows) for row in range(count)]


def test_order_is_fixed_for_ever() -> None:
    """An order that changes with a library breaks resume and every comparison: these numbers may never change."""
    assert permutation(8, "rows", 0, "digest", 1, 2).tolist() == permutation(8, "rows", 0, "digest", 1, 2).tolist()
    assert permutation(8, "rows", 0, "digest", 1, 2).tolist() == GOLDEN
    assert permutation(8, "rows", 0, "digest", 1, 3).tolist() != GOLDEN


GOLDEN = [6, 4, 1, 5, 7, 2, 3, 0]


def test_rows_come_whole_and_once(shards: Path, student: Path, row_maker: Maker) -> None:
    """Candidates of one query under the name of another: offsets that are off by a row."""
    found = opened(shards, student)
    generator = np.random.default_rng(1)
    expected = {f"q{number:02d}": row_maker(generator, f"q{number:02d}") for number in range(22)}
    orders = []
    for epoch in range(2):
        rows = list(rows_of_epoch(found, seed=3, epoch=epoch))
        orders.append([row.query_id for row in rows])
        assert sorted(orders[-1]) == sorted(expected)
        for row in rows:
            wanted = expected[row.query_id]
            assert row.query_tokens.tolist() == wanted["query_tokens"]
            assert [candidate.tolist() for candidate in row.candidate_tokens] == wanted["candidate_tokens"]
            assert list(row.kinds) == wanted["candidate_kind"] and list(row.candidate_ids) == wanted["candidate_id"]
            assert row.teacher_logits.tolist() == wanted["teacher_logits"] and row.confidence == wanted["confidence"]
    assert orders[0] != orders[1] and orders[0] != sorted(orders[0])
    assert orders[0] == [row.query_id for row in rows_of_epoch(opened(shards, student), seed=3, epoch=0)]
    assert orders[0] != [row.query_id for row in rows_of_epoch(found, seed=4, epoch=0)]


@pytest.mark.medium
@settings(max_examples=25, deadline=None)
@given(first_step=st.integers(0, 20), batch_queries=st.integers(1, 9))
def test_resume_is_one_integer(tmp_path_factory: Any, first_step: int, batch_queries: int) -> None:
    """A resumed run that repeats or loses rows, at any step and batch size, over window and epoch bounds."""
    found = SHARDS_OF_TWO_DRAWS(tmp_path_factory)
    everything = [(b.step, b.epoch, [row.query_id for row in b.rows]) for b in run(found, batch_queries, 0)]
    resumed = [(b.step, b.epoch, [row.query_id for row in b.rows]) for b in run(found, batch_queries, first_step)]
    assert resumed == everything[first_step:]
    assert [step for step, _, _ in everything] == list(range(len(everything)))


def run(found: TrainingShards, batch_queries: int, first_step: int) -> Any:
    return batches(found, seed=5, epochs=3, batch_queries=batch_queries, first_step=first_step)


_CACHE: dict[str, TrainingShards] = {}


def SHARDS_OF_TWO_DRAWS(tmp_path_factory: Any) -> TrainingShards:
    if "found" not in _CACHE:
        folder = tmp_path_factory.mktemp("draws") / "shards"
        WRITERS["write"](folder, [[WRITERS["row"](np.random.default_rng(n), f"q{n:02d}", draw=d) for n in range(21) for d in (0, 1)]])
        _CACHE["found"] = open_training_shards(folder, tokenizer="none")
    return _CACHE["found"]


WRITERS: dict[str, Maker] = {}


@pytest.fixture(autouse=True)
def _writers(shard_writer: Maker, row_maker: Maker) -> None:
    def write(folder: Path, rows: Any) -> Path:
        return shard_writer(folder, rows, draws=2, group_rows=3)

    WRITERS.update(write=write, row=row_maker)


def test_epoch_uses_its_own_draw(tmp_path_factory: Any) -> None:
    """All draws in every epoch would multiply its length; one draw for ever would waste the others."""
    found = SHARDS_OF_TWO_DRAWS(tmp_path_factory)
    for epoch in range(4):
        rows = list(rows_of_epoch(found, seed=0, epoch=epoch))
        assert len({row.query_id for row in rows}) == len(rows) == found.epoch_rows(epoch) == 21
        assert {row.candidate_ids[0].split("-")[1] for row in rows} == {str(epoch % 2)}


def test_only_needed_row_groups_are_decoded(tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume that decodes all that it skips takes hours; a stream that holds all row groups runs out of memory."""
    found = SHARDS_OF_TWO_DRAWS(tmp_path_factory)
    decoded: list[int] = []
    original = stream._DecodedGroup.__init__

    def counted(self: Any, group: Any, *, draw: int) -> None:
        decoded.append(group.index)
        original(self, group, draw=draw)

    monkeypatch.setattr(stream._DecodedGroup, "__init__", counted)
    rows = rows_of_epoch(found, seed=0, epoch=0)
    next(rows)
    assert len(decoded) == stream.WINDOW_GROUPS < len(found.groups)
    decoded.clear()
    list(rows_of_epoch(found, seed=0, epoch=0, skip=20))
    assert len(decoded) <= stream.WINDOW_GROUPS


def test_another_tokenizer_is_refused(shards: Path) -> None:
    """Tokens of another vocabulary are valid numbers: the student would train on noise."""
    with pytest.raises(UserError, match="tokenizer"):
        open_training_shards(shards, tokenizer="other")


def test_other_schema_version_is_refused(tmp_path: Path, shard_writer: Maker, row_maker: Maker) -> None:
    """Columns that changed their meaning."""
    folder = shard_writer(tmp_path / "old", [[row_maker(np.random.default_rng(0), "q")]], schema_version=0)
    with pytest.raises(UserError, match="schema version 0"):
        open_training_shards(folder, tokenizer="none")


def test_shards_of_version_2_serve_without_in_batch_negatives(tmp_path: Path, shard_writer: Maker, row_maker: Maker) -> None:
    """Prevents: good shards made before refused, and in-batch negatives among which are labelled positives that the shards do not name."""
    generator = np.random.default_rng(0)
    rows = [[row_maker(generator, f"q{number}") for number in range(5)]]
    old, new = (open_training_shards(shard_writer(tmp_path / f"{v}", rows, schema_version=v), tokenizer="none") for v in (2, 3))
    before, now = ({row.query_id: row for row in rows_of_epoch(found, seed=0, epoch=0)} for found in (old, new))
    assert [row.never_ids for row in before.values()] == [()] * 5 and all(row.never_ids == (f"{q}-0-0",) for q, row in now.items())
    same = ("candidate_ids", "kinds", "confidence")
    assert all(getattr(before[q], name) == getattr(now[q], name) for q in now for name in same)
    ids = {"store": "s", "ingest": {"path": "p"}, "student": {"model": "m"}, "teacher": {"model": "t"}}
    for in_batch in ("none", "supervised", "distillation", "both"):
        experiment = Experiment(**ids, train={"objective": {"in_batch": in_batch}})
        check_shards(experiment, new.metadata)
        if in_batch == "none":
            check_shards(experiment, old.metadata)
            continue
        with pytest.raises(UserError, match=rf"in_batch={in_batch}: these shards, of schema version 2, .*`prep run config=FILE`"):
            check_shards(experiment, old.metadata)


def test_grades_come_with_their_rows_and_are_asked_for_by_name(tmp_path: Path, shard_writer: Maker, row_maker: Maker) -> None:
    """Prevents: the grade of a neighbour, old shards trained with weights of 1, a grade that nobody has weighed, and a loss of nothing."""
    generator = np.random.default_rng(0)
    rows = [{**row_maker(generator, f"q{number}", draw=number % 2), "positive_grade": number % 3} for number in range(14)]
    graded, plain = (
        open_training_shards(shard_writer(tmp_path / f"{version}", [rows[:5], rows[5:]], schema_version=version, draws=2), tokenizer="none")
        for version in (5, 3)
    )
    assert graded.grades == {0, 1, 2} and not plain.grades and not plain.metadata.has_grades
    assert graded.metadata.has_never_ids and not graded.metadata.has_labels
    read = [row for epoch in (0, 1) for row in rows_of_epoch(graded, seed=0, epoch=epoch)]
    assert {row.query_id: row.positive_grade for row in read} == {f"q{number}": number % 3 for number in range(14)}
    assert all(row.positive_grade is None for row in rows_of_epoch(plain, seed=0, epoch=0))
    ids = {"store": "s", "ingest": {"path": "p"}, "student": {"model": "m"}, "teacher": {"model": "t"}}
    weighed = Experiment(**ids, train={"objective": {"positive_weights": {0: 0.5, 1: 0.5, 2: 1.0}}})
    check_shards(weighed, graded.metadata, grades=graded.grades)
    check_shards(Experiment(**ids), graded.metadata, grades=graded.grades)
    with pytest.raises(
        UserError, match=r"schema version 3, do not say which grade .*`prep run config=FILE hard_negatives\.positive_grades=true`"
    ):
        check_shards(weighed, plain.metadata, grades=plain.grades)
    two = Experiment(**ids, train={"objective": {"positive_weights": {1: 0.5, 2: 1.0}}})
    with pytest.raises(UserError, match=r"weighs the grades 1, 2, and these shards have a p\+ of grade 0 \(0: promoted by the teacher\)"):
        check_shards(two, graded.metadata, grades=graded.grades)
    none = Experiment(**ids, train={"objective": {"positive_weights": {0: 0, 1: 0, 2: 0, 3: 1.0}}})
    with pytest.raises(UserError, match=r"positive_weights is 0 for each grade of these shards \(0, 1, 2\)"):
        check_shards(none, graded.metadata, grades=graded.grades)
    mean = Experiment(**ids, train={"objective": {"confidence": "mean", "without": ["supervised"], "distillation": "curriculum"}})
    with pytest.raises(UserError, match=r"confidence=mean is over p\+ and P-"):
        check_shards(mean, replace(plain.metadata, schema_version=4))


def test_lists_of_a_curriculum_without_labels_are_refused(tmp_path: Path, shard_writer: Maker, row_maker: Maker) -> None:
    """Prevents: CL-DRD's lists of the version before trained as if they had no labels, or a traceback at the first row."""
    row = {**row_maker(np.random.default_rng(0), "q", negatives=1, dark=False), "candidate_kind": [4, 5]}
    folder = shard_writer(tmp_path / "old", [[row]], curriculum=["1/1/0"])
    with pytest.raises(UserError, match=r"schema version 3, no labels.*`prep run config=FILE`.*logits are kept"):
        open_training_shards(folder, tokenizer="none")


def test_a_shard_without_metadata_is_refused(tmp_path: Path, shard_writer: Maker, row_maker: Maker) -> None:
    """Prevents: a traceback where one shard of several was exchanged and digests are not compared."""
    rows = [[row_maker(np.random.default_rng(0), query_id)] for query_id in ("q0", "q1")]
    folder = shard_writer(tmp_path / "shards", rows)
    path = max(folder.glob("*.parquet"))
    pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    with pytest.raises(UserError, match="has schema version None, this trainer reads"):
        open_training_shards(folder, tokenizer="none", verify=False)


def test_any_list_may_carry_labels(tmp_path: Path, shard_writer: Maker, row_maker: Maker) -> None:
    """Prevents: labels of a neighbour, labels that only CL-DRD's groups may have, and a list of positives alone refused."""
    generator, rows = np.random.default_rng(0), []
    for number in range(12):
        row = row_maker(generator, f"q{number}", negatives=number % 3, dark=number % 2 == 0)
        row["candidate_kind"] = [0] * len(row["candidate_kind"]) if number == 4 else row["candidate_kind"]
        rows.append({**row, "labels": generator.normal(size=len(row["candidate_id"])).astype(np.float32).tolist()})
    found = open_training_shards(shard_writer(tmp_path / "labels", [rows]), tokenizer="none")
    assert found.metadata.has_labels
    read = {row.query_id: row for row in rows_of_epoch(found, seed=0, epoch=0)}
    assert [read[row["query_id"]].labels.tolist() for row in rows] == [row["labels"] for row in rows]
    work = plan_batch(list(read.values()), objective=Objective(distillation="curriculum", without=("supervised",)), share=Fraction(1))
    assert work.terms == sum(ordered_pairs(query.labels) for query in work.queries) > 0
    for query in work.queries:
        row = read[query.query_id]
        places = distilled_places(row.kinds, objective=Objective())
        assert query.labels.tolist() == row.labels[places].tolist() and len(query.distilled) == len(query.labels)


def test_folder_without_manifest_is_refused(tmp_path: Path) -> None:
    """A half-made folder is no folder."""
    with pytest.raises(UserError, match=r"manifest\.json"):
        open_training_shards(tmp_path, tokenizer="none")


def test_missing_shard_is_refused(shards: Path, student: Path) -> None:
    """Training on what is left would be training on less, in silence."""
    (shards / "part-00001-of-00002.parquet").unlink()
    with pytest.raises(UserError, match="part-00001-of-00002"):
        opened(shards, student)


def test_cut_short_shard_is_refused(shards: Path, student: Path) -> None:
    """A copy that stopped early."""
    path = shards / "part-00000-of-00002.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DamagedShard, match="part-00000-of-00002"):
        opened(shards, student)


@pytest.mark.parametrize("place", [0.0, 0.01, 0.2, 0.5, 0.8, 0.95, 0.999])
def test_flipped_byte_is_refused(shards: Path, student: Path, place: float) -> None:
    """By default a flipped byte is read as another number, a logit or a token."""
    path = shards / "part-00000-of-00002.parquet"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedShard, match="part-00000-of-00002"):
        opened(shards, student)


@pytest.mark.parametrize("column", ["teacher_logits", "candidate_id", "labels", "candidate_kind"])
def test_unequal_lists_are_refused(tmp_path: Path, shard_writer: Maker, row_maker: Maker, column: str) -> None:
    """Prevents: logits or labels that are one short, so that each candidate gets its neighbour's."""
    row = row_maker(np.random.default_rng(0), "q7")
    row["labels"] = row["teacher_logits"]
    row[column] = row[column][:-1]
    found = open_training_shards(shard_writer(tmp_path / "uneven", [[row]]), tokenizer="none")
    with pytest.raises(UserError, match="q7"):
        list(itertools.chain(rows_of_epoch(found, seed=0, epoch=0)))


def test_another_table_is_named(finished: Any, student: Path, tmp_path: Path) -> None:
    """Prevents: gigabytes read for their digests before a table of vectors is told to be no training rows."""
    for place, name in (("embed/corpus-*", "embed.corpus"), ("confidence/*", "confidence"), ("ingest/qrels-*", "ingest.qrels")):
        (folder,) = finished.store.glob(place)
        with pytest.raises(UserError, match=f"shards=.* is the stored table {name}; expected training rows"):
            opened(folder, student)
    for folder, words in ((finished.store, "a whole store"), (student, "a model's folder"), (tmp_path, "an empty folder")):
        with pytest.raises(UserError, match=rf"shards=.*it is {words}.*without manifest\.json"):
            opened(folder, student)


def test_lists_from_elsewhere_keep_the_order_of_their_first_shards(tmp_path: Path, shard_writer: Maker, row_maker: Maker) -> None:
    """Prevents: a copy of a store's lists that trains another student, since its shards name another table."""
    rows = [[row_maker(np.random.default_rng(n), f"q{n:02d}") for n in range(start, start + 17)] for start in (0, 17)]

    def order_of(name: str, order: str | None = None, **metadata: Any) -> list[str]:
        shards = open_training_shards(shard_writer(tmp_path / name, rows, **metadata), tokenizer="none", order=order)
        return [row.query_id for epoch in (0, 1) for row in rows_of_epoch(shards, seed=3, epoch=epoch)]

    expected = order_of("first")
    digest = json.loads((tmp_path / "first" / "manifest.json").read_text())["content_digest"]
    copy: dict[str, Any] = {"teachers": ["another"]}
    assert order_of("copy", **copy) != expected
    assert order_of("given", digest, **copy) == expected
    shards = shard_writer(tmp_path / "carried", rows, teachers=["another"], **{"order": digest})
    assert [row.query_id for row in rows_of_epoch(open_training_shards(shards, tokenizer="none"), seed=3, epoch=0)] == expected[
        : len(expected) // 2
    ]
