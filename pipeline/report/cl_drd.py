"""What the report tells of a curriculum: of each iteration the teacher's scores of its three groups."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from data.config.settings import Experiment
from data.tables.cl_drd_groups import FAR_LABEL, NEAR_LABEL
from data.tables.schemas import GROUPS, CandidateKind
from pipeline.report.figures import Logits, score_distributions
from pipeline.report.html import facts_table, figure, html_table
from pipeline.report.inspect import KIND_NAMES, complete_tables

_LABELS = {CandidateKind.TOP: "1/place", CandidateKind.NEAR: f"{NEAR_LABEL}", CandidateKind.FAR: f"{FAR_LABEL}"}
_NUMBERS = ("label", "candidates", "lowest logit", "5 %", "mean", "95 %", "highest logit", "above the first positive")


def curriculum_sections(experiment: Experiment) -> tuple[list[str], dict[tuple[str, int], float]]:
    """The head of the page and its figures; C(q) of each (query, iteration). Raises UserError where `curriculum` is not complete."""
    (lists,) = complete_tables(experiment, "curriculum")
    iterations = [_Groups() for _ in experiment.curriculum.iterations]
    confidences: dict[tuple[str, int], float] = {}
    candidates = 0
    for shard in range(len(lists.paths())):
        table = lists.read(shard, columns=["query_id", "draw", "position", "candidate_kind", "logit", "confidence"])
        draws, kinds, logits = (table.column(name).to_numpy() for name in ("draw", "candidate_kind", "logit"))
        begins = np.flatnonzero(table.column("position").to_numpy() == 0)
        positives = logits[begins][np.cumsum(table.column("position").to_numpy() == 0) - 1]  # a positive opens each list
        for number, groups in enumerate(iterations):
            own = draws == number
            groups.add(kinds[own], logits[own], logits[own] > positives[own])
        for row in table.select(["query_id", "draw", "confidence"]).take(begins).to_pylist():
            confidences[row["query_id"], row["draw"]] = row["confidence"]
        candidates += table.num_rows
    settings = experiment.curriculum
    facts = [("groups, an iteration", ", ".join(settings.iterations)), ("group 2 up to rank", settings.near_rank)]
    queries, length = len({query_id for query_id, _ in confidences}), candidates / max(1, len(confidences))
    head = facts_table(experiment, queries=queries, candidates=length, lists=facts)
    return [head, _scores(settings.iterations, iterations)], confidences


class _Groups:
    """The logits of one iteration by group, and which are above that of their list's first positive."""

    def __init__(self) -> None:
        self._logits: dict[CandidateKind, list[NDArray[np.float32]]] = {kind: [] for kind in GROUPS}
        self._above: dict[CandidateKind, list[NDArray[np.bool_]]] = {kind: [] for kind in GROUPS}

    def add(self, kinds: NDArray[np.int8], logits: NDArray[np.float32], above: NDArray[np.bool_]) -> None:
        for kind in GROUPS:
            self._logits[kind].append(logits[kinds == kind])
            self._above[kind].append(above[kinds == kind])

    @property
    def logits(self) -> Logits:
        return {kind: np.concatenate(parts) for kind, parts in self._logits.items()}

    @property
    def present(self) -> list[CandidateKind]:
        return [kind for kind in GROUPS if len(self.logits[kind])]

    def cells(self, kind: CandidateKind) -> list[str]:
        values = self.logits[kind]
        low, high = np.quantile(values, [0.05, 0.95])
        figures = (values.min(), low, values.mean(), high, values.max())
        above = np.concatenate(self._above[kind]).mean()
        return [_LABELS[kind], f"{len(values):,}", *(f"{value:.2f}" for value in figures), f"{above:.0%}"]


def _scores(names: tuple[str, ...], iterations: list[_Groups]) -> str:
    everything = np.concatenate([values for groups in iterations for values in groups.logits.values()])
    span = float(everything.min()), float(everything.max())  # one axis, so that the iterations can be compared
    figures = "".join(
        figure(
            score_distributions(groups.logits, GROUPS, span=span),
            caption=f"Iteration {number} ({name}): "
            + ("the groups should part." if len(groups.present) > 1 else "one group, graded by place."),
        )
        for number, (name, groups) in enumerate(zip(names, iterations, strict=True), start=1)
    )
    rows = [
        [f"{number}", KIND_NAMES[kind], *groups.cells(kind)] for number, groups in enumerate(iterations, start=1) for kind in groups.present
    ]
    table = html_table(["iteration", "group", *_NUMBERS], rows, numbers=_NUMBERS)
    return f'<h2>The teacher\'s scores of the groups</h2><div class="figures">{figures}</div>{table}'
