"""The cut, and the lists of a step's plan, against the same by bytes and ids, one query at a time."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.cut_by_bytes import cut_by_bytes

from data.config.settings import Objective
from trainer.input.stream import TrainingRow
from trainer.objective.plan import distilled_places, plan_batch
from trainer.processes.distributed import Distributed
from trainer.steps.micro_batches import cut
from trainer.steps.step_plan import OnDevice, plan_step

KINDS = (0, 1, 1, 2, 3)
# Of each query the number of its text, those of its candidates' texts and of their ids, what is never its negative, and C(q).
QUERY = st.tuples(
    st.integers(0, 8), st.lists(st.integers(0, 25), min_size=5, max_size=5), st.lists(st.integers(0, 12), min_size=5, max_size=5),
    st.lists(st.integers(0, 12), max_size=3), st.integers(3, 5), st.integers(0, 99),
)  # fmt: skip
QUERIES = st.lists(QUERY, min_size=1, max_size=12)
SETTINGS = st.fixed_dictionaries(
    {
        "in_batch": st.sampled_from(["none", "supervised", "distillation", "both"]), "include_positive": st.booleans(),
        "supervised_weight": st.sampled_from([0.0, 1.0]),
    }
)  # fmt: skip


def row_of(place: int, query: Any) -> TrainingRow:
    text, texts, ids, never, count, confidence = query
    tokens = lambda number, first: np.full(2 + number % 7, first + number, dtype=np.int32)  # noqa: E731
    return TrainingRow(
        f"q{place}", tokens(text, 100), tuple(tokens(number, 100 if number > 22 else 200) for number in texts[:count]), KINDS[:count],
        tuple(f"d{number}" for number in ids[:count]), np.arange(count, dtype=np.float32) + place, -float(confidence),
        tuple(f"d{number}" for number in never),
    )  # fmt: skip


def needed(row: TrainingRow, *, objective: Objective, chosen: bool) -> tuple[list[bytes], list[bytes]]:
    """p+ and P-, and P~, of a query of which these are asked."""
    texts = [one.tobytes() for one in row.candidate_tokens]
    places = distilled_places(row.kinds, objective=objective) if chosen else []
    plain = [place for place, kind in enumerate(row.kinds) if kind < 2] if objective.supervised_weight else []
    return [texts[place] for place in plain], [texts[place] for place in places]


@given(QUERIES, SETTINGS, st.integers(8, 200), st.sampled_from([None, 1, 3, 8]), st.integers(1, 3), st.booleans())
def test_cut_and_lists_are_those_by_bytes(
    queries: list[Any], settings: dict[str, Any], budget: int, pieces: int | None, size: int, chosen_all: bool
) -> None:
    """Prevents: other groups, chunks or orders, which draw other dropout masks in a run that goes on; a list of another query's vectors;
    and a passage that one side knows by its tokens or an id of its own, taught as a negative."""
    rows = [row_of(place, query) for place, query in enumerate(queries)]
    objective = Objective(**settings)
    work = plan_batch(rows, objective=objective, share=Fraction(1) if chosen_all else Fraction(1, 2))
    of_rows = [needed(row, objective=objective, chosen=bool(len(one.distilled))) for row, one in zip(rows, work.queries, strict=True)]
    sequences = [
        list(dict.fromkeys([row.query_tokens.tobytes(), *supervised, *distilled])) if supervised or distilled else []
        for row, (supervised, distilled) in zip(rows, of_rows, strict=True)
    ]
    plain = [(row, place) for row in rows for place, kind in enumerate(row.kinds) if kind < 2]
    passages = list(dict.fromkeys(row.candidate_tokens[place].tobytes() for row, place in plain))
    joins = [loss for loss in ("supervised", "distillation") if settings["in_batch"] in (loss, "both")]
    joins = [loss for loss in joins if loss == "distillation" or objective.supervised_weight]
    wanted = cut_by_bytes(sequences, passages if joins else None, budget=budget, pieces=pieces)
    parts = cut(work, budget=budget, pieces=pieces)
    assert ([work.sequences[number] for number in parts.shared], parts.chunks, parts.groups) == wanted
    lengths = [len(one) // 4 for one in {*(one for some in sequences for one in some), *(passages if joins else [])}]
    assert sorted(work.lengths) == sorted(lengths)

    found: dict[str, set[str]] = {}
    for row, place in plain:
        found.setdefault(row.candidate_tokens[place].tobytes().hex(), set()).add(row.candidate_ids[place])
    for rank in range(size):
        plan = plan_step(work, parts, processes=Distributed(rank, size), passes=[1], budget=budget, with_initial=False)
        read = OnDevice(plan.buffer, "cpu")
        open_QN = None
        if plan.in_batch:
            closed = read(plan.in_batch.closed).tolist()
            open_QN = np.array([number not in closed for number in range(plan.in_batch.shape[0] * plan.in_batch.shape[1])])
            open_QN = open_QN.reshape(plan.in_batch.shape)
        for number, group in plan.groups.items():
            own: list[bytes] = []
            for some in group.own[1].passes if group.own else ():
                ends = np.cumsum(read(some.lengths_N1).flatten().tolist())[:-1]
                own += [part.astype(np.int32).tobytes() for part in np.split(read(some.tokens).numpy(), ends)]
            ordered = [own[place] for place in read(group.own[1].order).tolist()] if group.own else []
            vectors = [*ordered, *wanted.shared]
            members = wanted.groups[number]
            lists = group.lists.map(read)
            for loss, has in (("supervised", lists.supervised), ("distillation", lists.distillation)):
                some_of = [place for place in members if of_rows[place][loss == "distillation"]]
                assert (has is None) == (not some_of)
                if has is None:
                    continue
                assert [vectors[place] for place in has.queries_B.tolist()] == [rows[place].query_tokens.tobytes() for place in some_of]
                longest = max(len(of_rows[place][loss == "distillation"]) for place in some_of)
                for line, place in enumerate(some_of):
                    listed = of_rows[place][loss == "distillation"]
                    filled = [*listed, *[listed[0]] * (longest - len(listed))]
                    assert [vectors[one] for one in has.candidates_BK[line].tolist()] == filled
                    assert has.lengths_B1[line].item() == len(listed)
                    if loss == "distillation":
                        logits = rows[place].teacher_logits[distilled_places(rows[place].kinds, objective=objective)].tolist()
                        assert has.targets_BK[line].tolist() == [*logits, *[-np.inf] * (longest - len(listed))]
                assert (has.in_batch is not None) == (loss in joins)
                if has.in_batch is not None:
                    assert [vectors[place] for place in has.in_batch.passages_N.tolist()] == passages
                    for line, place in zip(has.in_batch.queries_B.tolist(), some_of, strict=True):
                        texts = {one.tobytes() for one in rows[place].candidate_tokens}
                        ids = {*rows[place].candidate_ids, *rows[place].never_ids}
                        is_open = [one not in texts and not found[one.hex()] & ids for one in passages]
                        assert open_QN is not None and open_QN[line].tolist() == is_open
